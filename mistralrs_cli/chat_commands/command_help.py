"""The list of the chat's commands: as lines for a terminal of any width, and as tables of the guide."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

INPUT = (
    "Enter sends. A new line: Alt-Enter, Ctrl-J, a backslash at the end, or text between two lines of "
    '"""; a paste never sends. Tab completes. // at the beginning sends a message with a slash.'
)
STACKED_BELOW = 60
"""Columns below which a command's help stands under its name."""


class DescribedCommand(Protocol):
    """The part of a command that help needs."""

    @property
    def name(self) -> str: ...
    @property
    def help(self) -> str: ...
    @property
    def section(self) -> str: ...
    @property
    def argument(self) -> str: ...
    @property
    def details(self) -> str: ...
    @property
    def aliases(self) -> tuple[str, ...]: ...
    @property
    def usage(self) -> str: ...


def help_lines(commands: Sequence[DescribedCommand], *, width: int) -> list[str]:
    """Returns all commands by sections, in lines of at most ``width`` columns."""
    wide = max(len(each.usage) for each in commands)
    lines = []
    for section, members in _sections(commands):
        lines.append(f"{section}:")
        for each in members:
            if width < STACKED_BELOW:
                lines += [*_wrapped(each.usage, width, "  "), *_wrapped(each.help, width, "      ")]
            else:
                first, *rest = _wrapped(each.help, width - wide - 4, "")
                lines.append(f"  {each.usage:<{wide}}  {first}")
                lines += [" " * (wide + 4) + line for line in rest]
    return lines + _wrapped(INPUT, width, "")


def help_of(command: DescribedCommand, *, width: int) -> list[str]:
    """Returns the lines about one command."""
    lines = [*_wrapped(command.usage, width, ""), *_wrapped(f"{command.help}. {command.details}".strip(), width, "  ")]
    return lines + ([f"  also: {', '.join(command.aliases)}"] if command.aliases else [])


def markdown(commands: Sequence[DescribedCommand]) -> Iterator[str]:
    """Yields the lines of the guide's tables, one for each section."""
    for section, members in _sections(commands):
        yield from ("", f"**{section}**", "", "| Command | Effect |", "| --- | --- |")
        for each in members:
            also = f" Also {', '.join(f'`{name}`' for name in each.aliases)}." if each.aliases else ""
            effect = f"{each.help}. {each.details}".strip().replace("|", "\\|")
            yield f"| `{each.usage.replace('|', chr(92) + '|')}` | {effect}{also} |"


def _sections(commands: Iterable[DescribedCommand]) -> Iterator[tuple[str, list[DescribedCommand]]]:
    for section, members in itertools.groupby(commands, lambda each: each.section):
        yield section, list(members)


def _wrapped(text: str, width: int, indentation: str) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=indentation, subsequent_indent=indentation, break_on_hyphens=False)
