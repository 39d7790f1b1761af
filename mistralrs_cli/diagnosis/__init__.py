"""Commands that tell about the machine, its settings, a file or a server, and answer no prompt."""
