"""The messages between a server's process and its engine's, and their encoding on a socket.

Both ends are of this package and one starts the other, so messages are pickled. Imports neither torch nor asyncio.
"""

from __future__ import annotations

import logging
import pickle
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mistralrs.engine.events import Delta, Event

if TYPE_CHECKING:
    from mistralrs.api.load_options import LoadOptions, ModelSource
    from mistralrs.api.loaded_adapters.adapter_changes import AdapterChange
    from mistralrs.api.loaded_adapters.known_adapters import KnownAdapters
    from mistralrs.api.served_model import ServedModel
    from mistralrs.engine.config import EngineConfig, Request
    from mistralrs.engine.stats import EngineStats
    from mistralrs.errors import EngineError, MistralrsError

PackedEvent = tuple[int, str, tuple[int, ...], tuple[int, ...]] | tuple[int, Event]
"""A stream's number with its event, or with a plain Delta's text, tokens and lengths: most events are plain Deltas, and
dataclasses pickle slowly."""


# Messages to the engine's process, which ends when its input ends.


@dataclass(frozen=True, slots=True)
class Load:
    """The settings to load with: the first message, sent once."""

    source: ModelSource
    options: LoadOptions
    log_level: int


@dataclass(frozen=True, slots=True)
class Submit:
    """A request for the engine."""

    number: int
    """The stream's number, chosen by the server's side."""
    request: Request
    adapters: Mapping[str, float] | None = None
    """Names and weights of the adapters that act on it; None: those that act by default."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Cancels the request of this number."""

    number: int


@dataclass(frozen=True, slots=True)
class ChangeAdapters:
    """Changes the adapters; answered by ``AdaptersChanged`` of this number, other requests first."""

    number: int
    change: AdapterChange


@dataclass(frozen=True, slots=True)
class AskStats:
    """Asks for ``Stats``."""


# Messages from the engine's process. The engine has ended when the server's input ends.


@dataclass(frozen=True, slots=True)
class Progressed:
    """The progress of loading: the arguments of a ``Progress``."""

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
    """The error of loading: comes instead of ``Loaded`` and is the last message."""

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
class AdaptersChanged:
    """The end of a change of the adapters."""

    number: int
    adapters: KnownAdapters
    """Those after it."""
    error: MistralrsError | None
    """The reason why it was not made."""


@dataclass(frozen=True, slots=True)
class Logged:
    """A log record; only the server's side writes the log."""

    record: logging.LogRecord


@dataclass(frozen=True, slots=True)
class Died:
    """The error that ended the engine's thread; the last message."""

    fault: EngineError


def pack(number: int, event: Event) -> PackedEvent:
    """Returns an event of a stream in a form that is small to pickle; ``unpack`` reverses it."""
    if type(event) is Delta and not event.logprobs:
        return number, event.text, event.tokens, event.lengths
    return number, event


def unpack(packed: PackedEvent) -> tuple[int, Event]:
    """The inverse of ``pack``."""
    if len(packed) == 4:
        return packed[0], Delta(packed[1], packed[2], (), packed[3])
    return packed


_LENGTH = struct.Struct("<Q")


def frame(message: object) -> bytes:
    """Returns a message as bytes, with its length in front."""
    body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(body)) + body


class FrameDecoder:
    """Reassembles messages from the pieces that a socket yields."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[object]:
        """Returns the messages that ``data`` completes."""
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
