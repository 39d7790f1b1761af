"""The grammar that an answer is held to: of a schema, of tools, and what comes before it in thinking."""
