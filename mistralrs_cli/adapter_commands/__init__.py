"""The subcommands for adapters: what they are, their scalings, their orderings."""
