"""Continues texts with a running server (see chat.py). An empty line ends it."""

import os

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("MISTRALRS_URL", "http://127.0.0.1:1234/v1"), api_key="none")

while prompt := input("> "):
    answer = client.completions.create(
        model="default", prompt=prompt, max_tokens=64, frequency_penalty=1.0, top_p=0.1, temperature=0
    )
    print(prompt + answer.choices[0].text)
