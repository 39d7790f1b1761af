"""The functions behind the commands of the chat, and what may follow a command in the line."""
