"""Tools from Python functions: the schema of every kind of argument, texts from docstrings, and calls."""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Callable
from typing import Any, Literal, Optional

import jsonschema
import pytest
from pydantic import BaseModel

from mistralrs import RequestError, run_tool_call, tool_from


class Unit(enum.Enum):
    CELSIUS = "celsius"
    KELVIN = "kelvin"


class Place(BaseModel):
    city: str
    country: str = "France"


@dataclasses.dataclass
class Day:
    month: int
    day: int


def weather(
    place: Place,
    day: Day,
    unit: Unit = Unit.CELSIUS,
    detail: Literal["short", "long"] = "short",
    days: int = 1,
    factor: float | None = None,
    tags: list[str] | None = None,
    notes: Optional[dict[str, int]] = None,  # noqa: UP045
    *,
    alert: bool = False,
) -> str:
    """Tells the weather of a place,
    from today on.

    This paragraph is for people.

    Args:
        place: The city
            and its country.
        day (Day): The first day: a date.
        unit: The unit of temperatures.

    Returns:
        days: A sentence.
    """
    assert isinstance(place, Place)
    return f"{place.city}, {place.country}: {day} {unit} {detail} {days} {factor} {tags} {notes} {alert}"


def add(a: int, b: int) -> int:
    return a + b


def call(name: str, arguments: object, id: str | None = "call_1") -> dict[str, Any]:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {"id": id, "type": "function", "function": {"name": name, "arguments": text}}


def test_a_definition() -> None:
    tool = tool_from(weather)
    assert tool["type"] == "function"
    function = tool["function"]
    assert function["name"] == "weather"
    assert function["description"] == "Tells the weather of a place, from today on."
    schema = function["parameters"]
    jsonschema.Draft202012Validator.check_schema(schema)
    assert list(schema["properties"]) == [
        *("place", "day", "unit", "detail", "days", "factor", "tags", "notes", "alert"),
    ]
    assert schema["required"] == ["place", "day"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["place"]["description"] == "The city and its country."
    assert schema["properties"]["day"]["description"] == "The first day: a date."
    assert "description" not in schema["properties"]["days"]
    good = {"place": {"city": "Paris"}, "day": {"month": 1, "day": 2}, "unit": "kelvin", "factor": 0.5, "tags": ["x"]}
    jsonschema.validate(good, schema)
    for name, wrong in {"unit": "yard", "detail": "medium", "days": "x", "tags": [1], "notes": {"a": "b"}}.items():
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(good | {name: wrong}, schema)


def test_the_plainest_definition() -> None:
    assert tool_from(add) == {
        "type": "function",
        "function": {
            "name": "add",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
                "required": ["a", "b"],
                "additionalProperties": False,
            },
        },
    }


def test_arguments_that_pydantic_has_names_for() -> None:
    def search(schema: str, model_config: str = "x", _hidden: int = 0) -> list[str]:
        """Searches."""
        return [schema, model_config, str(_hidden)]

    assert list(tool_from(search)["function"]["parameters"]["properties"]) == ["schema", "model_config", "_hidden"]
    answer = run_tool_call(call("search", {"schema": "a", "_hidden": 3}), [search])
    assert json.loads(answer["content"]) == ["a", "x", "3"]


def test_a_function_without_arguments() -> None:
    def now() -> str:
        """Tells the time."""
        return "noon"

    parameters = tool_from(now)["function"]["parameters"]
    assert parameters == {"type": "object", "properties": {}, "additionalProperties": False}
    assert run_tool_call(call("now", ""), [now])["content"] == "noon"


def test_a_method_is_a_tool() -> None:
    class Shop:
        def price(self, item: str) -> float:
            """Tells a price."""
            return len(item) / 2

    assert tool_from(Shop().price)["function"]["parameters"]["required"] == ["item"]
    assert run_tool_call(call("price", {"item": "tea"}), [Shop().price])["content"] == "1.5"


def test_what_cannot_be_a_tool() -> None:
    def untyped(a, b: int) -> int:  # type: ignore[no-untyped-def]
        return int(a) + b

    def many(*numbers: int) -> int:
        return sum(numbers)

    def strange(thing: object, stream: BaseExceptionGroup[Exception]) -> None: ...

    with pytest.raises(TypeError, match="untyped: the argument a needs a type"):
        tool_from(untyped)
    with pytest.raises(TypeError, match=r"many: a model gives arguments by name, and cannot give \*numbers"):
        tool_from(many)
    with pytest.raises(TypeError, match="a tool needs a name"):
        tool_from(lambda x: x)

    def caller(call: Callable[[int], int]) -> int:
        return call(1)

    for function in (strange, caller):
        with pytest.raises(TypeError, match=f"{function.__name__}: an argument has a type that has no JSON schema"):
            tool_from(function)


def test_a_call_converts_its_arguments() -> None:
    arguments = {"place": {"city": "Paris"}, "day": {"month": 1, "day": 2}, "unit": "kelvin", "alert": True}
    answer = run_tool_call(call("weather", arguments), [add, weather])
    assert answer == {
        "role": "tool",
        "tool_call_id": "call_1",
        "content": "Paris, France: Day(month=1, day=2) Unit.KELVIN short 1 None None None True",
    }
    assert run_tool_call(call("add", {"a": 1, "b": 2}), [add, weather])["content"] == "3"


def test_a_call_as_an_answer_has_it() -> None:
    class Function(BaseModel):
        name: str
        arguments: str

    class Call(BaseModel):
        id: str
        function: Function

    made = Call(id="c", function=Function(name="add", arguments='{"a": 1, "b": 2}'))
    assert run_tool_call(made, [add]) == {"role": "tool", "tool_call_id": "c", "content": "3"}


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (call("subtract", {}), "the model calls 'subtract', which is no tool of these"),
        (call("add", {"a": 1}), "the model's call of add: b: Field required"),
        (call("add", {"a": 1, "b": "x"}), "the model's call of add: b: Input should be a valid integer"),
        (call("add", {"a": 1, "b": 2, "c": 3}), "the model's call of add: c: Extra inputs are not permitted"),
        (call("add", '{"a": 1'), "the model's call of add: the arguments: Invalid JSON"),
    ],
)
def test_a_wrong_call_is_named(made: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        run_tool_call(made, [add])


def test_what_a_function_raises_is_raised() -> None:
    def divide(a: int, b: int) -> float:
        """Divides."""
        return a / b

    with pytest.raises(ZeroDivisionError):
        run_tool_call(call("divide", {"a": 1, "b": 0}), [divide])

    async def later() -> None:
        """Waits."""

    with pytest.raises(TypeError, match="later is a coroutine function"):
        run_tool_call(call("later", {}), [later])
