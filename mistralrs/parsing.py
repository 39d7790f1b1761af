"""Parses text that may be nested deeper than a parser can recurse."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from mistralrs.process import garbage_collected_later

T = TypeVar("T")


def parse_nested(parse: Callable[..., T], text: str | bytes, **options: object) -> T:
    """Returns ``parse(text, **options)``, such as ``json.loads`` of a text.

    Raises ValueError where the parser reaches Python's limit of recursion, beside what it raises itself. No garbage is
    collected meanwhile: a finalizer that began just below the limit would fail, and keep what it should release.
    """
    with garbage_collected_later():
        try:
            return parse(text, **options)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
