"""A conversation with a model: on a terminal with an editor and commands, from a pipe with one turn for each line."""
