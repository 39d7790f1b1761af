"""The Responses and the Messages API: their bodies become chats, and chats' answers their answers and events."""
