"""Errors for Python callers: options of the command line that their texts name become arguments and calls."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from mistralrs.api.options.declarations import DECLARED
from mistralrs.api.selectors.model_selector import SELECTORS
from mistralrs.api.selectors.which_fields import FIELD_NAMES, PythonErrorFormatter, class_name
from mistralrs.errors import MistralrsError

_WITHOUT_ARGUMENT = {
    ", or pass --truncate-sequence to drop its beginning": "",
    "with an ordering file (-o), or with --names": "with an ordering file (order)",
    ", or add --force to replace it": "",
}
"""Parts of hints about options that a runner does not have, and the texts in their places."""
_COMMAND = re.compile(
    r"(?:this command works: |it runs with: )?mistralrs -i (?P<row>[a-z][a-z0-9-]*)"
    r"(?P<local> -m '')?(?: (?P<short>-[mf]))? (?P<value>'[^']*'|[^\s;,]+)"
)
_FLAG = re.compile(r"(?<![\w-])(?P<flag>--[a-z][a-z-]*[a-z])(?![\w-])(?P<space> (?=FILE\b|TYPE\b|none\b|\d))?")
_TWICE = re.compile(r"\b(\w+) \(\1\)")
_FORMATTER = PythonErrorFormatter()


def _arguments() -> Mapping[str, str]:
    names = {declared.flags[0]: _FORMATTER.name(field) for field, declared in DECLARED.items()}
    for field, declared in DECLARED.items():
        if declared.has_negation:
            names[declared.flags[-1]] = f"{_FORMATTER.name(field)}=False"
    return names | {f"--{field.replace('_', '-')}": field for field in FIELD_NAMES}


_ARGUMENTS = _arguments()


def in_python(text: str) -> str:
    """Returns a text of an error with arguments and calls in the place of options and commands."""
    for part, other in _WITHOUT_ARGUMENT.items():
        text = text.replace(part, other)
    text = _COMMAND.sub(_call, text)
    return _TWICE.sub(r"\1", _FLAG.sub(_argument, text))


@contextmanager
def python_errors() -> Iterator[None]:
    """Rewrites the errors that leave the block."""
    try:
        yield
    except MistralrsError as error:
        error.message = in_python(error.message)
        error.args = (error.message,)
        if error.hint is not None:
            error.hint = in_python(error.hint)
        raise


def _call(match: re.Match[str]) -> str:
    row, value = SELECTORS.get(match["row"]), match["value"].strip("'")
    if row is None:
        return match[0]
    field = {"-f": "quantized_filename", "-m": "model_id"}.get(match["short"] or "", "source")
    given = {"quantized_model_id": ""} if match["local"] else {}
    call = ", ".join(f"{name}={text!r}" for name, text in {**given, field: value}.items())
    return f"use Which.{class_name(row)}({call})"


def _argument(match: re.Match[str]) -> str:
    name = _ARGUMENTS.get(match["flag"])
    if name is None:
        return match[0]
    return name + ("=" if match["space"] else "")
