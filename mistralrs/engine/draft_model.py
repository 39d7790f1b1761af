"""A smaller model that proposes draft tokens: its own KV blocks, and for each sequence the tokens that it has read.

It samples as the sequence's request does, with the same random numbers, because the same choice is then likelier where
two models agree in their probabilities but not in the most likely token.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from mistralrs.engine.acceptance import Acceptance
from mistralrs.engine.batch import Batch, CancelFlag
from mistralrs.engine.config import EngineConfig
from mistralrs.engine.draft_gain import DraftGain
from mistralrs.engine.kv.kv_cache_manager import KvCacheManager
from mistralrs.engine.model_executor import ModelExecutor
from mistralrs.engine.sampling.sampling_input import SampledToken, SamplingInput, TokenSampler
from mistralrs.engine.scheduler import MAX_DRAFT_BATCH, Chunk, Plan
from mistralrs.engine.sequence import Sequence
from mistralrs.ops.buffer import Buffer

FIRST_CHANCE = 0.6
"""The chance of a draft token before any was tried."""
READ_AT_ONCE = 128
"""Tokens that it reads of a text beside one step, at most, so that streams do not stall."""
LEAST_CONTEXT = 16
"""Tokens from which on it is worth reading only the end of a text."""


@dataclass(frozen=True, slots=True)
class ModelToDraft:
    """A model that was placed for drafts."""

    executor: ModelExecutor
    config: EngineConfig
    """Its limits; it drafts for ``max_seqs`` sequences at once."""


@dataclass(slots=True, eq=False)
class DraftText:
    """The state of one sequence in the draft model."""

    start: int
    """The sequence's tokens before this one are not read."""
    sequence: Sequence
    """The tokens from ``start`` on, with blocks of the draft model."""
    ahead: list[int] = field(default_factory=list)
    """Draft tokens that were computed after the known ones."""
    acceptance: Acceptance = field(default_factory=lambda: Acceptance(FIRST_CHANCE))


