"""The tools of a chat's body: those that the template shows, and those that the answer may or must call."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mistralrs.api.schemas.parameter_table import unknown_within
from mistralrs.api.schemas.tool_bodies import (
    AllowedTools,
    FunctionBody,
    NamedFunction,
    NamedTool,
    ShownTools,
    ToolFields,
)
from mistralrs.errors import RequestError

MAX_TOOLS_CHARACTERS = 512 << 10
"""Characters of JSON that describe the tools of one request, at most."""
NO_ARGUMENTS: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
"""The schema of a function without parameters."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that an answer may call."""

    name: str
    schema: Mapping[str, Any]
    """Of the object that holds its arguments."""
    strict: bool
    path: str
    """The schema's place in the body, such as ``tools[0].function.parameters``."""


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools of one request, at least one."""

    shown: tuple[Mapping[str, Any], ...]
    """As chat templates expect them."""
    callable: tuple[Tool, ...]
    """Those that the answer may call."""
    must_call: bool
    parallel: bool
    """Whether an answer may hold several calls."""
    legacy: bool
    """The body has ``functions``, and the answer is to have the form that belongs to it."""
    choice_field: str
    """The name of the field that chooses among them."""

    @property
    def shown_field(self) -> str:
        return "functions" if self.legacy else "tools"

    def texts(self) -> list[str]:
        """Returns the texts that the prompt shows."""
        return [json.dumps(each, ensure_ascii=False) for each in self.shown]

    @property
    def is_held(self) -> bool:
        """Returns whether the answer is held to a form; otherwise the model writes as it likes."""
        is_subset = len(self.callable) < len(self.shown)
        return self.must_call or not self.parallel or is_subset or any(tool.strict for tool in self.callable)


def tool_use(body: ToolFields) -> ToolUse | None:
    """Returns the tools of a body; None if there are none, or none may be called.

    Raises RequestError for tools of other types, for two of one name, and for a choice of one that is not there.
    """
    if body.tools and body.functions:
        raise RequestError("tools and functions are the same parameter; send one of them", param="functions")
    legacy = bool(body.functions)
    field = "functions" if legacy else "tools"
    functions = list(body.functions or ()) if legacy else _functions(body)
    choice_field, choice = _choice(body, legacy=legacy)
    if not functions:
        if choice not in ("none", "auto"):
            raise RequestError(f"{choice_field} needs {field}", param=choice_field)
        return None
    tools = _tools(functions, field)
    if choice == "none":
        return None
    names, must_call = _chosen(choice, [tool.name for tool in tools], choice_field)
    shown = tuple({"type": "function", "function": _shown(function)} for function in functions)
    use = ToolUse(
        shown=shown,
        callable=tuple(tool for tool in tools if tool.name in names),
        must_call=must_call,
        parallel=not legacy and body.parallel_tool_calls is not False and not isinstance(choice, NamedTool),
        legacy=legacy,
        choice_field=choice_field,
    )
    if sum(map(len, use.texts())) > MAX_TOOLS_CHARACTERS:
        raise RequestError(
            f"{field} has more than {MAX_TOOLS_CHARACTERS} characters", hint="send fewer tools", param=field
        )
    return use


def shown_tools(body: ShownTools) -> ToolUse | None:
    """Returns the tools of a body that only shows them. Raises RequestError as ``tool_use`` does."""
    return tool_use(ToolFields(tools=body.tools))


def unknown_tool_fields(body: ShownTools) -> tuple[str, ...]:
    """Returns the paths of members of tools that are not read; those of functions reach the chat template."""
    return tuple(
        name for place, tool in enumerate(body.tools or ()) for name in unknown_within(f"tools[{place}]", tool)
    )


def _functions(body: ToolFields) -> list[FunctionBody]:
    found = []
    for place, tool in enumerate(body.tools or ()):
        if tool.type != "function":
            raise RequestError(
                f"tools[{place}] is of type {tool.type[:64]!r}; only functions can be called here",
                hint='a function is {"type": "function", "function": {"name": ..., "parameters": ...}}',
                code="unsupported_tool",
                param=f"tools[{place}].type",
            )
        if tool.function is None:
            raise RequestError(f"tools[{place}].function is required", param=f"tools[{place}].function")
        found.append(tool.function)
    return found


def _tools(functions: Sequence[FunctionBody], field: str) -> list[Tool]:
    tools: list[Tool] = []
    for place, function in enumerate(functions):
        path = f"{field}[{place}]" if field == "functions" else f"{field}[{place}].function"
        if any(tool.name == function.name for tool in tools):
            raise RequestError(f"{path}.name is {function.name}, as is another one's", param=f"{path}.name")
        schema = NO_ARGUMENTS if not function.parameters else function.parameters
        if schema.get("type", "object") != "object":
            raise RequestError(f"{path}.parameters is no schema of an object", param=f"{path}.parameters")
        tools.append(Tool(function.name, {"type": "object", **schema}, bool(function.strict), f"{path}.parameters"))
    return tools


def _shown(function: FunctionBody) -> dict[str, Any]:
    """Returns a function as templates expect it: with a description, and parameters that have properties, whether
    given or not."""
    parameters = dict(function.parameters or {})
    if "$ref" not in parameters:
        parameters.setdefault("type", "object")
        parameters.setdefault("properties", {})
    return {
        **(function.model_extra or {}),
        "name": function.name,
        "description": function.description or "",
        "parameters": parameters,
    }


Choice = Literal["none", "auto", "required"] | NamedTool | NamedFunction | AllowedTools


def _choice(body: ToolFields, *, legacy: bool) -> tuple[str, Choice]:
    """Returns the choice and the name of its field. Raises RequestError for the field of the other form."""
    field, other = ("function_call", "tool_choice") if legacy else ("tool_choice", "function_call")
    if getattr(body, other) not in (None, "none", "auto"):
        raise RequestError(f"{other} needs {'tools' if legacy else 'functions'}", param=other)
    if legacy and body.parallel_tool_calls is not None:
        raise RequestError("parallel_tool_calls needs tools", param="parallel_tool_calls")
    return field, getattr(body, field) or "auto"


def _chosen(choice: Choice, names: Sequence[str], field: str) -> tuple[set[str], bool]:
    """Returns the names of the functions that may be called, and whether one must be."""
    match choice:
        case AllowedTools():
            wanted = [(tool.function.name, f"{field}.allowed_tools.tools") for tool in choice.allowed_tools.tools]
            must_call = choice.allowed_tools.mode == "required"
        case NamedTool():
            wanted, must_call = [(choice.function.name, f"{field}.function.name")], True
        case NamedFunction():
            wanted, must_call = [(choice.name, f"{field}.name")], True
        case _:
            return set(names), choice == "required"
    for name, path in wanted:
        if name not in names:
            raise RequestError(
                f"{path} is {name}, and there is no function of this name",
                hint=f"there are {', '.join(names[:16])}",
                param=path,
            )
    return {name for name, _ in wanted}, must_call
