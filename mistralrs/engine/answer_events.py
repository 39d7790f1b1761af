"""The events of one request, made from the tokens of its steps. Steps need its text for stop strings only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mistralrs.engine.config import Request
from mistralrs.engine.events import (
    Delta,
    Event,
    Failed,
    Finished,
    FinishReason,
    Handle,
    PromptLogprobs,
    TokenLogprob,
    Usage,
)
from mistralrs.engine.sampling.sampling_input import SampledToken
from mistralrs.errors import MistralrsError
from mistralrs.text.stream import TextStream

if TYPE_CHECKING:
    from mistralrs.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class StepOutput:
    """The output of one step for one request."""

    sampled: list[SampledToken]
    """The step's tokens, forced ones among them."""
    reason: FinishReason | None
    """Why the stream ends here; None: it goes on."""
    has_end_token: bool
    """Whether the last token ends the sequence and has no text."""
    num_forced: int
    """Tokens that were not sampled, because the grammar or the end of a thought forced them."""
    texts: list[str] | None = None
    """The text of each token except an end token, where stop strings were looked for; None: it is made for the
    events."""

    @property
    def tokens(self) -> list[int]:
        """To be committed."""
        return [draw.token for draw in self.sampled]


class AnswerEvents:
    """Makes and delivers the events of one request. The thread that delivers calls it."""

    def __init__(self, stream: Handle, request: Request, *, tokenizer: Tokenizer, submitted: float) -> None:
        self._stream = stream
        self._tokenizer = tokenizer
        self.text = text_stream(request, tokenizer)
        """The engine's thread pushes tokens to it while it looks for stop strings, and passes on what it returned."""
        self._submitted = submitted
        self._first_text: float | None = None

    def put(self, event: Event) -> None:
        """Delivers an event that is complete."""
        self._stream.put(event)

    def on_prompt_logprobs(self, sampled: Sequence[SampledToken]) -> None:
        """Delivers the log-probabilities of the prompt from its second token on."""
        self._stream.put(PromptLogprobs((None, *map(self._token_logprob, sampled))))

    def on_step(self, output: StepOutput, now: float) -> None:
        """Delivers what came of a step that ended ``now``."""
        delta = self._delta(output, 0) if len(output.sampled) == 1 else self._joined(output)
        if delta.text and self._first_text is None:
            self._first_text = now
        if delta.text or delta.tokens:
            self._stream.put(delta)

    def on_finished(self, reason: FinishReason, usage: Usage) -> None:
        """Ends the stream. ``usage`` lacks the time of the first text."""
        stop_string = self.text.stop_string if reason == "stop" else None
        self._stream.put(Finished(reason, self._timed(usage), stop_string))

    def on_failed(self, error: MistralrsError, usage: Usage) -> None:
        """Ends the stream with an error. ``usage`` lacks the time of the first text."""
        self._stream.put(Failed(error, self._timed(usage)))

    def _joined(self, output: StepOutput) -> Delta:
        """All of the step in one: a reader that has left can notice it only between two events."""
        return Delta.joined([self._delta(output, place) for place in range(len(output.sampled))])

    def _delta(self, output: StepOutput, place: int) -> Delta:
        """The event of one token of a step."""
        draw, is_last = output.sampled[place], place == len(output.sampled) - 1
        if is_last and output.has_end_token:
            return Delta(self.text.finish(draw.token), (), ())
        text = self.text.push(draw.token) if output.texts is None else output.texts[place]
        if is_last and output.reason is not None:
            text += self.text.finish()
        logprobs = () if draw.logprob is None else (self._token_logprob(draw),)
        return Delta(text, (draw.token,), logprobs)

    def _timed(self, usage: Usage) -> Usage:
        return usage if self._first_text is None else replace(usage, first_token_s=self._first_text - self._submitted)

    def _token_logprob(self, sampled: SampledToken) -> TokenLogprob:
        assert sampled.logprob is not None
        top = tuple(self._logprob(token, logprob) for token, logprob in sampled.top)
        return self._logprob(sampled.token, sampled.logprob, top)

    def _logprob(self, token: int, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        text, data = self._tokenizer.token_text(token), self._tokenizer.token_bytes(token)
        return TokenLogprob(token, text, data, logprob, top)


def text_stream(request: Request, tokenizer: Tokenizer) -> TextStream:
    """The text of a request's answer, without its first token. Raises RequestError for an empty stop string."""
    return TextStream(
        tokenizer,
        stop=request.sampling.stop,
        trim_space=request.trim_space and request.grammar is None,  # a grammar says itself where spaces are
        spelled=request.spelled_tokens,
    )
