"""A conversation with a running server (see chat.py), whose answers appear as they are written."""

import os
from typing import Any

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("MISTRALRS_URL", "http://127.0.0.1:1234/v1"), api_key="none")
messages: list[Any] = []
if system := input("System prompt (may be empty): "):
    messages.append({"role": "system", "content": system})

while question := input("> "):
    messages.append({"role": "user", "content": question})
    text = ""
    for chunk in client.chat.completions.create(
        model="default", messages=messages, max_tokens=256, frequency_penalty=1.0, temperature=0, stream=True
    ):
        piece = chunk.choices[0].delta.content or ""
        print(piece, end="", flush=True)
        text += piece
    print()
    messages.append({"role": "assistant", "content": text})
