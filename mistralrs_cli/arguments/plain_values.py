"""Reads plain values of options without pydantic: importing it takes longer than parsing a command line."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

_NUMBER = re.compile(r"-?\d{1,15}(\.\d{1,15})?", re.ASCII)


def read_plainly(command: Any) -> Any:
    """Returns a Typer command whose options take plain values as they are: text, and numbers within their range.

    Typer makes a validator of pydantic for each option, typed or not. It still reads all other values, and reports
    those that are wrong.
    """
    get_params = command.get_params

    def params_of(context: Any) -> Any:
        params = get_params(context)
        for param in params:
            _spare(param)
        return params

    command.get_params = params_of
    return command


def _spare(param: Any) -> None:
    descriptor = getattr(param, "type_descriptor", None)
    if descriptor is None or param.required or param.nargs != 1 or isinstance(param.process_value, functools.partial):
        return
    param.process_value = functools.partial(_process, param, descriptor, param.process_value)


def _process(param: Any, descriptor: Any, validate: Callable[[Any, Any], Any], context: Any, value: Any) -> Any:
    found = plain_value(value, descriptor.annotation, descriptor.parameter_info, many=param.multiple)
    if found is None:
        return validate(context, value)
    return found[0] if param.callback is None else param.callback(context, param, found[0])


def plain_value(value: Any, kind: object, info: Any, *, many: bool) -> tuple[Any] | None:
    """Returns the value as validation gives it, in a tuple; None: only validation can tell."""
    if value is None:
        return ((),) if many else (None,)
    if many:
        return ([*value],) if kind == list[str] else None
    if kind is str and info.parser is None and isinstance(value, str):
        return (value,)
    if (
        kind not in (int, float)
        or info.parser is not None
        or not isinstance(value, str)
        or not _NUMBER.fullmatch(value)
    ):
        return None
    if kind is int and "." in value:
        return None
    number = kind(value)
    in_range = (info.min is None or number >= info.min) and (info.max is None or number <= info.max)
    return (number,) if in_range else None
