"""The state of one running request: its sequence, its times, and what its next step needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Row
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from mistralrs.engine.answer_events import AnswerEvents, StepOutput
from mistralrs.engine.config import Request
from mistralrs.engine.events import FinishReason, Handle, Usage
from mistralrs.engine.prompt_outputs import Pooler, PromptLogprobsCollector, ScalingsCollector
from mistralrs.engine.sampling.dry_penalty import Dry
from mistralrs.engine.sampling.sampling_input import NoTokenError, SampledToken, SamplingInput, TokenSampler
from mistralrs.engine.sequence import Sequence
from mistralrs.engine.step_masks import mask_of
from mistralrs.engine.thinking_limit import ThinkingLimit
from mistralrs.errors import EngineError, MistralrsError, RequestError
from mistralrs.ops.buffer import Buffer

if TYPE_CHECKING:
    from mistralrs.text.tokenizer import Tokenizer


class RequestState:
    """Decides from sampled tokens how an answer goes on, and has its events delivered. Times are seconds of one
    monotonic clock."""

    def __init__(
        self,
        sequence: Sequence,
        stream: Handle,
        *,
        request: Request,
        tokenizer: Tokenizer,
        submitted: float,
        deliver: Callable[[Callable[[], None]], None],
    ) -> None:
        """``deliver``: takes the calls that deliver the events, in their order."""
        self.sequence = sequence
        self.stream = stream
        self.deadline = math.inf if request.deadline_s is None else submitted + request.deadline_s
        self._tokenizer = tokenizer
        self._deliver = deliver
        self._events = AnswerEvents(stream, request, tokenizer=tokenizer, submitted=submitted)
        # The text decides where an answer ends only if it may have a stop string.
        self._stop_text = self._events.text if request.sampling.stop else None
        self._submitted = submitted
        self._first_token: float | None = None
        self._last_token = submitted
        self._end_ids = tuple(sequence.end_ids)
        self._hooks = request.hooks
        self._thinking = None if request.thinking is None else ThinkingLimit(request.thinking, self._spell)
        self._has_logprobs = request.sampling.logprobs is not None  # those of forced tokens need a step of their own
        self._draft_sampling = replace(request.sampling, logprobs=None)
        self._dry = Dry(request.sampling, self._spell) if request.sampling.dry_multiplier else None
        prompt, num_logprobs = sequence.tokens, request.prompt_logprobs
        self._prompt_logprobs = None if num_logprobs is None else PromptLogprobsCollector(prompt, num_logprobs)
        self._pooler = None if request.pooling is None else Pooler.of(request, len(prompt))
        self.scalings = ScalingsCollector() if request.wants_scalings else None
        """Collects the scalings of computed tokens; None: the request does not ask for them."""

    @property
    def wants_prompt_outputs(self) -> bool:
        """Whether ``on_prompt_logits`` is to be called for each chunk of the prompt."""
        return self._prompt_logprobs is not None or self._pooler is not None

    @property
    def samples_late(self) -> bool:
        """Whether its tokens are sampled after the forward pass: masks of a grammar are computed beside the pass, and
        outputs of a prompt come first."""
        return not (self.sequence.constraint is None and self._prompt_logprobs is None and self._pooler is None)

    def on_prompt_logits(
        self, start: int, count: int, logits: Buffer, *, sampler: TokenSampler, hidden: Callable[[int, int], Buffer]
    ) -> None:
        """Collects log-probabilities and hidden states of the prompt tokens ``start`` to ``start + count``.

        ``logits``: float32 (positions, vocab_size or more) of the positions that the sequence has not scored yet.
        ``hidden(i, j)``: float32 hidden states (j - i, size) of tokens i to j of the chunk. Raises EngineError if they
        are not finite.
        """
        if self._prompt_logprobs is not None:
            self._prompt_logprobs.add(logits, sampler)
            if self._prompt_logprobs.complete:
                self._deliver(partial(self._events.on_prompt_logprobs, self._prompt_logprobs.sampled_tokens))
                self._prompt_logprobs = None
        if self._pooler is not None:
            self._pooler.add(start, count, hidden)
            if start + count == self.sequence.num_prompt:
                self._deliver(partial(self._events.put, self._pooler.embedding()))

    @property
    def pools(self) -> bool:
        """Whether the request yields an embedding."""
        return self._pooler is not None

    def sampling_inputs(self, draft: tuple[int, ...], masks: Row[memoryview] = ()) -> list[SamplingInput]:
        """Inputs for sampling the next token, and the token after each of the draft tokens ``draft``.

        ``masks``: one for each of them, if the request has a grammar.
        """
        known, forced = self.sequence.tokens, self._next_forced
        if not draft and not masks and forced is None:
            return [self._sampling_input(known, None)]
        texts = [known, *([*known, *draft[: place + 1]] for place in range(len(draft)))]
        every: list[memoryview | None] = [*masks] or [None] * len(texts)
        if forced is not None:  # log-probabilities need a row for it
            every[0] = mask_of(forced, self._tokenizer.vocab_size)
        return [self._sampling_input(tokens, mask) for tokens, mask in zip(texts, every, strict=True)]

    def draft_input(self, tokens: list[int]) -> SamplingInput:
        """Input for sampling the token after ``tokens`` from the logits of another model."""
        return replace(self._sampling_input(tokens, None), params=self._draft_sampling)

    def _sampling_input(self, tokens: list[int], mask: memoryview | None) -> SamplingInput:
        banned = self._end_ids if self._is_too_early(len(tokens)) else ()
        hooks = () if self._hooks is None else self._hooks.logits_processors
        ends = self.sequence.end_ids
        return SamplingInput(self.sequence.sampling, tokens, mask, banned=banned, dry=self._dry, hooks=hooks, ends=ends)

    def _is_too_early(self, num_tokens: int) -> bool:
        """Whether no end may follow ``num_tokens`` tokens."""
        return num_tokens - self.sequence.num_prompt < self.sequence.sampling.min_tokens

    def on_tokens(self, rows: Row[SampledToken | EngineError], draft: tuple[int, ...], now: float) -> StepOutput:
        """The output of a step, up to a token that ends the stream. The scheduler has not committed its tokens yet.

        ``rows``: what was sampled after the known tokens, and after each of the draft tokens. Raises RequestError if
        the request's grammar cannot go on.
        """
        if self._first_token is None:
            self._first_token = now
        self._last_token = now
        sampled: list[SampledToken] = []
        texts: list[str] | None = None if self._stop_text is None else []
        reason: FinishReason | None = None
        has_end_token = False
        num_forced = 0
        num_known = len(self.sequence.tokens)
        for draw, was_sampled in self._tokens_of_step(rows, draft):
            sampled.append(draw)
            num_forced += not was_sampled
            reason = self.sequence.reason_after(draw.token, num_known + len(sampled))
            if reason == "stop":
                self._require_end(num_known + len(sampled) - 1)
                has_end_token = True
            elif self._stops_after(sampled, texts, reason):
                reason = "stop"
            if reason is not None:
                break
        return StepOutput(sampled, reason, has_end_token, num_forced, texts)

    def publish(self, output: StepOutput, now: float) -> None:
        """Has the output of a step delivered."""
        self._deliver(partial(self._events.on_step, output, now))

    def _tokens_of_step(
        self, rows: Row[SampledToken | EngineError], draft: tuple[int, ...]
    ) -> Iterator[tuple[SampledToken, bool]]:
        """Yields forced tokens, and between them the sampled ones whose rows follow accepted draft tokens; with each,
        whether it was sampled. A draft token is accepted if it equals the token in its place.

        The next step samples again where logits were unusable, after known tokens, and reports the error then.
        """
        num_rows = len(rows)  # rows that follow the tokens so far, or may
        place = 0
        while True:
            forced = self._next_forced
            row = rows[place] if place < num_rows else None
            jumps = forced is not None and not self._has_logprobs
            if forced is not None and jumps:
                row = SampledToken(forced)
            if not isinstance(row, SampledToken) or forced not in (None, row.token):
                return
            yield row, not jumps
            if place >= len(draft) or row.token != draft[place]:
                num_rows = 0
            place += 1

    @property
    def _next_forced(self) -> int | None:
        """The token that comes next whatever the logits are, because of the grammar or the thought's end."""
        constraint = self.sequence.constraint
        forced = None if constraint is None else constraint.next_forced
        return self._thinking.next_forced if forced is None and self._thinking is not None else forced

    def _stops_after(self, sampled: list[SampledToken], texts: list[str] | None, reason: FinishReason | None) -> bool:
        """Whether the stream ends with the last of the step's tokens ``sampled``, which is no end token.

        ``texts``: gets its text if that may have a stop string. ``reason``: why the stream ends in any case.
        """
        token, constraint = sampled[-1].token, self.sequence.constraint
        if self._thinking is not None:
            self._thinking.accept(token)
        if self._stop_text is not None and texts is not None:
            texts.append(self._stop_text.push(token))
            if self._stop_text.stopped:
                return True
        if constraint is not None:
            if constraint.accept(token):
                self._require_end(len(self.sequence.tokens) + len(sampled))
                return True
            if reason is not None and constraint.may_only_end():
                return True  # nothing was cut off
        if self._hooks is None:
            return False
        return self._hooks.stops((*self.sequence.tokens, *(draw.token for draw in sampled)))

    def _require_end(self, num_tokens: int) -> None:
        """Raises RequestError if the answer may not end after ``num_tokens`` tokens: a forced token makes it end."""
        if self._is_too_early(num_tokens):
            raise self._too_early()

    def _too_early(self) -> RequestError:
        """The error for an answer that its grammar or the end of its thought would end before ``min_tokens``."""
        least = self.sequence.sampling.min_tokens
        if self.sequence.constraint is not None:
            message = f"the grammar ends the answer before its {least}th token"
            return RequestError(message, hint="lower min_tokens", code="grammar_failed", param="min_tokens")
        return RequestError(
            f"the end of the thought has an end token, and comes before the answer's {least}th token",
            hint="lower min_tokens, or leave that token out of stop_token_ids",
            code="no_token",
            param="min_tokens",
        )

    def explain(self, error: EngineError) -> MistralrsError:
        """The request's error for a row in which no token could be sampled."""
        if not isinstance(error, NoTokenError):
            return error
        too_early = self._is_too_early(len(self.sequence.tokens))
        if self.sequence.constraint is None:
            return self._too_early() if too_early and self._next_forced is not None else error
        return RequestError(
            "the answer cannot go on: every token that the grammar allows is excluded",
            hint="lower min_tokens" if too_early else "check logit_bias and logits processors",
            code="grammar_failed",
            param="min_tokens" if too_early else "logit_bias",
        )

    def finish(self, reason: FinishReason, now: float) -> None:
        """Ends the stream."""
        if self.scalings is not None:
            self._deliver(partial(self._events.put, self.scalings.collected(self.sequence.tokens)))
        self._deliver(partial(self._events.on_finished, reason, self._usage(now)))

    def fail(self, error: MistralrsError, now: float) -> None:
        """Ends the stream with an error."""
        self._deliver(partial(self._events.on_failed, error, self._usage(now)))

    def _spell(self, token: int) -> bytes:
        """A token's bytes; for a control token, those of its name."""
        return self._tokenizer.token_bytes(token) or self._tokenizer.token_text(token).encode()

    def _usage(self, now: float) -> Usage:
        """The usage so far, without the time of the first text."""
        first = now if self._first_token is None else self._first_token
        return Usage(
            prompt_tokens=self.sequence.num_prompt,
            cached_tokens=self.sequence.num_cached or 0,
            completion_tokens=len(self.sequence.tokens) - self.sequence.num_prompt,
            prompt_s=first - self._submitted,
            completion_s=max(self._last_token - first, 0.0),
            first_token_s=0.0,
            seed=self.sequence.sampling.seed,
            drafted_tokens=self.sequence.ngram_proposer.num_drafted,
            accepted_tokens=self.sequence.ngram_proposer.num_accepted,
        )
