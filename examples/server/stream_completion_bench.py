"""Compares whole with streamed completions of a running server (see chat.py).

An argument is the number of tokens, 400 without it.
"""

import os
import sys
import time

from openai import OpenAI

RUNS = 4
asked = {
    "model": "default",
    "prompt": "Describe how a computer works, for somebody who has never seen one.",
    "max_tokens": int(sys.argv[1]) if len(sys.argv) > 1 else 400,
    "temperature": 0,
    "extra_body": {"ignore_eos": True},  # all answers have the same length
}
client = OpenAI(base_url=os.environ.get("MISTRALRS_URL", "http://127.0.0.1:1234/v1"), api_key="none")


def whole() -> tuple[str, float]:
    """Returns the text and the seconds until it began."""
    start = time.perf_counter()
    text = client.completions.create(**asked).choices[0].text
    return text, time.perf_counter() - start


def streamed() -> tuple[str, float]:
    """Returns the text and the seconds until it began."""
    start = time.perf_counter()
    pieces = (chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True))
    first = next(pieces)
    began = time.perf_counter() - start
    return first + "".join(pieces), began


for complete in (whole, streamed):
    start = time.perf_counter()
    results = [complete() for _ in range(RUNS)]
    seconds = (time.perf_counter() - start) / RUNS
    began = sum(began for _, began in results) / RUNS
    rate = asked["max_tokens"] / seconds
    print(f"{complete.__name__:8}  {rate:6.1f} tokens a second, first text after {began:.2f} s")
