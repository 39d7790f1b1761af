"""Proposes the draft tokens of a step: by prompt lookup, by a draft model, or those that a grammar forces."""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Row
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mistralrs.engine.copy_source import WordPart, word_part
from mistralrs.engine.draft_gain import DraftGain, Offer
from mistralrs.engine.ngram_proposer import NgramProposer
from mistralrs.engine.recent_texts import RecentTexts
from mistralrs.engine.sequence import Sequence

if TYPE_CHECKING:
    from mistralrs.engine.scheduler import Chunk

logger = logging.getLogger(__name__)

DOUBT = 0.45
"""Share of a draft's chance that counts for a sequence whose earlier drafts cost more than they gave."""


class ModelProposer(Protocol):
    """The interface of a draft model. Sequences are the target's."""

    def chance(self, sequence: Sequence) -> float:
        """The chance that the next draft token is accepted."""
        ...

    def most(self, sequence: Sequence) -> int:
        """Draft tokens that may be tried at once where they have to gain, at least one."""
        ...

    def read(self, sequence: Sequence, gain: DraftGain | None) -> bool:
        """Brings the model up to the known tokens, or nearer. Returns whether it can propose the next ones."""
        ...

    def propose(self, counts: list[tuple[Sequence, int]], gain: DraftGain | None) -> dict[int, tuple[int, ...]]:
        """Up to so many draft tokens for each of these sequences, all of which were read, by their numbers."""
        ...

    def record_acceptance(self, sequence: Sequence, drafted: int, accepted: int) -> None:
        """Records how many draft tokens were right."""

    def rest(self, sequence: Sequence) -> None:
        """Records that a sequence has no draft tokens in a step, because they promised no gain."""

    def ended(self, sequence: Sequence) -> None:
        """Frees what the model has of a sequence. Idempotent."""


@dataclass(frozen=True, slots=True)
class _Proposal:
    """Draft tokens of a sequence that cost nothing, or ``count`` tokens that the draft model is to compute."""

    sequence: Sequence
    tokens: tuple[int, ...]
    chances: tuple[float, ...] = ()
    """The chances of these tokens, or that of all."""
    count: int = 0

    @property
    def offer(self) -> Offer:
        chance = self.chances[-1] if self.chances else 0.0
        return Offer(chance, self.count or len(self.tokens), from_model=self.count > 0, chances=self.chances)


