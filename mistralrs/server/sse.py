"""Chunks of an answer as server-sent events. The JSON that all chunks of an answer share is rendered once.

JSON is ASCII here: some clients take U+2028 and similar characters for the end of a line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from mistralrs.api.schemas.output_chunk import OutputChunk
from mistralrs.api.serving.answers.response_builder import CHUNK_OBJECTS, SYSTEM_FINGERPRINT
from mistralrs.api.serving.other_apis.message_shapes import end_name, message_delta
from mistralrs.api.serving.prepare import Prepared

DONE = b"data: [DONE]\n\n"
"""The last event of an answer that is complete."""
MESSAGES_PING = b'event: ping\ndata: {"type":"ping"}\n\n'
"""The event by which Anthropic's API keeps a stream alive."""


@dataclass(frozen=True, slots=True)
class ChunkShape:
    """How a choice holds its text in a chunk, as JSON around a JSON string."""

    opening: str
    """In front of the text of a chunk that has a role."""
    before: str
    after: str
    without_text: str
    """In place of all this in a chunk that has no text."""


SHAPES = {
    "chat": ChunkShape(
        opening='"delta":{"role":"assistant","content":',
        before='"delta":{"content":',
        after="}",
        without_text='"delta":{}',
    ),
    "completion": ChunkShape(opening='"text":', before='"text":', after="", without_text='"text":""'),
}


class ChunkEncoder:
    """Renders the chunks of one answer as JSON."""

    def __init__(self, prepared: Prepared, *, id: str, created: int, model_name: str) -> None:
        """``created``: seconds since 1970."""
        kind = prepared.kind
        facts = {"id": id, "object": CHUNK_OBJECTS[kind], "created": created, "model": model_name}
        head = _json({**facts, "system_fingerprint": SYSTEM_FINGERPRINT}).removesuffix("}")
        self._shape = SHAPES[kind]
        self._legacy = prepared.legacy_calls
        self._head = f'{head},"choices":['
        self._tail = ',"usage":null}' if prepared.include_usage else "}"

    def encode(self, chunk: OutputChunk) -> bytes:
        """The JSON of a chunk, in one line of ASCII: what ``ResponseBuilder.chunk_body`` says of it."""
        choice = "" if chunk.index is None else self._choice(chunk)
        timings = "" if chunk.timings is None else f',"timings":{_json(chunk.timings)}'
        if chunk.adapter_generation is not None:
            timings += f',"adapter_generation":{chunk.adapter_generation}'
        tail = self._tail if chunk.usage is None else f',"usage":{_json(chunk.usage)}}}'
        return f"{self._head}{choice}]{timings}{tail}".encode("ascii")

    def _choice(self, chunk: OutputChunk) -> str:
        shape = self._shape
        if chunk.reasoning is not None or chunk.tool_calls:
            payload = f'"delta":{_json(message_delta(chunk, legacy=self._legacy))}'
        elif chunk.text is None:
            payload = shape.without_text
        else:
            before = shape.before if chunk.role is None else shape.opening
            payload = f"{before}{json.dumps(chunk.text)}{shape.after}"
        logprobs = "null" if chunk.logprobs is None else _json(chunk.logprobs)
        end = end_name(chunk.finish_reason, legacy=self._legacy)
        reason = "null" if end is None else f'"{end}"'
        return f'{{"index":{chunk.index},{payload},"logprobs":{logprobs},"finish_reason":{reason}}}'


def encode_error(body: Mapping[str, object]) -> bytes:
    """The JSON of an error that ends a stream, in one line of ASCII."""
    return _json(body).encode("ascii")


def encode_event(event: Mapping[str, object]) -> bytes:
    """The JSON of an event that is no chunk, in one line of ASCII."""
    return _json(event).encode("ascii")


def frame_named(name: str, data: bytes) -> bytes:
    """JSON of one line as an event with a name."""
    return b"event: %b\ndata: %b\n\n" % (name.encode("ascii"), data)


def frame_event(data: bytes) -> bytes:
    """JSON of one line as an event."""
    return b"data: %b\n\n" % data


def _json(value: Mapping[str, object]) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))
