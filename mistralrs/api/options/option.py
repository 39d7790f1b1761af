"""How an option is declared: a dataclass field with its flags, help, range and the modes that it has a meaning in."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One declaration; the field that carries it has the name, the type and the default."""

    flags: tuple[str, ...]
    """As typed, the long one first."""
    help: str
    modes: frozenset[Mode] = ALL
    metavar: str | None = None
    shown_default: str | None = None
    """Words of the help for the default; None: the default itself."""
    least: float | None = None
    most: float | None = None
    """The numbers that it may be, both ends included."""
    excluded: float | None = None
    """A number in between that it may not be."""
    range_hint: str | None = None
    """Words of the error for numbers that it may not be; None: the range."""
    shows_range: bool = True
    """Of a whole number: help shows the range, and the parser of the command line checks it."""
    is_size: bool = False
    """Bytes, given as a number with K, M, G or T."""
    file_endings: tuple[str, ...] = ()
    """Of a text: one that ends so is a path."""
    separator: str | None = None
    """Stands between two values in the environment; None: the variable is one value."""
    empty_counts: bool = False
    """A variable that is set to nothing is a value; otherwise it counts as not set."""
    together: str | None = None
    """Options with the same word say the same: the strongest origin counts for all of them."""
    is_shared: bool = True
    """May stand in the environment and in the config file, too."""

    @property
    def variable(self) -> str | None:
        """The environment variable; None: there is none."""
        return f"MISTRALRS_{self._word.replace('-', '_').upper()}" if self.is_shared else None

    @property
    def key(self) -> str | None:
        """The key in the config file; None: it may not stand there."""
        return self._word if self.is_shared else None

    @property
    def _word(self) -> str:
        return self.flags[0].removeprefix("--")


def option(default: object, *flags: str, help: str, **settings: Any) -> Any:
    """A dataclass field that is an option; ``settings`` are fields of ``Option``."""
    return field(default=default, metadata={"declaration": Option(flags=flags, help=help, **settings)})


def argument(default: object, *, metavar: str, help: str) -> Any:
    """A dataclass field that is a word without a name."""
    return field(default=default, metadata={"declaration": Option(flags=(), metavar=metavar, help=help)})