class Drafter:
    """Proposes for the sequences of a step that decodes. The engine's thread alone uses it."""

    def __init__(
        self,
        *,
        gain: DraftGain | None = None,
        model: ModelProposer | None = None,
        token_bytes: Callable[[int], bytes] | None = None,
    ) -> None:
        """``gain``: decides how many draft tokens there are; None: as many as there may be. ``token_bytes``: the bytes
        that a token spells; None: nobody knows words."""
        self.gain = gain
        self.model = model
        self._token_bytes = token_bytes
        self._parts: dict[int, WordPart] = {}
        self._recent = RecentTexts()
        self._from_model: set[int] = set()  # sequences whose last draft was the model's

    def add(self, sequence: Sequence) -> None:
        """Lets a new sequence search the texts of those that ended before."""
        sequence.ngram_proposer = NgramProposer(self._recent, sequence.cache_salt, part=self._part_of)

    def ended(self, sequence: Sequence) -> None:
        """Keeps the text of a sequence that ended, and frees what the draft model has of it."""
        sequence.ngram_proposer.ended(sequence.tokens)
        self._from_model.discard(sequence.id)
        if self.model is not None:
            self.model.ended(sequence)

    def propose(
        self, sequences: Row[Sequence], limits: Row[int], rows: int, *, in_parts: bool = False
    ) -> tuple[list[tuple[int, ...]], bool]:
        """Draft tokens for each sequence, at most as many as its limit, and whether they are best computed in parts.
        ``rows``: how many the step has room for. ``in_parts``: whether there may be parts."""
        proposals = [self._proposal(each, limit) for each, limit in zip(sequences, limits, strict=True)]
        if not any(proposal.tokens or proposal.count for proposal in proposals):
            return [()] * len(proposals), False
        if self.gain is None:
            counts = [proposal.offer.limit for proposal in proposals]
        else:
            counts, in_parts = self.gain.choose([each.offer for each in proposals], rows, in_parts=in_parts)
        drafts = {} if self.model is None else self._computed(proposals, counts, model=self.model)
        for proposal, count in zip(proposals, counts, strict=True):
            if proposal.tokens:
                drafts[proposal.sequence.id] = proposal.tokens[:count]
        return [drafts.get(each.id, ()) for each in sequences], in_parts

    def record_acceptance(self, sequence: Sequence, drafted: int, accepted: int) -> None:
        """Records how many draft tokens of a step were right."""
        if self.model is not None and sequence.id in self._from_model:
            self.model.record_acceptance(sequence, drafted, accepted)
        sequence.ngram_proposer.record_acceptance(drafted, accepted)

    def on_step(self, chunks: Row[Chunk], tokens: int, seconds: float, *, num_parts: int = 1) -> None:
        """Records a step that was committed: ``tokens`` came of it in ``seconds``, those for drafts included.
        ``num_parts``: parts in which draft tokens were computed."""
        if self.gain is None or not chunks:
            return
        if all(chunk.samples and chunk.num_committed == 1 for chunk in chunks):
            rows = sum(1 + len(chunk.draft_tokens) for chunk in chunks)
            self.gain.on_step(len(chunks), rows, tokens=tokens, seconds=seconds, num_parts=num_parts)
            self._settle(chunks, rows, gain=self.gain, num_parts=num_parts)
        else:
            self.gain.on_prefill(seconds)

    def _settle(self, chunks: Row[Chunk], rows: int, *, gain: DraftGain, num_parts: int) -> None:
        """Charges the sequences of a step with the time that their draft tokens took."""
        drafted = rows - len(chunks)
        each = gain.extra_steps(len(chunks), rows, num_parts=num_parts) / drafted if drafted else 0.0
        for chunk in chunks:
            chunk.sequence.ngram_proposer.settle(each * len(chunk.draft_tokens))

    def _part_of(self, token: int) -> WordPart:
        """The part of a word that a token spells."""
        if self._token_bytes is None:
            return WordPart.NONE
        part = self._parts.get(token)
        if part is None:
            part = self._parts[token] = word_part(self._token_bytes(token))
        return part

    def _proposal(self, sequence: Sequence, limit: int) -> _Proposal:
        self._from_model.discard(sequence.id)
        if limit <= 0:
            return _Proposal(sequence, ())
        proposer, constraint = sequence.ngram_proposer, sequence.constraint
        if constraint is not None and constraint.forced:
            return _Proposal(sequence, constraint.allowed(tuple(constraint.forced)[:limit]), (1.0,))
        tokens, chances = proposer.propose(sequence.tokens, limit), proposer.chances()
        if proposer.balance < 0 and chances and self.gain is not None:
            chances = (chances[0] * DOUBT, *chances[1:])
        if constraint is not None:
            tokens = constraint.allowed(tokens)
        if self.model is not None and not (tokens and chances and chances[0] >= self.model.chance(sequence)):
            most = limit if self.gain is None else min(limit, self.model.most(sequence))
            return _Proposal(sequence, (), (self.model.chance(sequence),), count=most)
        return _Proposal(sequence, tokens, chances)

    def _computed(
        self, proposals: Row[_Proposal], counts: Row[int], *, model: ModelProposer
    ) -> dict[int, tuple[int, ...]]:
        """The draft model's tokens by sequence. A model that fails is used no more."""
        try:
            for proposal, count in zip(proposals, counts, strict=True):
                if proposal.count and not count:
                    model.rest(proposal.sequence)
            wanted = [
                (proposal.sequence, count)
                for proposal, count in zip(proposals, counts, strict=True)
                if proposal.count and count and model.read(proposal.sequence, self.gain)
            ]
            drafts = model.propose(wanted, self.gain)
        except Exception:
            logger.exception("the draft model failed: answers go on without it")
            self.model = None
            return {}
        for sequence, _ in wanted:
            if sequence.constraint is not None:
                drafts[sequence.id] = sequence.constraint.allowed(drafts.get(sequence.id, ()))
        self._from_model.update(number for number, draft in drafts.items() if draft)
        return drafts
