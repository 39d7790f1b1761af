"""One request being served, as the engine's thread sees it: its sequence, its text so far, its times, its stream.

Knows no scheduler and no model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mistralrs.engine.events import Delta, Failed, Finished, FinishReason, Stream, TokenLogprob, Usage
from mistralrs.engine.sequence import Sequence
from mistralrs.errors import MistralrsError
from mistralrs.text.stream import TextStream

if TYPE_CHECKING:
    from mistralrs.engine.sampling import Draw
    from mistralrs.text.tokenizer import Tokenizer


class Job:
    """Turns drawn tokens into events. Times are seconds of one monotonic clock."""

    def __init__(
        self, sequence: Sequence, stream: Stream, *, tokenizer: Tokenizer, text: TextStream, submitted: float
    ) -> None:
        self.sequence = sequence
        self.stream = stream
        self._tokenizer = tokenizer
        self._text = text
        self._submitted = submitted
        self._first_token: float | None = None
        self._first_text: float | None = None
        self._last_token = submitted

    def hear(self, draw: Draw, now: float) -> tuple[Delta, FinishReason | None]:
        """The news of a token that the scheduler has committed, and why the stream ends with it, if it does."""
        if self._first_token is None:
            self._first_token = now
        self._last_token = now
        if self.sequence.finish_reason == "stop":  # an end-of-sequence token has no text
            return self._delta(self._text.finish(), now), "stop"
        text = self._text.push(draw.token)
        reason: FinishReason | None = "stop" if self._text.stopped else self.sequence.finish_reason
        if reason is not None:
            text += self._text.finish()
        return self._delta(text, now, draw), reason

    def finish(self, reason: FinishReason, now: float) -> None:
        """Ends the stream."""
        self.stream.put(Finished(reason, self._usage(now)))

    def fail(self, error: MistralrsError, now: float) -> None:
        """Ends the stream with an error."""
        self.stream.put(Failed(error, self._usage(now)))

    def _delta(self, text: str, now: float, draw: Draw | None = None) -> Delta:
        if text and self._first_text is None:
            self._first_text = now
        if draw is None:
            return Delta(text, (), ())
        return Delta(text, (draw.token,), self._logprobs(draw))

    def _logprobs(self, draw: Draw) -> tuple[TokenLogprob, ...]:
        if draw.logprob is None:
            return ()
        top = tuple(self._logprob(token, logprob) for token, logprob in draw.top)
        return (self._logprob(draw.token, draw.logprob, top),)

    def _logprob(self, token: int, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        text, data = self._tokenizer.token_text(token), self._tokenizer.token_bytes(token)
        return TokenLogprob(token, text, data, logprob, top)

    def _usage(self, now: float) -> Usage:
        first = now if self._first_token is None else self._first_token
        return Usage(
            prompt_tokens=self.sequence.num_prompt,
            cached_tokens=self.sequence.num_cached or 0,
            completion_tokens=len(self.sequence.tokens) - self.sequence.num_prompt,
            prompt_s=first - self._submitted,
            completion_s=max(self._last_token - first, 0.0),
            first_token_s=0.0 if self._first_text is None else self._first_text - self._submitted,
            seed=self.sequence.sampling.seed,
        )
