"""A conversation with a running server. An empty line ends it.

mistralrs --port 1234
python examples/server/chat.py

MISTRALRS_URL names another server than this one.
"""

import os
from typing import Any

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("MISTRALRS_URL", "http://127.0.0.1:1234/v1"), api_key="none")
messages: list[Any] = []
if system := input("System prompt (may be empty): "):
    messages.append({"role": "system", "content": system})

while question := input("> "):
    messages.append({"role": "user", "content": question})
    answer = client.chat.completions.create(
        model="default", messages=messages, max_tokens=256, frequency_penalty=1.0, top_p=0.1, temperature=0
    )
    messages.append(answer.choices[0].message)
    print(answer.choices[0].message.content)
