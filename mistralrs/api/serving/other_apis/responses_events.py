"""Makes an answer of OpenAI's Responses API from the chunks of a chat: its events, and from the same state its body."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from mistralrs.api.schemas.output_chunk import OutputChunk, ToolCallDelta
from mistralrs.api.serving.other_apis.responses_api import PreparedResponse

Event = dict[str, object]
"""An event of a stream; its ``type`` is also its name."""
Status = Literal["in_progress", "completed", "incomplete", "failed"]


class TextItem:
    """A message or a thought, which has one part."""

    def __init__(self, kind: Literal["message", "reasoning"], index: int) -> None:
        self.kind = kind
        self.index = index
        self.id = f"{'msg' if kind == 'message' else 'rs'}_{uuid.uuid4().hex}"
        self._name = "response.output_text" if kind == "message" else "response.reasoning_text"
        self._place = {"item_id": self.id, "output_index": index, "content_index": 0}
        self._texts: list[str] = []
        self._logprobs: list[object] = []
        self._status: Status = "in_progress"

    def opening(self) -> Iterator[Event]:
        empty = {**self.item(), "content": []}
        yield {"type": "response.output_item.added", "output_index": self.index, "item": empty}
        yield {"type": "response.content_part.added", **self._place, "part": self._part()}

    def delta(self, text: str, logprobs: list[object]) -> Event:
        self._texts.append(text)
        self._logprobs += logprobs
        shown = {"logprobs": logprobs} if self.kind == "message" else {}
        return {"type": f"{self._name}.delta", **self._place, "delta": text, **shown}

    def closing(self, status: Status, logprobs: list[object]) -> Iterator[Event]:
        """Yields the item's last events; ``logprobs`` are those of tokens without text."""
        self._logprobs += logprobs
        self._status = status
        part = self._part()
        shown = {"logprobs": self._logprobs} if self.kind == "message" else {}
        yield {"type": f"{self._name}.done", **self._place, "text": part["text"], **shown}
        yield {"type": "response.content_part.done", **self._place, "part": part}
        yield {"type": "response.output_item.done", "output_index": self.index, "item": self.item()}

    def item(self) -> Event:
        """Returns the item as it is now."""
        own: Event = {"role": "assistant"} if self.kind == "message" else {"summary": []}
        return {"id": self.id, "type": self.kind, "status": self._status, **own, "content": [self._part()]}

    def _part(self) -> Event:
        text = "".join(self._texts)
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(self._logprobs)}


class CallItem:
    """A call of a function."""

    def __init__(self, call: ToolCallDelta, index: int) -> None:
        self.call_index = call.index
        self.index = index
        self.id = f"fc_{uuid.uuid4().hex}"
        self._facts = {"call_id": call.id, "name": call.name}
        self._place = {"item_id": self.id, "output_index": index}
        self._texts: list[str] = []
        self._status: Status = "in_progress"

    def opening(self) -> Iterator[Event]:
        yield {"type": "response.output_item.added", "output_index": self.index, "item": self.item()}

    def delta(self, text: str) -> Event:
        self._texts.append(text)
        return {"type": "response.function_call_arguments.delta", **self._place, "delta": text}

    def closing(self, status: Status) -> Iterator[Event]:
        self._status = status
        item = self.item()
        done = {"arguments": item["arguments"], "name": item["name"]}
        yield {"type": "response.function_call_arguments.done", **self._place, **done}
        yield {"type": "response.output_item.done", "output_index": self.index, "item": item}

    def item(self) -> Event:
        """Returns the item as it is now."""
        arguments = "".join(self._texts)
        return {
            "id": self.id,
            "type": "function_call",
            "status": self._status,
            **self._facts,
            "arguments": arguments,
        }


