"""Asks a server for values by `instructor`, and prints them as one JSON object.

It runs in the package's own environment, without this project; variables have its input.
"""

import json
import os
from typing import Any, Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel, ConfigDict, Field

MESSAGES: Any = [{"role": "user", "content": os.environ["QUESTION"]}]
client = OpenAI(base_url=os.environ["BASE_URL"], api_key="any", max_retries=0, timeout=60)
Seen = dict[str, Any]


class Place(BaseModel):
    """Where something is."""

    model_config = ConfigDict(extra="forbid")  # else the model may add what it likes, for as long as it likes
    city: str = Field(max_length=20)
    continent: Literal["Africa", "Europe"]


ASKED: Seen = {
    "model": "default", "messages": MESSAGES, "response_model": Place, "temperature": 0, "max_tokens": 300,
    "max_retries": 0,
}  # fmt: skip


def value(mode: instructor.Mode) -> Seen:
    return instructor.from_openai(client, mode=mode).chat.completions.create(**ASKED).model_dump()


def partial(mode: instructor.Mode) -> Seen:
    asked = {name: value for name, value in ASKED.items() if name != "max_retries"}
    *_, last = instructor.from_openai(client, mode=mode).chat.completions.create_partial(**asked)
    return last.model_dump()


MODES = {"tools": instructor.Mode.TOOLS, "strict": instructor.Mode.TOOLS_STRICT, "schema": instructor.Mode.JSON_SCHEMA}
seen: Seen = {name: [value(mode), partial(mode)] for name, mode in MODES.items()}
print(json.dumps(seen))
