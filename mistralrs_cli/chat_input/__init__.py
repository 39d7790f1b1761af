"""A typed line of the chat, from its completion to a message: attached files, commands of the shell, prompt files."""
