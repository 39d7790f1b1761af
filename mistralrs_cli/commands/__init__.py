"""The subcommands that select no model, and those that need one for something else than an answer."""
