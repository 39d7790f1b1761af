"""What a caller hears of its request: events, and what carries them from the engine's thread.

Knows nothing of how they come about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Literal

from mistralrs.engine.process_bound import ProcessBound
from mistralrs.errors import MistralrsError

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's natural-log probability after penalties and bias, before temperature, top-k, top-p and min-p."""

    token: int
    text: str
    """For display, control tokens spelled out."""
    data: bytes
    """The token's bytes, which need not be whole characters."""
    logprob: float
    top: tuple[TokenLogprob, ...] = ()
    """The most likely tokens at this place, best first; empty for those in ``top`` themselves."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request cost. Times in seconds."""

    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens that were not computed because their KV was in the prefix cache."""
    completion_tokens: int
    """Tokens drawn, the end-of-sequence token included."""
    prompt_s: float
    """From submission to the end of the step that drew the first token, waiting included."""
    completion_s: float
    """From there to the last token."""
    first_token_s: float
    """From submission to the first text in the stream; 0.0 if there was none."""
    seed: int
    drafted_tokens: int = 0
    """Tokens that were guessed and computed before it was known whether they come."""
    accepted_tokens: int = 0
    """Those of them that came."""


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """What the model made of the prompt, once and before every Delta, if the request asks for it."""

    logprobs: tuple[TokenLogprob | None, ...]
    """One a prompt token; None for the first, which nothing precedes."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """The pooled hidden states of the prompt, if the request asks for them; no Delta follows."""

    values: tuple[float, ...]
    """(hidden,) with an L2 norm of 1."""


@dataclass(frozen=True, slots=True)
class Delta:
    """One step's news. ``text`` may be empty while bytes or a possible stop string are held back."""

    text: str
    tokens: tuple[int, ...]
    """Tokens drawn, those of a stop string included, the end-of-sequence token not."""
    logprobs: tuple[TokenLogprob, ...]
    """One a token if asked for, otherwise empty."""

    @classmethod
    def joined(cls, deltas: Iterable[Delta]) -> Delta:
        """All of them as one."""
        deltas = list(deltas)
        return cls(
            "".join(delta.text for delta in deltas),
            tuple(token for delta in deltas for token in delta.tokens),
            tuple(logprob for delta in deltas for logprob in delta.logprobs),
        )


@dataclass(frozen=True, slots=True)
class Finished:
    """The end: "stop" (end of sequence or stop string), "length" (``max_tokens`` or a full context), "cancelled"."""

    reason: FinishReason
    usage: Usage


@dataclass(frozen=True, slots=True)
class Failed:
    """The end of a request that the engine could not serve."""

    error: MistralrsError
    usage: Usage


End = Finished | Failed
Event = PromptLogprobs | Embedding | Delta | End


class Handle(ProcessBound):
    """A request under way. Its events are: any number of news, then exactly one Finished or Failed."""

    def __init__(self, on_cancel: Callable[[], None], put: Callable[[Event], None]) -> None:
        super().__init__()
        self.cancelled = False
        """The caller wants no more; the engine may not have noticed yet."""
        self.put = put
        """For the engine alone."""
        self._on_cancel = on_cancel

    def cancel(self) -> None:
        """Ends the request within one step with ``Finished("cancelled")``; does nothing if it has ended.

        May be called from any thread.
        """
        if not self.cancelled:
            self.cancelled = True
            self._on_cancel()


class Stream(Handle):
    """A request under way, to be iterated for its events; one thread at a time may do so."""

    def __init__(self, on_cancel: Callable[[], None]) -> None:
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._ended = False
        super().__init__(on_cancel, self._events.put)

    def __iter__(self) -> Iterator[Event]:
        """Raises EngineError in a fork of the engine's process."""
        while not self._ended:
            self.require_process()
            event = self._events.get()
            self._ended = isinstance(event, End)
            yield event
