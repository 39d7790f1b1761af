"""The declaration of an option: a dataclass field with its flags, help, range and the modes that it applies to."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any


class Mode(enum.Enum):
    """The purpose of a command; the value is how the user asks for it."""

    CHAT = "-i"
    PROMPT = "--prompt"
    SERVE = "--port"
    BENCH = "bench"
    INSPECT = "inspect"
    MODELS = "models"
    CHATS = "chats"
    QUANTIZE = "quantize"
    ORDERING_CREATE = "ordering create"
    ORDERING_RENAME = "ordering rename"
    ADAPTER = "adapter"
    SCALINGS = "adapter scalings"
    BATCH = "--prompt-file"
    CHAT_JSONL = "--chat-jsonl"
    CONFIG = "config"
    DOCTOR = "doctor"
    VERIFY = "verify"
    TUNE = "tune"


SERVE = frozenset({Mode.SERVE})
ANSWER = frozenset({Mode.CHAT, Mode.PROMPT, Mode.BATCH, Mode.CHAT_JSONL})
TALK = ANSWER | SERVE
RUN = TALK | {Mode.BENCH, Mode.SCALINGS}
FETCH = RUN | {Mode.INSPECT, Mode.QUANTIZE, Mode.ORDERING_CREATE, Mode.ADAPTER, Mode.TUNE}
ALL = frozenset(Mode)


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One declaration; the field that carries it has the name, the type and the default."""

    flags: tuple[str, ...]
    """The flags as typed, the long one first."""
    help: str
    modes: frozenset[Mode] = ALL
    metavar: str | None = None
    shown_default: str | None = None
    """The default as help shows it; None: the default itself."""
    least: float | None = None
    most: float | None = None
    """The largest valid number; ``least`` and ``most`` are both valid."""
    excluded: float | None = None
    """A number in between that is not valid."""
    range_hint: str | None = None
    """The text of the error for invalid numbers; None: the range."""
    shows_range: bool = True
    """For whole numbers: help shows the range, and the parser of the command line checks it."""
    is_size: bool = False
    """The value is bytes, given as a number with K, M, G or T."""
    file_endings: tuple[str, ...] = ()
    """For texts: a value with one of these endings is a path."""
    has_negation: bool = False
    """The last flag means False; the option may also be not given, which is None."""
    separator: str | None = None
    """The separator of values in the environment; None: the variable is one value."""
    empty_counts: bool = False
    """A variable that is set to nothing is a value; otherwise it counts as not set."""
    together: str | None = None
    """Options with the same word mean the same: the strongest origin counts for all of them."""
    is_shared: bool = True
    """The option may also stand in the environment and in the config file."""
    shared_word: str | None = None
    """The option's word there; None: that of its flag."""

    @property
    def variable(self) -> str | None:
        """Returns the environment variable; None: there is none."""
        return f"MISTRALRS_{self._word.replace('-', '_').upper()}" if self.is_shared else None

    @property
    def key(self) -> str | None:
        """Returns the key in the config file; None: the option may not stand there."""
        return self._word if self.is_shared else None

    @property
    def _word(self) -> str:
        return self.shared_word or self.flags[0].removeprefix("--")


def option(default: object, *flags: str, help: str, **settings: Any) -> Any:
    """Returns a dataclass field that is an option; ``settings`` are fields of ``Option``."""
    return field(default=default, metadata={"declaration": Option(flags=flags, help=help, **settings)})


def argument(default: object, *, metavar: str, help: str) -> Any:
    """Returns a dataclass field that is a positional argument."""
    return field(default=default, metadata={"declaration": Option(flags=(), metavar=metavar, help=help)})
