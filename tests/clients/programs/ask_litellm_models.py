"""Asks each of several models the question of a test with `litellm`, and prints the answers as one JSON object.

It runs in litellm's own environment, without this project; variables have its input.
"""

import json
import os
import warnings
from typing import Any

warnings.simplefilter("ignore")
import litellm  # noqa: E402

MESSAGES = [{"role": "user", "content": os.environ["QUESTION"]}]


def ask(model: str) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "model": f"openai/{model}",
        "api_base": os.environ["BASE_URL"],
        "api_key": "any",
        "num_retries": 0,
        "timeout": 60,
        "messages": MESSAGES,
        "temperature": 0,
        "max_tokens": 12,
        "extra_body": {"ignore_eos": True},
    }
    try:
        answer = litellm.completion(**asked)
    except litellm.NotFoundError as error:
        return {"error": [type(error).__name__, error.status_code], "message": str(error)}
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in litellm.completion(**asked, stream=True))
    return {"text": answer.choices[0].message.content, "streamed": streamed, "model": answer.model}


litellm.suppress_debug_info = True
print(json.dumps({name: ask(name) for name in os.environ["MODELS"].split(",")}))
