"""The model source that the options after a subcommand name; ``api.selectors.model_choice`` resolves it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import fields

from mistralrs.api.default_model import find_default_model
from mistralrs.api.load_options import ModelSource
from mistralrs.api.options.model_options import AutoOptions
from mistralrs.api.selectors import model_choice
from mistralrs.api.selectors.model_choice import ModelChoice
from mistralrs.errors import UsageError
from mistralrs_cli.arguments.command_line import Selection

_SHORT = {
    "source": "",
    "model_id": "-m",
    "filename": "-f",
    "quantized_model_id": "-m",
    "quantized_filename": "-f",
    "max_draft": "--draft",
    "adapters_model_id": "-a",
    "xlora_model_id": "-x",
    "order": "-o",
}
"""The spelling of fields whose names are not those of their options."""
_BEFORE_THE_ROW = ("isq",)


class CommandLineErrorFormatter:
    """Spells fields as options and selectors as subcommands."""

    def __init__(self, written: Mapping[str, str] | None = None) -> None:
        """``written``: the spelling of fields that were not given as options."""
        self._written = written or {}

    def name(self, field: str) -> str:
        """Returns the option."""
        return self._written.get(field) or _flag(field)

    def given(self, field: str, value: object) -> str:
        """Returns the option with its value."""
        return _with_value(self.name(field), value)

    def call(self, row: str, **fields: object) -> str:
        """Returns a command that chats."""
        before = [_with_value(_flag(field), value) for field, value in fields.items() if field in _BEFORE_THE_ROW]
        after = [_with_value(_flag(field), value) for field, value in fields.items() if field not in _BEFORE_THE_ROW]
        return " ".join(("mistralrs", *before, "-i", row, *after))


def _flag(field: str) -> str:
    return _SHORT.get(field, f"--{field.replace('_', '-')}")


def _with_value(name: str, value: object) -> str:
    return " ".join(filter(None, (name, "" if value is True else shlex.quote(str(value)))))


FORMATTER = CommandLineErrorFormatter()


def choice_of(selection: Selection) -> ModelChoice:
    """Returns the selector and the fields given after it. Raises ``UsageError`` where two of them name the model."""
    options = selection.options
    given = {each.name: getattr(part, each.name) for part in (options, selection.adapter) for each in fields(part)}
    if isinstance(options, AutoOptions):  # the two names of the same option
        word = given.pop("model_id")
        if word and options.source:
            raise UsageError(f"{options.source} and -m {word} both name the model", hint="give one of them")
        given["source"] = options.source or word
    return ModelChoice(selector=selection.selector, **given)


def find_source(selection: Selection | None) -> ModelSource:
    """Returns the model that a selector and its options name; None is the default model. Raises as
    ``model_choice.find_source`` does.
    """
    if selection is None:
        return ModelSource(architecture=None, path=find_default_model(), repo=None, filename=None)
    return model_choice.find_source(choice_of(selection), FORMATTER)


def source_at(word: str, filename: str | None, *, gqa: int = 1) -> ModelSource:
    """Returns the model that one word names. Raises as ``model_choice.source_at`` does."""
    return model_choice.source_at(word, filename, FORMATTER, gqa=gqa)
