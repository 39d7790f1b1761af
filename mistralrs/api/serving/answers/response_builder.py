"""Builds the answer to one request from the events of its choices: the body of the whole, or the chunks of a stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from mistralrs.api.loaded_adapters.scalings import choice_scalings
from mistralrs.api.schemas.output_chunk import OutputChunk
from mistralrs.api.serving.answers.choice_parts import ChoiceParts
from mistralrs.api.serving.answers.choice_state import ChoiceState, adapters_replaced, timings, usage
from mistralrs.api.serving.answers.logprobs import CompletionLogprobs, Echo, chat_logprobs
from mistralrs.api.serving.other_apis.message_shapes import end_name, message_delta, whole_message
from mistralrs.api.serving.prepare import Prepared
from mistralrs.engine.events import AdaptersChosen, Delta, Event, Finished, PromptLogprobs
from mistralrs.errors import MistralrsError

SYSTEM_FINGERPRINT = "local"
CHUNK_OBJECTS = {"chat": "chat.completion.chunk", "completion": "text_completion"}
"""The ``object`` of a chunk, by the kind of its answer."""


class ResponseBuilder:
    """Builds the answer to one request. It takes each event once, with the index of the event's stream."""

    def __init__(self, prepared: Prepared, *, id: str, created: int, model_name: str) -> None:
        """``created``: seconds since 1970."""
        self._prepared = prepared
        self._id = id
        self._created = created
        self._model_name = model_name
        reading = prepared.parts
        self._choices = [
            ChoiceState(request, ChoiceParts(place, None if reading is None else reading.parser()))
            for place, request in enumerate(prepared.requests)
        ]
        self._offsets = [CompletionLogprobs(self._echo(place)) for place in range(len(self._choices))]
        self._opened = False
        self._chosen: AdaptersChosen | None = None

    def on_event(self, place: int, event: Event) -> MistralrsError | None:
        """Records an event. Returns the error if the event ends a choice before it is complete."""
        if isinstance(event, AdaptersChosen):
            self._chosen = self._chosen or event
            if event.contents != self._chosen.contents:
                return adapters_replaced()
        return self._choices[place].on_event(event)

    def snapshot(self) -> dict[str, object]:
        """Returns the answer's body so far; unfinished choices have the finish reason ``error``."""
        prepared = self._prepared
        choices: list[dict[str, object]] = []
        for first in range(0, len(self._choices), prepared.generated):
            for place in self._best(range(first, first + prepared.generated)):
                choices.append(self._choice(len(choices), place))
        return {
            "id": self._id,
            "object": "chat.completion" if prepared.kind == "chat" else "text_completion",
            "created": self._created,
            "model": self._model_name,
            "system_fingerprint": SYSTEM_FINGERPRINT,
            "choices": choices,
            "usage": self._usage(),
            "timings": timings(self._choices, seed=prepared.seed),
            **self._adapter_facts(),
        }

    def chunks(self, place: int, event: Event) -> Iterator[OutputChunk]:
        """Yields the chunks that an event adds to a stream; ``on_event`` has taken the event already."""
        prepared, state = self._prepared, self._choices[place]
        if isinstance(event, AdaptersChosen):  # nothing of the answer is there yet
            return
        if not self._opened:
            self._opened = True
            yield from self._openings()
        if isinstance(event, PromptLogprobs):
            yield OutputChunk(place, self._echoed(place), logprobs=self._offsets[place].add(event.logprobs))
        elif isinstance(event, Delta):
            logprobs = self._logprobs(place, event)
            news = state.parts.news
            if logprobs is not None:  # those of markers and of text held back come with no text of their own
                first, *others = news or [OutputChunk(place, "")]
                news = [replace(first, logprobs=logprobs), *others]
            yield from (replace(each, timings=state.timings()) for each in news) if prepared.timings_per_token else news
        elif isinstance(event, Finished):
            assert state.reason is not None  # otherwise on_event has returned an error
            yield from state.parts.news
            if prepared.suffix:
                yield OutputChunk(place, prepared.suffix)
            is_last = all(other.reason is not None for other in self._choices)
            total = timings(self._choices, seed=prepared.seed) if is_last else None
            generation = self._chosen.generation if self._chosen is not None and is_last else None
            yield OutputChunk(
                place,
                finish_reason=state.end,
                stop_string=event.stop_string,
                timings=total,
                adapter_generation=generation,
            )

    def last_chunks(self) -> Iterator[OutputChunk]:
        """Yields the chunks after the last event of all streams."""
        if self._prepared.include_usage:
            yield OutputChunk(None, usage=self._usage())

    def chunk_body(self, chunk: OutputChunk) -> dict[str, object]:
        """Returns the body of a chunk, as clients of the HTTP interface read it."""
        prepared = self._prepared
        body: dict[str, object] = {
            "id": self._id,
            "object": CHUNK_OBJECTS[prepared.kind],
            "created": self._created,
            "model": self._model_name,
            "system_fingerprint": SYSTEM_FINGERPRINT,
            "choices": [] if chunk.index is None else [self._chunk_choice(chunk)],
        }
        if chunk.timings is not None:
            body["timings"] = chunk.timings
        if chunk.adapter_generation is not None:
            body["adapter_generation"] = chunk.adapter_generation
        if prepared.include_usage:
            body["usage"] = chunk.usage
        return body

    def _chunk_choice(self, chunk: OutputChunk) -> dict[str, object]:
        payload: dict[str, object] = {}
        if self._prepared.kind == "completion":
            payload["text"] = chunk.text or ""
        else:
            payload["delta"] = message_delta(chunk, legacy=self._prepared.legacy_calls)
        return {
            "index": chunk.index,
            **payload,
            "logprobs": chunk.logprobs,
            "finish_reason": end_name(chunk.finish_reason, legacy=self._prepared.legacy_calls),
        }

    def _best(self, places: Sequence[int]) -> Sequence[int]:
        """Returns the choices for one prompt that are shown; the likeliest, likeliest first, if there are more."""
        if self._prepared.choices == len(places):
            return places
        by_logprob = sorted(places, key=lambda place: -self._choices[place].cumulative_logprob)
        return by_logprob[: self._prepared.choices]

    def _choice(self, index: int, place: int) -> dict[str, object]:
        state, logprobs, legacy = self._choices[place], None, self._prepared.legacy_calls
        facts = {
            "index": index,
            "finish_reason": end_name(state.end, legacy=legacy) or "error",
            **self._scalings(state),
        }
        if self._prepared.kind == "chat":
            if self._prepared.logprobs is not None:
                logprobs = chat_logprobs(state.logprobs)
            return {**facts, "message": whole_message(state.parts, legacy=legacy), "logprobs": logprobs}
        echo = self._echo(place)
        if self._prepared.logprobs is not None:
            tokens = [*state.prompt_logprobs, *state.logprobs]
            return {**facts, "text": self._text(place), "logprobs": CompletionLogprobs(echo).add(tokens)}
        return {**facts, "text": self._text(place), "logprobs": None}

    def _scalings(self, state: ChoiceState) -> dict[str, object]:
        names = self._prepared.scalings
        if names is None or state.scalings is None:
            return {}
        return {"scalings": choice_scalings(state.scalings, names)}

    def _text(self, place: int) -> str:
        echo = self._echo(place)
        return ("" if echo is None else echo.text) + self._choices[place].parts.content + self._prepared.suffix

    def _openings(self) -> Iterator[OutputChunk]:
        """Yields the first chunk of every choice in the order of their indices, which clients expect."""
        is_chat = self._prepared.kind == "chat"
        for place in range(len(self._choices)):
            # a prompt with log-probabilities is a chunk of its own
            text = self._echoed(place) if self._prepared.logprobs is None else ""
            if text or is_chat or len(self._choices) > 1:
                yield OutputChunk(place, text, role="assistant" if is_chat else None)

    def _logprobs(self, place: int, delta: Delta) -> Mapping[str, object] | None:
        if self._prepared.logprobs is None or not delta.logprobs:
            return None
        if self._prepared.kind == "chat":
            return chat_logprobs(delta.logprobs)
        return self._offsets[place].add(delta.logprobs)

    def _echo(self, place: int) -> Echo | None:
        echo = self._prepared.echo
        return None if echo is None else echo[place // self._prepared.generated]

    def _echoed(self, place: int) -> str:
        echo = self._echo(place)
        return "" if echo is None else echo.text

    def _adapter_facts(self) -> dict[str, object]:
        return {} if self._chosen is None else {"adapter_generation": self._chosen.generation}

    def _usage(self) -> dict[str, object]:
        return usage(self._choices, per_prompt=self._prepared.generated)
