"""The options after ``completions``."""

# ruff: noqa: RUF009  (``argument`` makes a dataclass field, as ``field`` does)

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mistralrs.api.options.option import argument


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionsOptions:
    """The options after ``completions``."""

    shell: Literal["bash", "zsh", "fish"] = argument(..., metavar="bash|zsh|fish", help="The shell to print for.")
    words: list[str] | None = argument(
        None,
        metavar="[-- WORD...]",
        help="Print the candidates for the last of these words, as the shell's function asks for them.",
    )
