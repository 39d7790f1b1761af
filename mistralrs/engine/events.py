"""Events of a request, and the handles that carry them from the engine's thread to the caller."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
    """Tokens and times of a request. Times are in seconds."""

    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens that were not computed because their KV was in the prefix cache."""
    completion_tokens: int
    """Tokens sampled, the end-of-sequence token included."""
    prompt_s: float
    """From submission to the end of the step that sampled the first token, waiting included."""
    completion_s: float
    """From the first token to the last one."""
    first_token_s: float
    """From submission to the first text in the stream; 0.0 if there was no text."""
    seed: int
    drafted_tokens: int = 0
    """Draft tokens that were computed."""
    accepted_tokens: int = 0
    """Draft tokens that the sampler confirmed."""


@dataclass(frozen=True, slots=True)
class AdaptersChosen:
    """Adapters act on the request; comes once, before all others, from whoever looked them up by their names."""

    generation: int
    """The generation of names that they were looked up in; it grows whenever a name comes to mean another adapter."""
    contents: tuple[tuple[bytes, float], ...]
    """Digests and weights, in their order."""


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Log-probabilities of the prompt; comes once, before the first Delta, if the request asks for it."""

    logprobs: tuple[TokenLogprob | None, ...]
    """One for each prompt token; None for the first, which no token precedes."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """The pooled hidden states of the prompt, if the request asks for them; no Delta follows."""

    values: tuple[float, ...]
    """(hidden,) with an L2 norm of 1."""
    hidden_states: bytes = b""
    """float32 (prompt tokens, hidden), normed, in the machine's byte order; empty if the request does not ask for
    it."""


@dataclass(frozen=True, slots=True)
class Scalings:
    """The weights with which the executor mixed a request's tokens; comes once, before Finished, if it asks for them.

    The last sampled token has none: it was never computed.
    """

    start: int
    """Position of the first token; those before came from the prefix cache."""
    tokens: tuple[int, ...]
    """Ids of the tokens that have scalings."""
    shape: tuple[int, int]
    """Layers and adapters."""
    data: bytes
    """float32 (tokens, layers, adapters), in the machine's byte order."""
    omitted_tokens: int = 0
    """Tokens after these that were left out, because a request may have only so many scalings."""


@dataclass(frozen=True, slots=True)
class Delta:
    """The tokens and text of one step. ``text`` may be empty while bytes or a possible stop string are held back."""

    text: str
    tokens: tuple[int, ...]
    """Sampled tokens, those of a stop string included, without the end-of-sequence token."""
    logprobs: tuple[TokenLogprob, ...]
    """One for each token if the request asks for them, otherwise empty."""
    lengths: tuple[int, ...] = ()
    """Characters of ``text`` that each token brought; those behind them came with the end. Empty: the text came with
    all tokens."""

    @classmethod
    def joined(cls, deltas: Sequence[Delta]) -> Delta:
        """One Delta with the text, tokens and log-probabilities of all ``deltas`` in order."""
        if len(deltas) == 1:
            return deltas[0]
        text = "".join(delta.text for delta in deltas)
        lengths = tuple(length for delta in deltas for length in delta._every_length())
        return cls(
            text,
            tuple(token for delta in deltas for token in delta.tokens),
            tuple(logprob for delta in deltas for logprob in delta.logprobs),
            () if lengths == (len(text),) else lengths,
        )

    def _every_length(self) -> Iterator[int]:
        if self.lengths:
            yield from self.lengths
        else:
            yield from (0 if place else len(self.text) for place in range(len(self.tokens)))

    def by_token(self) -> Iterator[tuple[str, int]]:
        """Yields the text of each token with 1, and text that came with the end with 0; the text of all tokens with
        their number where their lengths are not known."""
        if not self.lengths:
            yield self.text, len(self.tokens)
            return
        start = 0
        for length in self.lengths:
            yield self.text[start : start + length], 1
            start += length
        if start < len(self.text):
            yield self.text[start:], 0


@dataclass(frozen=True, slots=True)
class Finished:
    """The end: "stop" (end of sequence or stop string), "length" (``max_tokens`` or a full context), "cancelled"."""

    reason: FinishReason
    usage: Usage
    stop_string: str | None = None
    """The stop string that ended the text."""

    @property
    def is_cut(self) -> bool:
        """Whether the model would have gone on."""
        return self.reason != "stop" or self.stop_string is not None


@dataclass(frozen=True, slots=True)
class Failed:
    """The end of a request that the engine could not serve."""

    error: MistralrsError
    usage: Usage


End = Finished | Failed
Event = AdaptersChosen | PromptLogprobs | Embedding | Delta | Scalings | End


def _unknown_progress() -> None:
    """Returns the progress of a prompt that no engine has taken."""


class Handle(ProcessBound):
    """A running request. Its events are any number of AdaptersChosen, PromptLogprobs, Embedding, Delta and Scalings,
    then one Finished or Failed."""

    def __init__(self, on_cancel: Callable[[], None], put: Callable[[Event], None]) -> None:
        super().__init__()
        self.cancelled = False
        """The caller has cancelled the request; the engine may not have noticed yet."""
        self.put = put
        """Delivers an event; called by the engine alone."""
        self.prompt_progress: Callable[[], tuple[int, int] | None] = _unknown_progress
        """Returns how many tokens of the prompt have their KV at this moment, cached ones included, and how many there
        are; None: it is not known. May be called from any thread."""
        self._on_cancel = on_cancel

    def cancel(self) -> None:
        """Ends the request within one step with ``Finished("cancelled")``; does nothing if it has ended.

        May be called from any thread.
        """
        if not self.cancelled:
            self.cancelled = True
            self._on_cancel()


class Stream(Handle):
    """A running request whose events are read by iteration, by one thread at a time."""

    def __init__(self, on_cancel: Callable[[], None]) -> None:
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._ended = False
        super().__init__(on_cancel, self._events.put)

    def __iter__(self) -> Iterator[Event]:
        """Yields the events up to the end. Raises EngineError in a fork of the engine's process."""
        while not self._ended:
            self._require_process()
            event = self._events.get()
            self._ended = isinstance(event, End)
            yield event
