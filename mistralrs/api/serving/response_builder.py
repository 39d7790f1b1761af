"""Makes the answer to one request of the events of its choices: the body of the whole, or the chunks of a stream.

Knows shapes, indices and sums; does not know where events come from, nor who waits for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mistralrs.api.serving.choice_state import ChoiceState, timings, usage
from mistralrs.api.serving.chunks import CHAT, COMPLETION, SYSTEM_FINGERPRINT, ChunkWriter
from mistralrs.api.serving.logprobs import CompletionLogprobs, Echo, chat_logprobs
from mistralrs.api.serving.prepare import Prepared
from mistralrs.engine.events import Delta, Event, Finished, PromptLogprobs
from mistralrs.errors import MistralrsError


class ResponseBuilder:
    """The answer to one request. It hears each event once, with the place of the request's stream that it came from."""

    def __init__(self, prepared: Prepared, *, id: str, created: int, model_name: str) -> None:
        """``created``: seconds since 1970."""
        self._prepared = prepared
        self._id = id
        self._created = created
        self._model_name = model_name
        self._writer = ChunkWriter(
            CHAT if prepared.kind == "chat" else COMPLETION,
            id=id,
            created=created,
            model=model_name,
            include_usage=prepared.include_usage,
        )
        self._choices = [ChoiceState(request) for request in prepared.requests]
        self._offsets = [CompletionLogprobs(self._echo(place)) for place in range(len(self._choices))]
        self._opened = False

    def on_event(self, place: int, event: Event) -> MistralrsError | None:
        """Takes note of an event. Returns the error, if it is the end of a choice that will not be complete."""
        return self._choices[place].on_event(event)

    def snapshot(self) -> dict[str, object]:
        """The body of an answer with what has come; unfinished choices have the finish reason ``error``."""
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
        }

    def last_chunks(self) -> Iterator[bytes]:
        """What follows the last event of all."""
        if self._prepared.include_usage:
            yield self._writer.usage(self._usage())

    def _best(self, places: Sequence[int]) -> Sequence[int]:
        """Those candidates for one prompt that are shown, the likeliest first if there are more."""
        if self._prepared.choices == len(places):
            return places
        by_logprob = sorted(places, key=lambda place: -self._choices[place].cumulative_logprob)
        return by_logprob[: self._prepared.choices]

    def _choice(self, index: int, place: int) -> dict[str, object]:
        candidate, logprobs = self._choices[place], None
        facts = {"index": index, "finish_reason": candidate.reason or "error"}
        if self._prepared.kind == "chat":
            if self._prepared.logprobs is not None:
                logprobs = chat_logprobs(candidate.logprobs)
            message = {"role": "assistant", "content": candidate.text, "refusal": None}
            return {**facts, "message": message, "logprobs": logprobs}
        echo = self._echo(place)
        if self._prepared.logprobs is not None:
            tokens = [*candidate.prompt_logprobs, *candidate.logprobs]
            return {**facts, "text": self._text(place), "logprobs": CompletionLogprobs(echo).add(tokens)}
        return {**facts, "text": self._text(place), "logprobs": None}

    def _text(self, place: int) -> str:
        echo = self._echo(place)
        return ("" if echo is None else echo.text) + self._choices[place].text + self._prepared.suffix

    def chunks(self, place: int, event: Event) -> Iterator[bytes]:
        """What an event, which was heard already, adds to a stream, as server-sent events."""
        prepared, candidate = self._prepared, self._choices[place]
        if not self._opened:
            self._opened = True
            yield from self._openings()
        if isinstance(event, PromptLogprobs):
            yield self._writer.text(place, self._echoed(place), logprobs=self._offsets[place].add(event.logprobs))
        elif isinstance(event, Delta):
            logprobs = self._logprobs(place, event)
            if event.text or logprobs is not None:
                clock = candidate.timings() if prepared.timings_per_token else None
                yield self._writer.text(place, event.text, logprobs=logprobs, timings=clock)
        elif isinstance(event, Finished):
            assert candidate.reason is not None  # or hearing it would have been an error
            if prepared.suffix:
                yield self._writer.text(place, prepared.suffix)
            last = all(other.reason is not None for other in self._choices)
            total = timings(self._choices, seed=prepared.seed) if last else None
            yield self._writer.ending(place, candidate.reason, timings=total)

    def _openings(self) -> Iterator[bytes]:
        """The first chunk of every choice: clients want to meet them in the order of their indices."""
        for place in range(len(self._choices)):
            # with its log-probabilities the prompt comes as a piece of its own
            text = self._echoed(place) if self._prepared.logprobs is None else ""
            if text or self._prepared.kind == "chat" or len(self._choices) > 1:
                yield self._writer.opening(place, text)

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

    def _usage(self) -> dict[str, object]:
        return usage(self._choices, per_prompt=self._prepared.generated)
