"""Reads the prompts of a batch, a line each, as they come; a line that is no prompt carries its error."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TextIO

from mistralrs.errors import RequestError
from mistralrs_cli.prompt_batch.prompt_template import PromptTemplate
from mistralrs_cli.terminal.stdin_text import MAX_CHARACTERS, text_pieces


@dataclass(frozen=True, slots=True)
class PromptLine:
    """A line that is not blank, and its prompt."""

    number: int
    """The line's number in its file, from 1; blank lines count."""
    digest: str
    """A hash of the prompt; that of the line where it is no prompt."""
    prompt: str
    error: RequestError | None = None
    """Not None: the line has no prompt that can be answered."""


def prompt_lines(file: TextIO, template: PromptTemplate, *, name: str) -> Iterator[PromptLine]:
    """Yields the prompts of a file's lines, each as soon as the line has arrived. ``name``: the file in errors.

    Raises ``MistralrsError`` if the file cannot be read.
    """
    for number, (line, is_whole) in enumerate(_lines(file, name), 1):
        if not line.strip():
            continue
        error = None
        if is_whole:
            try:
                prompt = template.prompt(line)
            except RequestError as refused:
                prompt, error = line, refused
        else:
            prompt = line
            error = RequestError(
                f"the line has more than {MAX_CHARACTERS} characters, which fit into no model's context",
                hint="split it",
            )
        yield PromptLine(number, digest(prompt), prompt, error)


def digest(text: str) -> str:
    """Returns a hash of a text, in 32 hexadecimal digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _lines(file: TextIO, name: str) -> Iterator[tuple[str, bool]]:
    """Yields lines, and whether they are whole; only the beginning of one that is too long is kept."""
    begun: list[str] = []
    length = 0
    for text in text_pieces(file, name=name):
        first, *others = text.split("\n")
        for position, part in enumerate([first, *others]):
            if position:
                yield "".join(begun), length <= MAX_CHARACTERS
                begun, length = [], 0
            if length <= MAX_CHARACTERS:
                begun.append(part[: MAX_CHARACTERS - length])
            length += len(part)
    if length:
        yield "".join(begun), length <= MAX_CHARACTERS
