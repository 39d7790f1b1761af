"""What a chat shows beside the answers: notes, errors, the banner; all on stderr. Knows text, not models' streams."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TextIO

from mistralrs.errors import MistralrsError
from mistralrs_cli.model import Info
from mistralrs_cli.output import clean_block, clean_line, grouped, is_terminal, print_error


class Notes:
    """Lines about the chat that are no part of it: dim on a terminal that has colours, plain elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def say(self, *lines: str) -> None:
        """Write lines, which may quote what nobody checked."""
        lines = tuple(map(clean_block, lines))
        if is_terminal(self._stream):
            from rich.console import Console

            console = Console(file=self._stream, highlight=False, markup=False, emoji=False)
            with console.capture() as drawn:
                for line in lines:
                    console.print(line, style="dim", soft_wrap=True)
            self._stream.write(drawn.get())
        else:
            self._stream.writelines(f"{line}\n" for line in lines)
        self._stream.flush()

    def error(self, error: MistralrsError) -> None:
        """Write an error and its hint."""
        print_error(self._stream, error)


def banner(info: Info) -> tuple[str, str]:
    """Two lines that open a chat: what was loaded, and where help is."""
    threads = f"{info.threads} thread{'' if info.threads == 1 else 's'}"
    context = f"context {grouped(info.context_length)}"
    parts = (info.name, info.architecture, info.quantization, f"{info.backend}, {threads}", context)
    return clean_line(" · ".join(parts)), "/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves"


def columns(rows: Iterable[tuple[str, str]]) -> list[str]:
    """Rows of two cells as lines with the second cells aligned."""
    pairs = list(rows)
    width = max((len(left) for left, _ in pairs), default=0)
    return [f"{left:<{width}}  {right}" for left, right in pairs]
