"""The output of a chat beside the answers: notes, errors, the banner; all on stderr."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TextIO

from mistralrs.errors import MistralrsError
from mistralrs_cli.markdown_screen.answer_display import terminal_size
from mistralrs_cli.model import Adapters, Info
from mistralrs_cli.terminal.output import byte_size, clean_block, clean_line, grouped, is_terminal, print_error


class Notes:
    """Writes notes, which are no part of the chat: dim on a terminal with colours, plain elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def width(self) -> int:
        """Returns the columns of the terminal; 80 where there is none."""
        return terminal_size(self._stream)[0]

    def say(self, *lines: str) -> None:
        """Writes lines, which may quote unchecked text."""
        lines = tuple(map(clean_block, lines))
        if is_terminal(self._stream):
            from rich.console import Console

            console = Console(file=self._stream, highlight=False, markup=False, emoji=False, width=self.width)
            with console.capture() as drawn:
                for line in lines:
                    console.print(line, style="dim", overflow="fold")
            self._stream.write(drawn.get())
        else:
            self._stream.writelines(f"{line}\n" for line in lines)
        self._stream.flush()

    def show(self, *lines: Sequence[tuple[str, str]]) -> None:
        """Writes lines of clean texts, each with its colour, which is used on a terminal that has colours."""
        if is_terminal(self._stream):
            from rich.console import Console
            from rich.text import Text

            console = Console(file=self._stream, highlight=False, markup=False, emoji=False)
            with console.capture() as drawn:
                for line in lines:
                    console.print(Text.assemble(*line), soft_wrap=True)
            self._stream.write(drawn.get())
        else:
            self._stream.writelines("".join(text for text, _ in line) + "\n" for line in lines)
        self._stream.flush()

    def error(self, error: MistralrsError) -> None:
        """Writes an error and its hint."""
        print_error(self._stream, error)


def banner(info: Info, adapters: Adapters) -> list[str]:
    """Returns the lines that open a chat: the loaded model, its adapters if it has some, and the way to help."""
    backend = info.backend
    if info.threads:  # 0 is a server's
        backend += f", {info.threads} thread{'' if info.threads == 1 else 's'}"
    context = f"context {grouped(info.context_length)}" if info.context_length else ""
    kv = ""
    if info.kv_cache_dtype == "q8_0":  # 16 bits go without saying
        kv = f"KV cache in q8_0, {byte_size(info.kv_token_bytes)} a token"
    parts = (info.name, info.architecture, info.quantization, backend, context, kv)
    lines = [
        clean_line(" · ".join(filter(None, parts))),
        "/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves",
    ]
    if described := adapters.describe():
        lines.insert(1, clean_line(f"adapters: {described}"))
    return lines


def columns(rows: Iterable[tuple[str, str]]) -> list[str]:
    """Returns rows of two cells as lines with the second cells aligned."""
    pairs = list(rows)
    width = max((len(left) for left, _ in pairs), default=0)
    return [f"{left:<{width}}  {right}" for left, right in pairs]
