"""An answer of a running server (see chat.py) that matches a regular expression: a list of three points."""

import os

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("MISTRALRS_URL", "http://127.0.0.1:1234/v1"), api_key="none")
answer = client.chat.completions.create(
    model="default",
    messages=[{"role": "user", "content": "Why do people like tea? Give three reasons."}],
    max_tokens=256,
    frequency_penalty=1.0,
    temperature=0,
    extra_body={"grammar": {"type": "regex", "value": "(- [^\n]{4,80}\n){3}"}},
)
print(answer.choices[0].message.content)
