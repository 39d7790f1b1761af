"""How models write the arguments of a call where these are no plain JSON."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

KEY = "$key"
_BARE = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Notation:
    """Values are as in JSON, on one line, but for these differences."""

    argument: str
    """The text before an argument's value, with ``$key``; one in quotes is a JSON string, another one a bare name."""
    member: str = '"$key": '
    """The same for a member of an object inside of an argument."""
    opening: str = ""
    closing: str = ""
    """Texts around all arguments."""
    separator: str = ", "
    text_mark: str = ""
    """Stands around texts, which are then written as they are; empty: texts are JSON strings."""
    ends: tuple[str, ...] = ()
    """Texts that end the call wherever they stand, so that no argument can have one."""

    def spelt_arguments(self, arguments: str) -> str:
        """The arguments, which are a JSON object."""
        members = json.loads(arguments).items()
        texts = [self.spelt_key(key, self.argument) + self.spelt(value) for key, value in members]
        return self.opening + self.separator.join(texts) + self.closing

    def spelt(self, value: object) -> str:
        """A value inside of an argument."""
        if isinstance(value, str) and self.text_mark:
            return self.text_mark + value + self.text_mark
        if isinstance(value, dict):
            members = [self.spelt_key(key, self.member) + self.spelt(each) for key, each in value.items()]
            return "{" + self.separator.join(members) + "}"
        if isinstance(value, list):
            return f"[{self.separator.join(map(self.spelt, value))}]"
        return json.dumps(value, ensure_ascii=False)

    def spelt_key(self, key: str, form: str) -> str:
        """A name with the text before its value; ``form``: ``argument`` or ``member``."""
        return form.replace(KEY, json.dumps(key, ensure_ascii=False)[1:-1] if form.startswith('"') else key)

    def has_key(self, key: str, form: str) -> bool:
        """Whether a name can be written in this form."""
        if form.startswith('"'):
            return not any(end in key for end in self.ends)
        return _BARE.fullmatch(key) is not None

    def has_text(self, text: str) -> bool:
        """Whether a text can be written."""
        marks = (self.text_mark, "\x01", "\x02") if self.text_mark else ()
        return not any(each in text for each in (*marks, *self.ends))
