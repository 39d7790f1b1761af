"""Checks a server of OpenAI's API against what its clients rely on."""
