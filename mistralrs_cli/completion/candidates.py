"""Finds what a word of a command line may be, from the same commands that parse it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from mistralrs.api.options.declarations import types
from mistralrs.api.options.values import without_none
from mistralrs.quant.quantize import ISQ_TYPES
from mistralrs_cli.arguments.command_line import command_tree, row_command
from mistralrs_cli.completion.known_names import adapters_of, cached_repositories, saved_chats
from mistralrs_cli.completion.shell_scripts import FILES

_HUB_TOKENS = ("cache", "none", "env:", "literal:", "path:")
_CHOICES = re.compile(r"[a-z0-9]+(\|[a-z0-9]+)+")
"""A list of choices as the metavar of an option; placeholders are in capitals."""
_WITH_ROW = ("bench", "scalings")
"""Commands after whose options a row may stand."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A word, and its meaning."""

    word: str
    meaning: str = ""


@dataclass(slots=True)
class _Place:
    """The place in a command line behind some words."""

    command: Any
    awaited: Any = None
    """The option whose value comes next."""
    arguments: int = 0
    """Positional arguments of the command that were given."""
    names: list[str] = field(default_factory=list)

    def take(self, word: str) -> None:
        """Goes behind a word."""
        if self.awaited is not None:
            self.awaited = None
        elif word.startswith("-") and word != "-":
            option = _option(self.command, word)
            self.awaited = None if option is None or option.is_flag or "=" in word else option
        elif (inner := self._inner(word)) is not None:
            self.command, self.arguments = inner, 0
            self.names.append(word)
        else:
            self.arguments += 1

    def _inner(self, word: str) -> Any:
        if hasattr(self.command, "get_command"):
            return self.command.get_command(None, word)
        return row_command(word) if self.names and self.names[-1] in _WITH_ROW else None


def candidates(words: Sequence[str]) -> list[Candidate]:
    """Returns the words that the last of ``words`` may become; ``FILES`` stands for the names of files.

    ``words``: those behind the program's name. The last one may be empty.
    """
    place = _Place(command_tree())
    for word in words[:-1]:
        place.take(word)
    beginning = words[-1] if words else ""
    if place.awaited is not None:
        return list(_beginning_with(beginning, place.awaited, words))
    if beginning.startswith("-") and "=" in beginning:
        flag, _, value = beginning.partition("=")
        option = _option(place.command, flag)
        found = () if option is None or option.is_flag else _beginning_with(value, option, words)
        return [each if each.word == FILES else Candidate(f"{flag}={each.word}", each.meaning) for each in found]
    if beginning.startswith("-"):
        return [each for each in _options(place.command) if each.word.startswith(beginning)]
    found = _arguments(place, words)
    return [each for each in found if each.word == FILES or each.word.startswith(beginning)]


def _beginning_with(typed: str, option: Any, words: Sequence[str]) -> Iterator[Candidate]:
    """Yields the values of an option that a typed text may become. A text before ``=`` names a source, one before a
    comma is another adapter: they stay."""
    separator = {"NAME=SOURCE": "=", "NAME[:W],...": ","}.get(option.metavar or "", "")
    kept = typed[: typed.rfind(separator) + 1] if separator else ""
    for each in _values(option, words):
        if each.word == FILES:
            yield each
        elif (kept + each.word).startswith(typed):
            yield Candidate(kept + each.word, each.meaning)


def _option(command: Any, word: str) -> Any:
    name = word.partition("=")[0]
    return next((each for each in command.params if name in (*each.opts, *each.secondary_opts)), None)


def _options(command: Any) -> Iterator[Candidate]:
    for each in command.params:
        if _is_option(each):
            for name in (*each.opts, *each.secondary_opts):
                yield Candidate(name, _first_sentence(getattr(each, "help", None) or ""))
    yield Candidate("--help", "Show the help.")


def _is_option(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "option")


def _arguments(place: _Place, words: Sequence[str]) -> Iterator[Candidate]:
    if hasattr(place.command, "list_commands"):
        for name in place.command.list_commands(None):
            yield Candidate(name)
        return
    if place.names and place.names[-1] in (*_WITH_ROW, "help"):
        for name in command_tree().list_commands(None):
            if place.names[-1] == "help" or row_command(name) is not None:
                yield Candidate(name)
        return
    positional = [each for each in place.command.params if not _is_option(each)]
    if positional:
        yield from _values(positional[min(place.arguments, len(positional) - 1)], words)


def _values(parameter: Any, words: Sequence[str]) -> Iterator[Candidate]:
    """Yields the values of an option or argument."""
    metavar = parameter.metavar or ""
    if _CHOICES.fullmatch(metavar):
        yield from map(Candidate, metavar.split("|"))
    elif metavar == "LEVEL":
        yield from map(Candidate, get_args(without_none(types()["log_level"])))
    elif metavar in ("[NAME|ID]", "CHAT"):
        yield from (Candidate(name, meaning) for name, meaning in saved_chats())
    elif metavar == "NAME[:W],...":
        yield from (Candidate(name, "adapter") for name in adapters_of(words))
        yield Candidate("none", "no adapter")
    elif metavar == "TYPE":
        yield from (Candidate(name) for name in ISQ_TYPES)
    elif parameter.name == "token_source":
        yield from (Candidate(name) for name in _HUB_TOKENS)
    elif any(word in metavar for word in ("FILE", "PATH", "FOLDER", "SOURCE", "MODEL", "OUT", "REPO", "ADAPTER")):
        yield Candidate(FILES)
        if any(word in metavar for word in ("SOURCE", "MODEL", "REPO")):
            yield from (Candidate(name, "in the hub's cache") for name in cached_repositories())
    elif metavar == "NAME" and parameter.name == "name":
        yield from (Candidate(name, "in the hub's cache") for name in cached_repositories())


def _first_sentence(text: str) -> str:
    return text.partition(". ")[0].rstrip(".")
