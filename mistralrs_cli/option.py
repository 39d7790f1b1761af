"""How an option is declared: its names, type, help and modes, as a field that Typer's parameters are made of.

Knows no option and runs nothing.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Mapping, Set
from copy import copy
from dataclasses import field, fields
from typing import Annotated, Any, get_type_hints

import typer


class Mode(enum.Enum):
    """What the command does; the value is how the user asks for it."""

    CHAT = "-i"
    PROMPT = "--prompt"
    SERVE = "--port"
    BENCH = "bench"
    INSPECT = "inspect"
    MODELS = "models"
    QUANTIZE = "quantize"


SERVE = frozenset({Mode.SERVE})
ANSWER = frozenset({Mode.CHAT, Mode.PROMPT})
TALK = ANSWER | SERVE
RUN = TALK | {Mode.BENCH}
FETCH = RUN | {Mode.INSPECT, Mode.QUANTIZE}
ALL = frozenset(Mode)


def option(default: object, *names: str, modes: frozenset[Mode] = ALL, **settings: Any) -> Any:
    """A field that is an option: ``names`` as typed, ``modes`` that it has a meaning in, ``settings`` of Typer."""
    return field(default=default, metadata={"option": typer.Option(*names, **settings), "modes": modes, "names": names})


def argument(default: object, **settings: Any) -> Any:
    """A field that is a word without a name."""
    return field(default=default, metadata={"option": typer.Argument(**settings), "modes": ALL, "names": ()})


def parameters(
    options: type, *, shown_defaults: Mapping[str, str] | None = None, required: Set[str] = frozenset()
) -> list[inspect.Parameter]:
    """The fields of an options class as parameters that Typer reads.

    ``shown_defaults``: what help says of defaults, by field; ``required``: fields that help calls so.
    """
    hints = get_type_hints(options)
    found = []
    for each in fields(options):
        info = copy(each.metadata["option"])
        if shown_defaults and each.name in shown_defaults:
            info.show_default = shown_defaults[each.name]
        if each.name in required:
            info.help = f"{info.help} Required."
        annotation: Any = Annotated[hints[each.name], info]
        default = inspect.Parameter.empty if each.default is ... else each.default
        keyword = inspect.Parameter.KEYWORD_ONLY
        found.append(inspect.Parameter(each.name, keyword, default=default, annotation=annotation))
    return found
