"""The fields of an adapter's JSON file, taken out one by one: each refusal names file, key and what was expected."""

from __future__ import annotations

import math
from collections.abc import Set
from pathlib import Path
from typing import NoReturn

from mistralrs.errors import FormatError
from mistralrs.files import read_json
from mistralrs.loading.cursor import shown


class JsonFields:
    """The JSON object in a file. A null counts as a missing key."""

    def __init__(self, path: Path, content: dict[str, object], *, hint: str) -> None:
        self.path = path
        self.content = content
        self._hint = hint

    @classmethod
    def read(cls, path: Path, *, hint: str) -> JsonFields:
        """The fields of a file. Raises ``LoadError`` if it is not a JSON object, or has a key twice."""
        return cls(path, read_json(path, hint=hint, unique=True), hint=hint)

    def refuse(self, key: str, reason: str, *, hint: str | None = None) -> NoReturn:
        """Raises ``FormatError`` about a key. ``reason`` completes "the key ..."."""
        raise FormatError(str(self.path), f"key {key}", reason, hint=hint or self._hint)

    def refuse_unknown(self, known: Set[str]) -> None:
        """Raises ``FormatError`` for the first key that is not ``known``."""
        for key in self.content:
            if key not in known:
                self.refuse(shown(key), f"is not known; expected some of {', '.join(sorted(known))}")

    def text(self, key: str) -> str | None:
        """A text that is not empty; None if the key is missing."""
        value = self.content.get(key)
        if value is not None and (not isinstance(value, str) or not value):
            self.refuse(key, f"is {shown(value)}, expected a text")
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        """True or false."""
        value = self.content.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.refuse(key, f"is {shown(value)}, expected true or false")
        return value

    def whole(self, key: str, *, least: int, most: int) -> int | None:
        """A whole number between ``least`` and ``most``, both included; None if the key is missing."""
        value = self.content.get(key)
        if value is None:
            return None
        if type(value) is not int or not least <= value <= most:
            self.refuse(key, f"is {shown(value)}, expected a whole number from {least} to {most}")
        return value

    def require_whole(self, key: str, *, least: int, most: int) -> int:
        """Like ``whole``, but a missing key is refused, too."""
        value = self.whole(key, least=least, most=most)
        if value is None:
            self.refuse(key, f"is missing, expected a whole number from {least} to {most}")
        return value

    def real(self, key: str, *, default: float) -> float:
        """A finite number."""
        value = self.content.get(key)
        if value is None:
            return default
        # the comparison is false for a number that is not one, and for whole numbers that no float can hold
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
            self.refuse(key, f"is {shown(value)}, expected a finite number")
        assert math.isfinite(value)
        return float(value)

    def texts(self, key: str) -> tuple[str, ...] | None:
        """A list of texts; None if the key is missing."""
        value = self.content.get(key)
        if value is None:
            return None
        if not isinstance(value, list):
            self.refuse(key, f"is {shown(value)}, expected a list of texts")
        for each in value:
            if not isinstance(each, str) or not each:
                self.refuse(key, f"has the member {shown(each)}, expected a text")
        return tuple(value)
