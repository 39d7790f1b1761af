"""What passes between a server's process and its engine's: the messages, and how they travel over a socket.

Both ends are of this package and one starts the other, so messages are pickled. Knows no torch and no event loop.
"""

from __future__ import annotations

import logging
import pickle
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mistralrs.engine.events import Delta, Event

if TYPE_CHECKING:
    from mistralrs.api.local_model import LoadOptions, ModelSource
    from mistralrs.api.served_model import ServedModel
    from mistralrs.engine.config import EngineConfig, Request
    from mistralrs.engine.stats import EngineStats
    from mistralrs.errors import EngineError, MistralrsError

PackedEvent = tuple[int, str, tuple[int, ...]] | tuple[int, Event]
"""A stream's number with its event, or with a plain Delta's text and tokens: these are most, and dataclasses pickle
slowly."""


# To the engine's process. The end of what it can read closes it.


@dataclass(frozen=True, slots=True)
class Load:
    """Comes first, once."""

    source: ModelSource
    options: LoadOptions
    log_level: int


@dataclass(frozen=True, slots=True)
class Submit:
    """A request for the engine."""

    number: int
    """Of the stream, chosen by the server's side."""
    request: Request


@dataclass(frozen=True, slots=True)
class Cancel:
    """The request of this number is not wanted any more."""

    number: int


@dataclass(frozen=True, slots=True)
class AskStats:
    """Is answered by ``Stats``."""


# From it. The end of what the server's side can read is the end of the engine.


@dataclass(frozen=True, slots=True)
class Progressed:
    """How far loading is, as a ``Progress`` is told."""

    what: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """The model is loaded, and requests may come."""

    model: ServedModel
    config: EngineConfig


@dataclass(frozen=True, slots=True)
class NotLoaded:
    """Comes instead of ``Loaded`` and is the last."""

    error: MistralrsError


@dataclass(frozen=True, slots=True)
class Step:
    """All events of a step."""

    events: list[PackedEvent]


@dataclass(frozen=True, slots=True)
class Stats:
    """The answer to ``AskStats``."""

    stats: EngineStats


@dataclass(frozen=True, slots=True)
class Logged:
    """A record of the log: only the server's side writes."""

    record: logging.LogRecord


@dataclass(frozen=True, slots=True)
class Died:
    """What the engine's thread died of; the last."""

    fault: EngineError


def pack(number: int, event: Event) -> PackedEvent:
    """Returns an event of a stream in a form that is small to pickle; ``unpack`` reverses it."""
    if type(event) is Delta and not event.logprobs:
        return number, event.text, event.tokens
    return number, event


def unpack(packed: PackedEvent) -> tuple[int, Event]:
    """The inverse of ``pack``."""
    if len(packed) == 3:
        return packed[0], Delta(packed[1], packed[2], ())
    return packed


_LENGTH = struct.Struct("<Q")


def frame(message: object) -> bytes:
    """A message as bytes that say how long it is."""
    body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(body)) + body


class FrameDecoder:
    """Puts messages together again from the pieces that a socket yields."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[object]:
        """The messages that are complete with ``data``."""
        self._buffer += data
        messages = []
        start = 0
        while len(self._buffer) - start >= _LENGTH.size:
            body = start + _LENGTH.size
            end = body + _LENGTH.unpack_from(self._buffer, start)[0]
            if end > len(self._buffer):
                break
            messages.append(pickle.loads(memoryview(self._buffer)[body:end]))
            start = end
        del self._buffer[:start]
        return messages
