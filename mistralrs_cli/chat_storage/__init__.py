"""Saved chats: their database, their files, the KV that is kept for them."""
