"""Asks a server for tool calls and JSON of a schema by `litellm`, and prints them as one JSON object.

It runs in litellm's own environment, without this project; variables have its input.
"""

import json
import os
import warnings
from typing import Any, Literal

warnings.simplefilter("ignore")
import litellm  # noqa: E402
from pydantic import BaseModel, ConfigDict, Field  # noqa: E402

MESSAGES = [{"role": "user", "content": os.environ["QUESTION"]}]


class Place(BaseModel):
    model_config = ConfigDict(extra="forbid")
    city: str = Field(max_length=20)
    continent: Literal["Africa", "Europe"]


TOOL = {"type": "function", "function": {"name": "place", "parameters": Place.model_json_schema()}}
ASKED: dict[str, Any] = {
    "model": "openai/default", "api_base": os.environ["BASE_URL"], "api_key": "any", "num_retries": 0, "timeout": 60,
    "messages": MESSAGES, "temperature": 0, "max_tokens": 300,
}  # fmt: skip
NAMED = {"type": "function", "function": {"name": "place"}}


def calls(choice: Any) -> list[list[str]]:
    """Returns the names and arguments of the whole answer's calls, and of the streamed answer's."""
    asked = {**ASKED, "tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False}
    whole = litellm.completion(**asked)
    built = litellm.stream_chunk_builder(list(litellm.completion(**asked, stream=True)), messages=MESSAGES)
    return [
        [
            text
            for call in answer.choices[0].message.tool_calls
            for text in (call.function.name, call.function.arguments)
        ]
        for answer in (whole, built)
    ]


litellm.suppress_debug_info = True
answer = litellm.completion(**ASKED, response_format=Place)
seen = {"required": calls("required"), "named": calls(NAMED), "schema": answer.choices[0].message.content}
print(json.dumps(seen))
