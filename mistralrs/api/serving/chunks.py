"""Pieces of an answer as server-sent events. All that does not change is rendered once an answer.

Knows the two shapes of chunks; knows no engine and no events of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from mistralrs.engine.events import FinishReason

DONE = b"data: [DONE]\n\n"
SYSTEM_FINGERPRINT = "local"


@dataclass(frozen=True, slots=True)
class ChunkShape:
    """How a choice holds its text in a chunk, as JSON around a JSON string."""

    object: str
    opening: str
    """In front of the first text of a choice."""
    before: str
    after: str
    ending: str
    """What stands beside the reason why a choice ended."""


CHAT = ChunkShape(
    object="chat.completion.chunk",
    opening='"delta":{"role":"assistant","content":',
    before='"delta":{"content":',
    after="}",
    ending='"delta":{}',
)
COMPLETION = ChunkShape(object="text_completion", opening='"text":', before='"text":', after="", ending='"text":""')


class ChunkWriter:
    """Writes the events of one answer. JSON is ASCII: some clients take U+2028 and its like for the end of a line."""

    def __init__(self, shape: ChunkShape, *, id: str, created: int, model: str, include_usage: bool) -> None:
        facts = {"id": id, "object": shape.object, "created": created, "model": model}
        head = _json({**facts, "system_fingerprint": SYSTEM_FINGERPRINT}).removesuffix("}")
        self._shape = shape
        self._head = f'data: {head},"choices":['
        self._tail = ',"usage":null}\n\n' if include_usage else "}\n\n"

    def opening(self, index: int, text: str) -> bytes:
        """The first chunk of a choice."""
        return self._chunk(index, f"{self._shape.opening}{json.dumps(text)}{self._shape.after}", "null", "null", None)

    def text(
        self,
        index: int,
        text: str,
        *,
        logprobs: Mapping[str, object] | None = None,
        timings: Mapping[str, object] | None = None,
    ) -> bytes:
        """A piece of a choice's text."""
        payload = f"{self._shape.before}{json.dumps(text)}{self._shape.after}"
        return self._chunk(index, payload, "null" if logprobs is None else _json(logprobs), "null", timings)

    def ending(self, index: int, reason: FinishReason, *, timings: Mapping[str, object] | None = None) -> bytes:
        """The last chunk of a choice."""
        return self._chunk(index, self._shape.ending, "null", f'"{reason}"', timings)

    def usage(self, usage: Mapping[str, object]) -> bytes:
        """The chunk that holds no choice."""
        return f'{self._head}],"usage":{_json(usage)}}}\n\n'.encode("ascii")

    def _chunk(
        self, index: int, payload: str, logprobs: str, reason: str, timings: Mapping[str, object] | None
    ) -> bytes:
        choice = f'{{"index":{index},{payload},"logprobs":{logprobs},"finish_reason":{reason}}}]'
        extra = "" if timings is None else f',"timings":{_json(timings)}'
        return f"{self._head}{choice}{extra}{self._tail}".encode("ascii")


def error_event(body: Mapping[str, object]) -> bytes:
    """An error as the last event of a stream."""
    return f"data: {_json(body)}\n\n".encode("ascii")


def _json(value: Mapping[str, object]) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))
