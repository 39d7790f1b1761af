"""The engine's events into answers: whole ones, and chunks of streams."""