class DraftModel:
    """Proposes draft tokens for a few sequences at once. The engine's thread alone uses it."""

    def __init__(
        self,
        model: ModelToDraft,
        *,
        sampling_input: Callable[[Sequence, list[int]], SamplingInput],
    ) -> None:
        """``sampling_input``: everything but the logits that decides the token after these of a sequence."""
        self.sampler: TokenSampler | None = None
        """Samples from this model's logits. The engine's thread sets it before the first draft."""
        config = model.config
        self.blocks = KvCacheManager(config)
        self._executor = model.executor
        self.vocab_size = model.executor.vocab_size
        self._config = config
        self._sampling_input = sampling_input
        self._texts: dict[int, DraftText] = {}  # by the sequence's number; least recently used first
        self._overall = Acceptance(FIRST_CHANCE)
        # Tokens of a text to which draft tokens can be added.
        self._most = config.max_model_len - MAX_DRAFT_BATCH
        # Tokens of each text that one pass may have left to read.
        self._few = max(min(LEAST_CONTEXT, config.max_batch_tokens // config.max_seqs), 1)
        self._cancel_flag = CancelFlag()  # never set: a pass that ends early would leave undefined KV

    def chance(self, sequence: Sequence) -> float:
        """The chance of its next draft token for a sequence."""
        text = self._texts.get(sequence.id)
        return (self._overall if text is None else text.acceptance).chance

    def most(self, sequence: Sequence) -> int:
        """Draft tokens of a sequence that may be tried at once: a trial is one, and others follow what it shows."""
        text = self._texts.get(sequence.id)
        return 1 if text is None else 1 + int(text.acceptance.tried)

    def read(self, sequence: Sequence, gain: DraftGain | None) -> bool:
        """Brings the model up to the known tokens. Returns whether it got there and can propose the next ones.

        ``gain``: gets the seconds that it took, and limits the tokens of a text that are read; None: nothing does.
        """
        text = self._text(sequence, len(sequence.tokens) if gain is None else gain.affordable_tokens)
        if text is None:
            return False
        own, started, read = text.sequence, time.perf_counter(), 0
        while own.num_remaining > self._few and (gain is None or read < READ_AT_ONCE) and self._extend(own):
            count = min(own.num_remaining - 1, READ_AT_ONCE, self._config.max_batch_tokens)
            self._forward([Chunk(own, own.num_computed, count, samples=False)])
            own.num_computed += count
            self.blocks.commit(own)
            read += count
        if gain is not None and read:
            gain.on_reading(read, time.perf_counter() - started)
        return own.num_remaining <= self._few

    def propose(self, counts: list[tuple[Sequence, int]], gain: DraftGain | None) -> dict[int, tuple[int, ...]]:
        """Up to so many draft tokens for each of these sequences, all of which were read, by their numbers."""
        counts = [(sequence, count) for sequence, count in counts if self._has_room(sequence, count)]
        texts = {sequence.id: self._texts[sequence.id] for sequence, _ in counts}
        drafts: dict[int, list[int]] = {sequence.id: [] for sequence, _ in counts}
        for place in range(max((count for _, count in counts), default=0)):
            started = time.perf_counter()
            drawing = [
                sequence
                for sequence, count in counts
                if count > place == len(drafts[sequence.id]) and self.blocks.extend(texts[sequence.id].sequence)
            ]
            if not drawing:
                break
            self._draw(drawing, drafts)
            if gain is not None:
                gain.on_pass(time.perf_counter() - started)
        for sequence, _ in counts:
            text, own = texts[sequence.id], texts[sequence.id].sequence
            known = len(sequence.tokens) - text.start
            text.ahead = own.tokens[known : own.num_computed]
            del own.tokens[known:]
            own.num_computed = min(own.num_computed, known)
        return {number: tuple(draft) for number, draft in drafts.items()}

    def record_acceptance(self, sequence: Sequence, drafted: int, accepted: int) -> None:
        """Records how many draft tokens were right."""
        self._overall.record(drafted, accepted)
        text = self._texts.get(sequence.id)
        if text is not None:
            text.acceptance.record(drafted, accepted)

    def rest(self, sequence: Sequence) -> None:
        """Lets it forget a little of how few of its tokens were right for a sequence that it could propose for."""
        self._overall.fade()
        text = self._texts.get(sequence.id)
        if text is not None:
            text.acceptance.fade()

    def ended(self, sequence: Sequence) -> None:
        """Frees the blocks of a sequence; those that it filled stay findable."""
        text = self._texts.pop(sequence.id, None)
        if text is not None:
            self.blocks.release(text.sequence, retain=True)

    def _text(self, sequence: Sequence, affordable: int) -> DraftText | None:
        """The state of a sequence, with its known tokens; None if there is no room, or too little may be read."""
        text, known = self._texts.pop(sequence.id, None), len(sequence.tokens)
        acceptance = Acceptance(self._overall.chance) if text is None else text.acceptance
        if text is not None:
            if self._is_stale(text, known, affordable):
                self.blocks.release(text.sequence, retain=True)
                text = None
            else:
                self._synchronize(text, sequence)
                if max(text.sequence.tokens[text.sequence.num_computed :]) >= self.vocab_size:
                    self.blocks.release(text.sequence, retain=True)
                    return None
        if text is None:
            start = 0 if known <= affordable and known < self._most else known - min(affordable, self._most // 2)
            if (start and known - start < LEAST_CONTEXT) or max(sequence.tokens[start:]) >= self.vocab_size:
                return None
            text = self._admitted(DraftText(start, self._own(sequence, start), acceptance=acceptance))
            if text is None:
                return None
        self._texts[sequence.id] = text
        return text

    def _is_stale(self, text: DraftText, known: int, affordable: int) -> bool:
        """Whether a text is better read anew: it has outgrown the context, it is far behind, or all of it may be read
        now where only its end was."""
        behind = known - text.start - text.sequence.num_computed - len(text.ahead)
        is_too_long = known - text.start >= self._most
        may_begin_earlier = text.start > 0 and known < affordable and known < self._most // 2
        return is_too_long or may_begin_earlier or behind > max(affordable, LEAST_CONTEXT)

    def _own(self, sequence: Sequence, start: int) -> Sequence:
        sampling = replace(sequence.sampling, logprobs=None)
        tokens = sequence.tokens[start:]
        return Sequence(sequence.id, tokens, sampling, self._config.max_model_len, cache_salt=sequence.cache_salt)

    def _admitted(self, text: DraftText) -> DraftText | None:
        """The same with blocks, if need be those of the sequences that were not drafted for longest."""
        own = text.sequence
        while True:
            beside = [other.sequence for other in self._texts.values()]
            if len(beside) < self._config.max_seqs:
                if self.blocks.admit(own, beside=beside):
                    return text
                own.reuse = False  # it waits for no other text that begins alike
                if self.blocks.admit(own, beside=beside):
                    return text
            if not self._drop_oldest(own):
                return None

    def _extend(self, own: Sequence) -> bool:
        """Gives a text the blocks for its known tokens, if need be those of others. Returns whether it got them."""
        while not self.blocks.extend(own):
            if not self._drop_oldest(own):
                return False
        return True

    def _drop_oldest(self, beside: Sequence) -> bool:
        """Frees the blocks of the text that was not drafted for longest. Returns False if there is no other."""
        for number, text in self._texts.items():
            if text.sequence is not beside:
                del self._texts[number]
                self.blocks.release(text.sequence, retain=True)
                return True
        return False

    def _synchronize(self, text: DraftText, sequence: Sequence) -> None:
        """Takes the tokens that are known now. Accepted draft tokens were computed already."""
        own = text.sequence
        new = sequence.tokens[text.start + len(own.tokens) :]
        if own.num_computed == len(own.tokens):
            for token, computed in zip(new[:-1], text.ahead, strict=False):
                if token != computed:
                    break
                own.num_computed += 1
        own.tokens += new
        text.ahead = []
        # The last known token is always computed, for its logits.
        own.num_computed = min(own.num_computed, len(own.tokens) - 1)
        self.blocks.commit(own)

    def _has_room(self, sequence: Sequence, count: int) -> bool:
        """Gives a text the blocks that it needs with draft tokens. Returns whether there are enough."""
        text = self._texts.get(sequence.id)
        return text is not None and self.blocks.extend(text.sequence, ahead=count)

    def _draw(self, sequences: list[Sequence], drafts: dict[int, list[int]]) -> None:
        """Computes what is left of these texts and appends a draft token to each. One whose logits are unusable gets
        none."""
        assert self.sampler is not None, "the engine's thread has not started"
        texts = [self._texts[sequence.id].sequence for sequence in sequences]
        logits = self._forward([Chunk(text, text.num_computed, text.num_remaining, samples=True) for text in texts])
        inputs = [self._sampling_input(sequence, [*sequence.tokens, *drafts[sequence.id]]) for sequence in sequences]
        sampled = self.sampler.sample(logits, [self._within_vocabulary(each) for each in inputs])
        for sequence, text, token in zip(sequences, texts, sampled, strict=True):
            text.num_computed = len(text.tokens)
            if isinstance(token, SampledToken):
                text.tokens.append(token.token)
                drafts[sequence.id].append(token.token)

    def _within_vocabulary(self, item: SamplingInput) -> SamplingInput:
        """The same without tokens that this model does not have: those that pad the target's vocabulary."""
        size, params = self.vocab_size, item.params
        if any(token >= size for token, _ in params.logit_bias):
            bias = tuple((token, value) for token, value in params.logit_bias if token < size)
            item = replace(item, params=replace(params, logit_bias=bias))
        if any(token >= size for token in item.banned):
            item = replace(item, banned=tuple(token for token in item.banned if token < size))
        return item

    def _forward(self, chunks: list[Chunk]) -> Buffer:
        batch = Batch.from_plan(Plan(chunks), block_size=self._config.block_size)
        return self._executor.forward(batch, self._cancel_flag)