class ResponseEvents:
    """The answer to one request. It takes each chunk once, in order; ``body`` is the answer so far."""

    def __init__(self, asked: PreparedResponse, *, id: str, created: int, model_name: str) -> None:
        """``created``: seconds since 1970."""
        self._settings = settings(asked)
        self._facts: Event = {"id": id, "object": "response", "created_at": created, "model": model_name}
        self._items: list[TextItem | CallItem] = []
        self._open: TextItem | CallItem | None = None
        self._logprobs: list[object] = []  # of tokens whose text has not come yet
        self._status: Status = "in_progress"
        self._error: Mapping[str, object] | None = None
        self._usage: Mapping[str, Any] | None = None
        self._adapters: Event = {}
        self._num_events = 0

    def opening(self) -> Iterator[Event]:
        """Yields the events before the first chunk."""
        for name in ("response.created", "response.in_progress"):
            yield self._numbered({"type": name, "response": self.body()})

    def on_chunk(self, chunk: OutputChunk) -> Iterator[Event]:
        """Yields the events of a chunk."""
        for event in self._additions(chunk):
            yield self._numbered(event)
        if chunk.finish_reason is not None:
            is_cut = chunk.finish_reason == "length"
            for event in self._end("incomplete" if is_cut else "completed"):
                yield self._numbered(event)
        if chunk.adapter_generation is not None:
            self._adapters = {"adapter_generation": chunk.adapter_generation}
        if chunk.usage is not None:
            self._usage = chunk.usage

    def closing(self) -> Iterator[Event]:
        """Yields the events after the last chunk."""
        yield self._numbered({"type": f"response.{self._status}", "response": self.body()})

    def failed(self, error: Mapping[str, object]) -> Iterator[Event]:
        """Yields the events that end an answer with an error, which has a code and a message."""
        for event in self._close("incomplete"):
            yield self._numbered(event)
        self._status = "failed"
        self._error = {"code": error["code"], "message": error["message"]}
        yield self._numbered({"type": "response.failed", "response": self.body()})

    def body(self) -> dict[str, object]:
        """Returns the answer as it is now."""
        cut = {"reason": "max_output_tokens"} if self._status == "incomplete" else None
        return {
            **self._facts,
            "status": self._status,
            "output": [item.item() for item in self._items],
            "error": self._error,
            "incomplete_details": cut,
            "usage": None if self._usage is None else _usage(self._usage),
            **self._adapters,
            **self._settings,
        }

    def _additions(self, chunk: OutputChunk) -> Iterator[Event]:
        tokens = [] if chunk.logprobs is None else chunk.logprobs["content"]
        assert isinstance(tokens, list)
        if chunk.reasoning:
            yield from self._text("reasoning", chunk.reasoning, [])
        if chunk.text:
            yield from self._text("message", chunk.text, tokens)
        for call in chunk.tool_calls:
            yield from self._call(call)
        if not (chunk.reasoning or chunk.text or chunk.tool_calls):
            self._logprobs += tokens

    def _text(self, kind: Literal["message", "reasoning"], text: str, logprobs: list[object]) -> Iterator[Event]:
        if not isinstance(self._open, TextItem) or self._open.kind != kind:
            yield from self._opened(TextItem(kind, len(self._items)))
        assert isinstance(self._open, TextItem)
        yield self._open.delta(text, [*self._taken_logprobs(), *logprobs] if kind == "message" else [])

    def _call(self, call: ToolCallDelta) -> Iterator[Event]:
        if call.name is not None:
            yield from self._opened(CallItem(call, len(self._items)))
        assert isinstance(self._open, CallItem)  # a call ends before anything else begins
        assert self._open.call_index == call.index
        if call.arguments:
            yield self._open.delta(call.arguments)

    def _opened(self, item: TextItem | CallItem) -> Iterator[Event]:
        if self._items:  # tokens without text between two items are marks, which belong to neither
            self._logprobs = []
        yield from self._close("completed")
        self._items.append(item)
        self._open = item
        yield from item.opening()

    def _close(self, status: Status) -> Iterator[Event]:
        if isinstance(self._open, TextItem):
            yield from self._open.closing(status, self._taken_logprobs() if self._open.kind == "message" else [])
        elif self._open is not None:
            yield from self._open.closing(status)
        self._open = None

    def _end(self, status: Literal["completed", "incomplete"]) -> Iterator[Event]:
        if not self._items:  # clients read the first item of every answer
            yield from self._opened(TextItem("message", 0))
        yield from self._close(status)
        self._status = status

    def _taken_logprobs(self) -> list[object]:
        taken, self._logprobs = self._logprobs, []
        return taken

    def _numbered(self, event: Event) -> Event:
        event["sequence_number"] = self._num_events
        self._num_events += 1
        return event


def settings(asked: PreparedResponse) -> dict[str, object]:
    """Returns the settings of a request that its answer repeats, with the values that were used."""
    body, sampling = asked.body, asked.prepared.requests[0].sampling
    form = None if body.text is None else body.text.format
    verbosity = None if body.text is None else body.text.verbosity
    return {
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": None if body.reasoning is None else body.reasoning.effort, "summary": None},
        "store": False,
        "background": False,
        "temperature": sampling.temperature,
        "text": {"format": form or {"type": "text"}, **({} if verbosity is None else {"verbosity": verbosity})},
        "tool_choice": body.tool_choice or "auto",
        "tools": [tool.model_dump(exclude_none=True) for tool in body.tools or ()],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": sampling.top_p,
        "truncation": "auto" if asked.prepared.requests[0].truncate else "disabled",
        "metadata": {},
    }


def _usage(usage: Mapping[str, Any]) -> dict[str, object]:
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {**usage["prompt_tokens_details"], "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": usage["completion_tokens_details"],
        "total_tokens": usage["total_tokens"],
    }
