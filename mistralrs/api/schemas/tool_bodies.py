"""The fields of a chat's body that concern tools: functions that the model may ask the client to call."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from mistralrs.api.schemas.body import Body
from mistralrs.api.schemas.field_types import Flag, Int, Text, _error_words
from mistralrs.api.schemas.sentinels import MAX_INT

MAX_TOOLS = 128
MAX_TOOL_NAME = 128
"""Characters of a function's name, at most, as Anthropic allows; OpenAI allows 64."""
_NAME = re.compile(rf"[A-Za-z0-9_.-]{{1,{MAX_TOOL_NAME}}}")

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
"""Degrees of thinking, as OpenAI and Anthropic name them."""


def _checked_name(name: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise PydanticCustomError(
            "name", f"Input should be a name of 1 to {MAX_TOOL_NAME} letters, digits and the characters _ - ."
        )
    return name


FunctionName = Annotated[Text, AfterValidator(_checked_name)]


class FunctionBody(Body):
    """A function that the model may call."""

    name: FunctionName
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    """A JSON schema of the object that holds the arguments; null: no arguments."""
    strict: Flag | None = None
    """The arguments match the schema, whatever the model prefers."""


class ToolBody(Body):
    """A tool. Types other than ``function`` are refused."""

    type: Text
    function: FunctionBody | None = None


class NamedFunction(Body):
    """The name of one of the functions."""

    name: FunctionName


class NamedTool(Body):
    """One of the tools, by name."""

    type: Literal["function"]
    function: NamedFunction


class ToolSubset(Body):
    """Some of the tools, and whether one of them must be called."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MAX_TOOLS)]


class AllowedTools(Body):
    """A choice among some of the tools; the prompt shows all, so that its beginning stays in the prefix cache."""

    type: Literal["allowed_tools"]
    allowed_tools: ToolSubset


ToolChoice = Annotated[
    Literal["none", "auto", "required"] | NamedTool | AllowedTools,
    _error_words(
        'none, auto, required, {"type": "function", "function": {"name": ...}}, '
        'or {"type": "allowed_tools", "allowed_tools": {"mode": ..., "tools": [...]}}'
    ),
]
FunctionCall = Annotated[Literal["none", "auto"] | NamedFunction, _error_words('none, auto, or {"name": ...}')]


class ShownTools(Body):
    """The fields of tools and thinking that a chat template gets."""

    tools: Annotated[list[ToolBody], Field(max_length=MAX_TOOLS)] | None = None
    reasoning_effort: Effort | None = None
    """Given to the chat template; none also turns its thinking off."""


class ToolFields(ShownTools):
    """The fields of a chat that concern tools and thinking."""

    tool_choice: ToolChoice | None = None
    """null: auto."""
    parallel_tool_calls: Flag | None = None
    """false: at most one call in an answer."""
    thinking_token_budget: Annotated[Int, Field(ge=0, le=MAX_INT)] | None = None
    """Tokens that an answer may think, at most: the thought is then closed, and the answer goes on."""
    functions: Annotated[list[FunctionBody], Field(max_length=MAX_TOOLS)] | None = None
    """The older form of ``tools``, of which an answer calls at most one."""
    function_call: FunctionCall | None = None
    """The older form of ``tool_choice``."""
