"""A stream of plain answers whose thinking is split from the text, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mistralrs.engine.events import Delta, Event, Failed, Finished
from mistralrs.text.response.pieces import Content, Piece, Reasoning

if TYPE_CHECKING:
    from mistralrs.engine.events import Stream
    from mistralrs.text.response.response_parser import ResponseParser


@dataclass(frozen=True, slots=True)
class Thought:
    """Further text of the model's thinking, which is no part of its answer."""

    text: str


class ReadStream:
    """The events of a request whose deltas have no text but the answer's, with ``Thought`` among them.

    One thread at a time iterates.
    """

    def __init__(self, stream: Stream, parser: ResponseParser) -> None:
        self._stream = stream
        self._parser = parser

    def __iter__(self) -> Iterator[Event | Thought]:
        """Yields the events up to the end; a delta is there for each of the engine's, perhaps with an empty text."""
        for event in self._stream:
            if isinstance(event, Delta):
                pieces = self._parser.push(event.text)
                yield from _thoughts(pieces)
                yield replace(event, text=_content(pieces), lengths=())
                continue
            if isinstance(event, Finished | Failed):
                pieces = self._parser.finish(is_cut=isinstance(event, Finished) and event.is_cut)
                yield from _thoughts(pieces)
                if text := _content(pieces):
                    yield Delta(text, (), ())
            yield event

    def prompt_progress(self) -> tuple[int, int] | None:
        """Returns how many tokens of the prompt have their KV, and how many there are; None: it is not known."""
        return self._stream.prompt_progress()

    def cancel(self) -> None:
        """Ends the answer within a step; safe from any thread, and more than once."""
        self._stream.cancel()


def _thoughts(pieces: list[Piece]) -> list[Thought]:
    return [Thought(piece.text) for piece in pieces if isinstance(piece, Reasoning)]


def _content(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, Content))
