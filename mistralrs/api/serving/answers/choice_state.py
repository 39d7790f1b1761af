"""The state of each answer to a prompt as its events arrive, and the usage and timings of all of them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mistralrs.engine.events import (
    Delta,
    Event,
    Failed,
    Finished,
    FinishReason,
    PromptLogprobs,
    Scalings,
    TokenLogprob,
    Usage,
)
from mistralrs.errors import EngineError, MistralrsError

if TYPE_CHECKING:
    from mistralrs.api.schemas.output_chunk import ChoiceEnd
    from mistralrs.api.serving.answers.choice_parts import ChoiceParts
    from mistralrs.engine.config import Request

CANCELLED = "request_cancelled"
"""The error code of an answer that someone other than its reader cancelled."""


class ChoiceState:
    """One choice as far as its stream's events have come."""

    def __init__(self, request: Request, parts: ChoiceParts) -> None:
        self.request = request
        self.parts = parts
        self.prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
        self.logprobs: list[TokenLogprob] = []
        self.scalings: Scalings | None = None
        self.num_tokens = 0
        self.reason: FinishReason | None = None
        """The finish reason; None: the choice is not complete."""
        self.usage: Usage | None = None
        self._started = time.perf_counter()
        self._first_token: float | None = None

    @property
    def end(self) -> ChoiceEnd | None:
        """Returns the finish reason for clients: calls of tools are one, unless the answer was cut."""
        return "tool_calls" if self.reason == "stop" and self.parts.calls else self.reason

    @property
    def cumulative_logprob(self) -> float:
        """Returns the sum over the sampled tokens, if log-probabilities were requested."""
        return sum(logprob.logprob for logprob in self.logprobs)

    def on_event(self, event: Event) -> MistralrsError | None:
        """Records an event. Returns the error if the event ends the answer before it is complete."""
        if isinstance(event, Delta):
            self._on_delta(event)
        elif isinstance(event, PromptLogprobs):
            self.prompt_logprobs = event.logprobs
        elif isinstance(event, Scalings):
            self.scalings = event
        elif isinstance(event, Finished):
            self.usage = event.usage
            if event.reason == "cancelled":
                return cancelled()
            self.reason = event.reason
            self.parts.finish(is_cut=event.is_cut)
            self.num_tokens = event.usage.completion_tokens  # the token that ends a text is in no delta
        elif isinstance(event, Failed):
            self.usage = event.usage
            return event.error
        return None

    def timings(self) -> dict[str, float | int | None]:
        """Returns the timings so far, measured on the reader's side."""
        now = time.perf_counter()
        since_first = 0.0 if self._first_token is None else now - self._first_token
        return {
            "completion_tokens": self.num_tokens,
            "total_time_sec": now - self._started,
            "avg_compl_tok_per_sec": _rate(self.num_tokens - 1, since_first),
        }

    def _on_delta(self, delta: Delta) -> None:
        if self._first_token is None:
            self._first_token = time.perf_counter()
        self.parts.push(delta)
        self.logprobs += delta.logprobs
        self.num_tokens += len(delta.tokens)


def adapters_replaced() -> EngineError:
    """Returns the error of an answer whose choices would come from different adapters under one name."""
    return EngineError(
        "its adapters were replaced while the answer's choices were submitted",
        hint="ask again",
        code="adapter_unavailable",
    )


def cancelled() -> EngineError:
    """Returns the error of an answer that someone other than its reader cancelled."""
    return EngineError("the request was cancelled", code=CANCELLED)


def usage(candidates: Sequence[ChoiceState], *, per_prompt: int) -> dict[str, object]:
    """Returns token counts in OpenAI's shape: each prompt once, and all generated tokens, shown or not."""
    firsts = candidates[::per_prompt]
    prompt = sum(len(candidate.request.prompt) for candidate in firsts)
    cached = sum(candidate.usage.cached_tokens for candidate in firsts if candidate.usage)
    completion = sum(candidate.num_tokens for candidate in candidates)
    reasoning = sum(candidate.parts.reasoning_tokens for candidate in candidates)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


def timings(candidates: Iterable[ChoiceState], *, seed: int) -> dict[str, object]:
    """Returns rates in tokens a second, null where no time passed, and times in seconds: sums over all candidates,
    waiting included. ``seed`` is the first candidate's. Draft tokens have llama.cpp's keys, if there were any."""
    known = [candidate for candidate in candidates if candidate.usage]
    usages = [candidate.usage for candidate in known if candidate.usage]
    prompt_tokens = sum(usage.prompt_tokens for usage in usages)
    completion_tokens = sum(candidate.num_tokens for candidate in known)
    prompt_s = sum(usage.prompt_s for usage in usages)
    completion_s = sum(usage.completion_s for usage in usages)
    drafted = sum(usage.drafted_tokens for usage in usages)
    accepted = sum(usage.accepted_tokens for usage in usages)
    return {
        "avg_tok_per_sec": _rate(prompt_tokens + completion_tokens, prompt_s + completion_s),
        "avg_prompt_tok_per_sec": _rate(prompt_tokens, prompt_s),
        "avg_compl_tok_per_sec": _rate(completion_tokens, completion_s),
        "total_time_sec": prompt_s + completion_s,
        "total_prompt_time_sec": prompt_s,
        "total_completion_time_sec": completion_s,
        "seed": seed,
        **({"draft_n": drafted, "draft_n_accepted": accepted} if drafted else {}),
    }


def _rate(tokens: int, seconds: float) -> float | None:
    return tokens / seconds if seconds > 0 else None
