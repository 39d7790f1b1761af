"""Writes one answer from a model's stream, and handles Ctrl-C meanwhile."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Protocol, Self

from mistralrs.api.read_stream import Thought
from mistralrs.engine.events import Delta, Failed, Finished, Scalings
from mistralrs.errors import EngineError
from mistralrs_cli.model import AnswerStream


class TextSink(Protocol):
    """Takes the text of an answer."""

    def write(self, text: str) -> None:
        """Takes a piece."""


class ThoughtSink(TextSink, Protocol):
    """Takes the thinking of an answer."""

    def count(self, tokens: int) -> None:
        """Counts tokens that gave no text of the answer."""

    def end(self) -> None:
        """Marks the place where the answer goes on, which may happen more than once."""


class TextPieces:
    """Keeps a text."""

    def __init__(self) -> None:
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        """Returns the text until now."""
        return "".join(self._pieces)

    def write(self, text: str) -> None:
        """Keeps a piece."""
        self._pieces.append(text)

    def count(self, tokens: int) -> None:
        """Adds nothing."""

    def end(self) -> None:
        """Adds nothing."""


def relay(
    stream: AnswerStream,
    sink: TextSink,
    thoughts: ThoughtSink | None = None,
    *,
    on_scalings: Callable[[Scalings], None] | None = None,
) -> Finished:
    """Writes an answer as it comes, and its thinking to ``thoughts``; returns its last event. ``on_scalings`` gets its
    scalings, if it has some.

    Raises the error of an answer that failed.
    """
    for event in stream:
        if isinstance(event, Thought):
            if thoughts is not None:
                thoughts.write(event.text)
            continue
        if thoughts is not None and (not isinstance(event, Delta) or event.text):
            thoughts.end()
        if isinstance(event, Delta):
            if thoughts is not None and not event.text:
                thoughts.count(len(event.tokens))
            sink.write(event.text)
        elif isinstance(event, Scalings) and on_scalings is not None:
            on_scalings(event)
        elif isinstance(event, Failed):
            raise event.error
        elif isinstance(event, Finished):
            return event
    raise EngineError("the answer broke off without an end", hint="report this, with the output of --log-level debug")


class Interruption:
    """While entered, the first Ctrl-C cancels the watched answers, and a second one raises ``KeyboardInterrupt``.

    The first one raises it too while no answer is watched, which ends the work on a prompt. An exception at a random
    place could lose text of an answer that has already arrived; a cancelled stream ends in order.
    """

    def __init__(self) -> None:
        self.happened = False
        self._streams: list[AnswerStream] = []

    def __enter__(self) -> Self:
        self._previous = signal.signal(signal.SIGINT, self._interrupted)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def watch(self, stream: AnswerStream) -> AnswerStream:
        """Cancels this answer too at Ctrl-C, or at once if Ctrl-C was pressed before."""
        self._streams.append(stream)
        if self.happened:
            stream.cancel()
        return stream

    def unwatch(self, stream: AnswerStream) -> None:
        """Forgets an answer that has ended."""
        self._streams.remove(stream)

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        if self.happened:
            raise KeyboardInterrupt
        self.happened = True
        if not self._streams:
            raise KeyboardInterrupt
        # Another thread cancels, because this one may hold the lock that cancelling takes.
        threading.Thread(target=self._cancel, daemon=True).start()

    def _cancel(self) -> None:
        for stream in list(self._streams):
            stream.cancel()
