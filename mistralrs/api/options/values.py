"""Checks and reads single values: numbers in their range, sizes in bytes, texts of the environment.

Raises ``UsageError`` with the value as the user wrote it.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from mistralrs.api.options.option import Option
from mistralrs.errors import UsageError

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = re.compile(r"([0-9]{1,15}) ?([KMGT]?)(?:i?B)?", re.IGNORECASE)
_SWITCH = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


def without_none(hint: Any) -> Any:
    """Returns the type of a value that was given: ``int`` for ``int | None``."""
    if get_origin(hint) in (Union, UnionType):
        [hint] = [each for each in get_args(hint) if each is not type(None)]
    return hint


def check_value(option: Option, hint: Any, value: Any, *, written: str) -> Any:
    """Returns ``value`` if it is in the option's range; a size becomes bytes. ``hint``: its type; ``written``: the name
    of the option as the user wrote it.

    Raises ``UsageError``.
    """
    if option.is_size and isinstance(value, str):
        return byte_count(written, value)
    if get_origin(hint) is Literal and value not in get_args(hint):
        raise UsageError(f"{written} {value}: no such choice", hint=f"choose one of: {', '.join(get_args(hint))}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        least = -math.inf if option.least is None else option.least
        most = math.inf if option.most is None else option.most
        check_range(written, value, least, most, hint=option.range_hint)
        if value == option.excluded:
            raise UsageError(f"{written} {value} is out of range", hint=option.range_hint)
    return value


def parse_text(option: Option, hint: Any, text: str, *, written: str) -> Any:
    """Returns the value that a text of the environment means; ``hint`` is its type. Raises ``UsageError``."""
    if hint is bool:
        if text.strip().lower() not in _SWITCH:
            raise UsageError(f"{written}={text}: neither on nor off", hint="write 1 or 0")
        return _SWITCH[text.strip().lower()]
    if get_origin(hint) is tuple:
        return (text,) if option.separator is None else tuple(each.strip() for each in text.split(option.separator))
    if hint is Path:
        return Path(text)
    if option.is_size or hint not in (int, float):
        return text
    try:
        return hint(text)
    except ValueError as error:
        kind = "whole number" if hint is int else "number"
        raise UsageError(f"{written}={text[:32]}: not a {kind}", hint=f"write a {kind}, or unset it") from error


def check_range(name: str, value: float | None, least: float, most: float, *, hint: str | None = None) -> None:
    """Raises ``UsageError`` for a value out of range. None is in every range; a number that is not finite is in none.
    ``hint``: None is the range."""
    if value is None or (least <= value <= most and (isinstance(value, int) or math.isfinite(value))):
        return
    if math.isinf(most):
        allowed = "a finite number" if math.isinf(least) else f"at least {least:g}"
    else:
        allowed = f"from {least} to {most}"
    raise UsageError(f"{name} {shortened(value)} is out of range", hint=hint or f"it must be {allowed}")


def shortened(value: float) -> str:
    """Returns a number as text for a message; of one with thousands of digits only the first of them."""
    digits = str(value)
    return digits if len(digits) <= 32 else f"{digits[:24]}..."


def byte_count(name: str, text: str) -> int:
    """Returns the bytes of a size such as 512M or 4GiB: K, M, G and T are powers of 1024. At least one."""
    match = _SIZE.fullmatch(text.strip())
    size = int(match[1]) * _UNITS[match[2].upper()] if match else 0
    if size < 1:
        raise UsageError(f"{name} {text}: not a size", hint="write bytes, or a number with K, M, G or T, such as 512M")
    return size
