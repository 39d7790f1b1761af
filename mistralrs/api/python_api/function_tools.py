"""Tools that are made from Python functions: their definitions for a model, and the calls that it makes of them.

The schema of the arguments comes from the signature's types, by pydantic; texts come from the docstring.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticUserError
from pydantic_core import PydanticSerializationError, to_json

from mistralrs.api.python_api.closed_json_schema import ClosedJsonSchema
from mistralrs.errors import RequestError

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ARGUMENTS = re.compile(r"\s*(args|arguments|parameters):\s*", re.IGNORECASE)
_SECTION = re.compile(r"\s*[A-Z]\w*( \w+)?:\s*")
_ARGUMENT = re.compile(r"\s*\*{0,2}(?P<name>\w+)\s*(\([^)]*\))?:\s*(?P<text>.*)")


def tool_from(function: Callable[..., object]) -> dict[str, Any]:
    """Returns the definition of a function as OpenAI's clients send it, an entry of ``tools``.

    ``parameters`` is the JSON schema of its arguments: all types that pydantic knows count, an argument without a
    default is required. The description is the first paragraph of the docstring, those of arguments are in its section
    ``Args:``. Raises TypeError for a function that cannot be a tool: an argument without a type, or one that has no
    name of its own.
    """
    arguments = _arguments(function)
    summary, _ = _described(function)
    definition: dict[str, Any] = {"name": tool_name(function)}
    if summary:
        definition["description"] = summary
    try:
        schema = arguments.model_json_schema(schema_generator=ClosedJsonSchema)
    except PydanticUserError as error:
        raise _no_schema(tool_name(function), error) from error
    schema.pop("title", None)
    for each in schema.get("properties", {}).values():
        each.pop("title", None)
    definition["parameters"] = {**schema, "properties": schema.get("properties", {})}
    return {"type": "function", "function": definition}


def tool_name(function: Callable[..., object]) -> str:
    """Returns the name by which a model calls a function. Raises TypeError for one that has none."""
    name = getattr(function, "__name__", "")
    if not _NAME.fullmatch(name):
        raise TypeError(f"a tool needs a name of letters, digits, _ and -, not {name!r}: define it with def")
    return str(name)


def run_tool_call(call: Mapping[str, Any] | BaseModel, functions: Sequence[Callable[..., object]]) -> dict[str, Any]:
    """Calls the function that a model's call names, and returns the message of the role ``tool`` with its result.

    ``call``: an entry of an answer's ``tool_calls``. The arguments are checked and converted to the types of the
    signature, so that an argument of a model class is one. A text is sent as it is, any other result as JSON. Raises
    ``RequestError`` for a function that is not there and for arguments that it does not take, and whatever the function
    raises. A coroutine function cannot be called: TypeError.
    """
    said = call.model_dump() if isinstance(call, BaseModel) else call
    wanted = said["function"]
    by_name = {tool_name(each): each for each in functions}
    function = by_name.get(wanted["name"])
    if function is None:
        raise RequestError(
            f"the model calls {wanted['name']!r}, which is no tool of these", hint=f"there are: {', '.join(by_name)}"
        )
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"{wanted['name']} is a coroutine function: wrap it in one that runs it")
    result = function(**_checked_arguments(function, wanted.get("arguments") or "{}"))
    return {"role": "tool", "tool_call_id": said.get("id"), "content": _result_text(result, wanted["name"])}


def _checked_arguments(function: Callable[..., object], arguments: str | Mapping[str, Any]) -> dict[str, Any]:
    kind = _arguments(function)
    try:
        # templates that have no JSON text of their own give the arguments as an object
        given = kind.model_validate_json(arguments if isinstance(arguments, str) else to_json(dict(arguments)))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the arguments"
        raise RequestError(
            f"the model's call of {tool_name(function)}: {place}: {first['msg']}",
            hint="send this error back as the tool's message, and the model may mend it",
        ) from error
    by_argument = {(info.alias or field): field for field, info in kind.model_fields.items()}
    return {name: getattr(given, field) for name, field in by_argument.items() if field in given.model_fields_set}


def _result_text(result: object, name: str) -> str:
    if isinstance(result, str):
        return result
    try:
        return to_json(result).decode()
    except PydanticSerializationError as error:
        raise TypeError(f"the result of {name} cannot be written as JSON: {error}") from error


def _arguments(function: Callable[..., object]) -> type[BaseModel]:
    """Returns a model class with a field for each argument."""
    name = tool_name(function)
    hints = get_type_hints(function, include_extras=True)
    _, texts = _described(function)
    fields: dict[str, Any] = {}
    for place, (argument, parameter) in enumerate(inspect.signature(function).parameters.items()):
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"{name}: a model gives arguments by name, and cannot give {parameter}")
        if argument not in hints:
            raise TypeError(f"{name}: the argument {argument} needs a type, such as {argument}: str")
        default = ... if parameter.default is parameter.empty else parameter.default
        # fields have other names than arguments, which may be any: an alias is free of pydantic's rules
        info = Field(default, alias=argument, description=texts.get(argument))
        fields[f"argument_{place}"] = (
            (Annotated[hints[argument], info], ...)
            if default is ...
            else (
                hints[argument],
                info,
            )
        )
    try:
        return create_model(name, __config__=ConfigDict(extra="forbid"), **fields)
    except PydanticUserError as error:
        raise _no_schema(name, error) from error


def _no_schema(name: str, error: PydanticUserError) -> TypeError:
    return TypeError(f"{name}: an argument has a type that has no JSON schema: {error.message}")


def _described(function: Callable[..., object]) -> tuple[str, dict[str, str]]:
    """Returns the first paragraph of a docstring in one line, and the texts of its arguments."""
    lines = (inspect.getdoc(function) or "").splitlines()
    end = next(
        (place for place, line in enumerate(lines) if not line.strip() or _ARGUMENTS.fullmatch(line)), len(lines)
    )
    summary = " ".join(line.strip() for line in lines[:end])
    start = next((place for place, line in enumerate(lines) if _ARGUMENTS.fullmatch(line)), len(lines))
    return summary, _argument_texts(lines[start + 1 :])


def _argument_texts(lines: Sequence[str]) -> dict[str, str]:
    """Returns the texts of the arguments in a section's lines; deeper lines go on with the one before."""
    texts: dict[str, str] = {}
    current, depth = "", None
    for line in lines:
        if not line.strip():
            continue
        indent = len(line) - len(line.lstrip())
        depth = indent if depth is None else depth
        if indent < depth or (indent == 0 and _SECTION.fullmatch(line)):
            break
        found = _ARGUMENT.fullmatch(line) if indent == depth else None
        if found is not None:
            current = found["name"]
            texts[current] = found["text"].strip()
        elif current:
            texts[current] = f"{texts[current]} {line.strip()}".strip()
    return texts
