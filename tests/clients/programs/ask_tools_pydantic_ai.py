"""Asks a server by agents of `pydantic-ai`, and prints the results as one JSON object.

It runs in the package's own environment, without this project; variables have its input.
"""

import asyncio
import json
import os
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

QUESTION = os.environ["QUESTION"]
provider = OpenAIProvider(base_url=os.environ["BASE_URL"], api_key="any")
model = OpenAIChatModel("default", provider=provider, settings={"temperature": 0, "max_tokens": 300, "timeout": 60})


class Place(BaseModel):
    """Where something is."""

    model_config = ConfigDict(extra="forbid")  # else the model may add what it likes, for as long as it likes
    city: str = Field(max_length=20)
    continent: Literal["Africa", "Europe"]


def weather(city: Literal["Paris", "Oslo"]) -> str:
    """Tells the weather of a city."""
    return f"snow in {city}"


async def streamed(agent: Agent[None, Any], question: str) -> Any:
    async with agent.run_stream(question) as result:
        return await result.get_output()


async def main() -> dict[str, Any]:
    text = Agent(model)
    by_tool = Agent(model, output_type=ToolOutput(Place))
    by_schema = Agent(model, output_type=NativeOutput(Place))
    called = Agent(model, output_type=weather)
    return {
        "text": [(await text.run(QUESTION)).output, await streamed(text, QUESTION)],
        "tool": [(await by_tool.run(QUESTION)).output.model_dump(), (await streamed(by_tool, QUESTION)).model_dump()],
        "schema": [
            (await by_schema.run(QUESTION)).output.model_dump(),
            (await streamed(by_schema, QUESTION)).model_dump(),
        ],
        "function": (await called.run("What is the weather in Oslo?")).output,
    }


print(json.dumps(asyncio.run(main())))
