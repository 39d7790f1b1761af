"""Makes the prompt of a line: a template whose names in braces stand for the line or for fields of its object."""

from __future__ import annotations

import json
import string
from dataclasses import dataclass

from mistralrs.errors import RequestError, UsageError
from mistralrs.files import parse_json

LINE = "line"
"""The name that stands for the line itself."""


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """Literal texts and names, in turn; ``texts`` has one more than ``names``."""

    texts: tuple[str, ...]
    names: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> PromptTemplate:
        """Returns the template that a text describes; doubled braces stand for single ones. Raises ``UsageError``."""
        texts, names = [""], []
        try:
            for literal, name, specification, conversion in string.Formatter().parse(text):
                texts[-1] += literal
                if name is None:
                    continue
                if specification or conversion or not _is_name(name):
                    raise ValueError(f"{{{name}}} is no name of a field")
                names.append(name)
                texts.append("")
        except ValueError as error:
            hint = "write {line}, or {NAME} for a field of a JSON line; {{ and }} stand for braces"
            raise UsageError(f"--template: {error}", hint=hint) from None
        if not names:
            hint = "{line} stands for the line, {NAME} for a field of a JSON line"
            raise UsageError("--template has no place for the line", hint=hint)
        return cls(tuple(texts), tuple(names))

    def prompt(self, line: str) -> str:
        """Returns the prompt of a line. Raises ``RequestError`` for a line without the fields, and for an empty
        prompt.
        """
        fields = self._fields(line)
        parts = [self.texts[0]]
        for name, text in zip(self.names, self.texts[1:], strict=True):
            parts += [fields[name], text]
        prompt = "".join(parts)
        if not prompt.strip():
            raise RequestError("the prompt is empty", hint="leave the line out")
        return prompt

    def __str__(self) -> str:
        escaped = [text.replace("{", "{{").replace("}", "}}") for text in self.texts]
        return escaped[0] + "".join(f"{{{name}}}{text}" for name, text in zip(self.names, escaped[1:], strict=True))

    def _fields(self, line: str) -> dict[str, str]:
        if set(self.names) == {LINE}:
            return {LINE: line}
        try:
            found = parse_json(line)
        except ValueError as error:
            raise RequestError(f"the line {error}", hint="--template names fields, which a JSON object has") from None
        missing = [name for name in self.names if name != LINE and name not in found]
        if missing:
            has = ", ".join(map(repr, found)) or "none"
            raise RequestError(f"the line has no field {missing[0]!r}", hint=f"it has {has}")
        # the line itself, unless it has a field of this name
        return {LINE: line} | {name: _text(found[name]) for name in self.names if name in found}


def _is_name(text: str) -> bool:
    return bool(text) and not text.isdecimal() and not set(text) & set("{}[].!:")


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
