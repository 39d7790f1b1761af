"""A program in C, written by a running server (see chat.py): the answer matches the Yacc grammar in c.y.

An argument is another task than the one below.
"""

import os
import sys
from pathlib import Path

from openai import OpenAI

TASK = "Write the main function of a C program that returns 42. Just the code."

client = OpenAI(base_url=os.environ.get("MISTRALRS_URL", "http://127.0.0.1:1234/v1"), api_key="none")
answer = client.chat.completions.create(
    model="default",
    messages=[{"role": "user", "content": sys.argv[1] if len(sys.argv) > 1 else TASK}],
    max_tokens=256,
    temperature=0,
    extra_body={"grammar": {"type": "yacc", "value": Path(__file__).with_name("c.y").read_text()}},
)
print(answer.choices[0].message.content)
if answer.choices[0].finish_reason == "length":
    print("(cut at max_tokens)", file=sys.stderr)
