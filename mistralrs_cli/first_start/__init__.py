"""The command alone in a terminal: shows the models that are on this machine, and chats with one of them."""
