"""Makes an answer of Anthropic's Messages API from the chunks of a chat: its events, and from the same state its
body."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic_core import from_json

from mistralrs.api.schemas.output_chunk import OutputChunk, ToolCallDelta
from mistralrs.api.serving.other_apis.messages_api import PreparedMessage

Event = dict[str, object]
"""An event of a stream; its ``type`` is also its name."""
Kind = Literal["text", "thinking", "tool_use"]

_DELTAS = {
    "text": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "tool_use": ("input_json_delta", "partial_json"),
}
"""The type of a block's delta and its field, by the block's type."""
_EMPTY: Mapping[str, Event] = {
    "text": {"text": ""},
    "thinking": {"thinking": "", "signature": ""},
    "tool_use": {"input": {}},
}


class ContentBlock:
    """A block of the answer."""

    def __init__(self, kind: Kind, index: int, call: ToolCallDelta | None = None) -> None:
        """``call``: the first addition to the call, for ``tool_use``."""
        self.kind = kind
        self.index = index
        self.call_index = None if call is None else call.index
        self._facts: Event = {"type": kind, **({} if call is None else {"id": call.id, "name": call.name})}
        self._texts: list[str] = []

    def opening(self) -> Event:
        block = {**self._facts, **_EMPTY[self.kind]}
        return {"type": "content_block_start", "index": self.index, "content_block": block}

    def delta(self, text: str) -> Event:
        self._texts.append(text)
        kind, field = _DELTAS[self.kind]
        return self._delta({"type": kind, field: text})

    def closing(self) -> Iterator[Event]:
        if self.kind == "thinking":
            yield self._delta({"type": "signature_delta", "signature": ""})
        yield {"type": "content_block_stop", "index": self.index}

    def whole(self) -> Event:
        """Returns the block as it is now."""
        text = "".join(self._texts)
        if self.kind == "text":
            return {**self._facts, "text": text}
        if self.kind == "thinking":
            return {**self._facts, "thinking": text, "signature": ""}
        return {**self._facts, "input": _input(text)}

    def _delta(self, delta: Event) -> Event:
        return {"type": "content_block_delta", "index": self.index, "delta": delta}


class MessageEvents:
    """The answer to one request. It takes each chunk once, in order; ``body`` is the answer so far."""

    def __init__(self, asked: PreparedMessage, *, id: str, created: int, model_name: str) -> None:
        """``created`` is not part of this API."""
        self._body = asked.body
        self._facts: Event = {"id": id, "type": "message", "role": "assistant", "model": model_name}
        self._blocks: list[ContentBlock] = []
        self._open: ContentBlock | None = None
        self._finish: OutputChunk | None = None
        self._usage: Mapping[str, Any] = {
            "prompt_tokens": len(asked.prepared.requests[0].prompt),
            "completion_tokens": 0,
            "prompt_tokens_details": {"cached_tokens": 0},
        }
        self._adapters: Event = {}

    def opening(self) -> Iterator[Event]:
        """Yields the events before the first chunk."""
        yield {"type": "message_start", "message": self.body()}

    def on_chunk(self, chunk: OutputChunk) -> Iterator[Event]:
        """Yields the events of a chunk."""
        if chunk.reasoning:
            yield from self._text("thinking", chunk.reasoning)
        if chunk.text:
            yield from self._text("text", chunk.text)
        for call in chunk.tool_calls:
            yield from self._call(call)
        if chunk.finish_reason is not None:
            self._finish = chunk
            if not self._blocks:  # clients read the first block of every answer
                yield from self._opened(ContentBlock("text", 0))
            yield from self._close()
        if chunk.adapter_generation is not None:
            self._adapters = {"adapter_generation": chunk.adapter_generation}
        if chunk.usage is not None:
            self._usage = chunk.usage

    def closing(self) -> Iterator[Event]:
        """Yields the events after the last chunk."""
        yield {"type": "message_delta", "delta": self._ending(), "usage": self._counts(), **self._adapters}
        yield {"type": "message_stop"}

    def failed(self, error: Mapping[str, object]) -> Iterator[Event]:
        """Yields the event that ends an answer with an error, which has a type and a message."""
        yield {"type": "error", "error": dict(error)}

    def body(self) -> dict[str, object]:
        """Returns the answer as it is now."""
        content = [block.whole() for block in self._blocks]
        return {**self._facts, "content": content, **self._ending(), "usage": self._counts(), **self._adapters}

    def _text(self, kind: Kind, text: str) -> Iterator[Event]:
        if self._open is None or self._open.kind != kind:
            yield from self._opened(ContentBlock(kind, len(self._blocks)))
        assert self._open is not None
        yield self._open.delta(text)

    def _call(self, call: ToolCallDelta) -> Iterator[Event]:
        if call.name is not None:
            yield from self._opened(ContentBlock("tool_use", len(self._blocks), call))
        assert self._open is not None  # a call ends before anything else begins
        assert self._open.call_index == call.index
        if call.arguments:
            yield self._open.delta(call.arguments)

    def _opened(self, block: ContentBlock) -> Iterator[Event]:
        yield from self._close()
        self._blocks.append(block)
        self._open = block
        yield block.opening()

    def _close(self) -> Iterator[Event]:
        if self._open is not None:
            yield from self._open.closing()
        self._open = None

    def _ending(self) -> Event:
        """Returns the reason of the answer's end, and the stop sequence that brought it about."""
        end = self._finish
        if end is None:
            return {"stop_reason": None, "stop_sequence": None}
        if end.finish_reason == "tool_calls":
            return {"stop_reason": "tool_use", "stop_sequence": None}
        if end.finish_reason == "length":
            is_full = self._usage["completion_tokens"] < self._body.max_tokens
            reason = "model_context_window_exceeded" if is_full else "max_tokens"
            return {"stop_reason": reason, "stop_sequence": None}
        if end.stop_string is not None and end.stop_string in (self._body.stop_sequences or ()):
            return {"stop_reason": "stop_sequence", "stop_sequence": end.stop_string}
        return {"stop_reason": "end_turn", "stop_sequence": None}

    def _counts(self) -> Event:
        cached = self._usage["prompt_tokens_details"]["cached_tokens"]
        return {
            "input_tokens": self._usage["prompt_tokens"] - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": self._usage["completion_tokens"],
        }


def _input(arguments: str) -> Event:
    """Returns the arguments of a call; those of one that was cut, as far as they are whole. A model wrote them, so that
    they may be no JSON, or have numbers that JSON cannot represent again: then there are none."""
    try:
        value = from_json(arguments, allow_partial=True) if arguments else {}
        json.dumps(value, allow_nan=False)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
