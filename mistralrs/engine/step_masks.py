"""The masks of one step, computed while its forward pass runs."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mistralrs.engine.scheduler import Plan
from mistralrs.engine.sequence_constraint import SequenceConstraint
from mistralrs.errors import EngineError, MistralrsError, RequestError

if TYPE_CHECKING:
    from mistralrs.grammar.constraint import MaskExecutor

logger = logging.getLogger(__name__)

WORD_BITS = 32
"""Tokens of a word of a mask, the first of them in its lowest bit."""


@dataclass(frozen=True, slots=True)
class _Job:
    """The masks of one sequence: for the next token in ``row``, and after each draft token in the rows behind it."""

    number: int
    constraint: SequenceConstraint
    row: int
    drafts: tuple[int, ...]

    @property
    def forced(self) -> list[int]:
        """The tokens that are the only ones allowed in the first rows."""
        return list(self.constraint.forced)[: 1 + len(self.drafts)]

    @property
    def is_open(self) -> bool:
        """Whether a row is left whose mask the grammar gives."""
        return len(self.forced) <= len(self.drafts)


class StepMasks:
    """Computes masks in a thread of its own, and those of several sequences in parallel. The engine's thread uses it.

    Between ``start`` and ``finish`` no constraint of the plan may be used.
    """

    def __init__(self, mask_words: int) -> None:
        """``mask_words``: words of a mask; its bits are the columns of the logits, or more."""
        self._words = mask_words
        self._thread = ThreadPoolExecutor(1, "mistralrs-masks")
        self._executor: MaskExecutor | None = None
        self._jobs: list[_Job] = []
        self._buffer = bytearray()
        self._future: Future[None] | None = None

    def start(self, plan: Plan) -> None:
        """Begins with the masks of the rows that the plan samples."""
        self._jobs, rows = [], 0
        for chunk in plan.chunks:
            if chunk.samples and chunk.sequence.constraint is not None:
                self._jobs.append(_Job(chunk.sequence.id, chunk.sequence.constraint, rows, chunk.draft_tokens))
                rows += 1 + len(chunk.draft_tokens)
        if self._jobs:
            if len(self._buffer) < 4 * rows * self._words:
                self._buffer = bytearray(4 * rows * self._words)
            self._future = self._thread.submit(self._compute, self._jobs)

    def finish(self) -> tuple[dict[int, Sequence[memoryview]], dict[int, MistralrsError]]:
        """The masks by sequence, and the errors of the sequences that cannot go on.

        A sequence has a mask, uint32 (mask words,), for the next token and one after each draft token, valid until the
        next ``start``.
        """
        masks: dict[int, Sequence[memoryview]] = {}
        errors: dict[int, MistralrsError] = {}
        if self._future is None:
            return masks, errors
        future, self._future = self._future, None
        for job in self._jobs:
            try:
                future.result()
                masks[job.number] = self._masks(job)
            except RequestError as error:
                errors[job.number] = error
            except Exception as error:
                logger.exception("the masks of a step could not be computed")
                message = f"the masks of the grammar failed: {type(error).__name__}: {error}"
                errors[job.number] = EngineError(message)
        return masks, errors

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown()

    def _compute(self, jobs: Sequence[_Job]) -> None:
        from mistralrs.grammar.constraint import MaskExecutor  # here, because the engine loads without it

        if self._executor is None:
            self._executor = MaskExecutor()
        jobs = [job for job in jobs if job.is_open]
        with_drafts = [job for job in jobs if job.drafts]
        masks = memoryview(self._buffer)
        self._executor.masks_with_drafts([(job.constraint.probe, job.row, job.drafts) for job in with_drafts], masks)
        self._executor.masks([(job.constraint.state, job.row) for job in jobs], masks)

    def _masks(self, job: _Job) -> Sequence[memoryview]:
        words = memoryview(self._buffer).cast("I")
        starts = range(job.row * self._words, (job.row + 1 + len(job.drafts)) * self._words, self._words)
        rows = [words[start : start + self._words] for start in starts]
        if job.is_open:
            job.constraint.state.check()
            if job.drafts and not _is_sound(job):
                for row in rows[1:]:
                    _clear(row)  # a row without a token accepts no draft token
        for row, token in zip(rows, job.forced, strict=False):
            _clear(row)
            row[token // WORD_BITS] = 1 << token % WORD_BITS
        if job.constraint.ignored_ends:
            for row in rows:
                _clear_ends(row, job.constraint.ignored_ends)
        return rows


def mask_of(token: int, vocab_size: int) -> memoryview:
    """A mask that allows one token alone."""
    mask = memoryview(bytearray(4 * -(-vocab_size // WORD_BITS))).cast("I")
    mask[token // WORD_BITS] = 1 << token % WORD_BITS
    return mask


def _is_sound(job: _Job) -> bool:
    """Whether the masks after the draft tokens are right."""
    try:
        job.constraint.probe.check()
    except RequestError:
        return False
    return True


def _clear(mask: memoryview) -> None:
    mask.cast("B")[:] = bytes(mask.nbytes)


def _clear_ends(mask: memoryview, ends: Iterable[int]) -> None:
    """Takes end tokens out of a mask that has other tokens."""
    before = bytes(mask)
    for token in ends:
        mask[token // WORD_BITS] &= ~(1 << token % WORD_BITS)
    if not any(mask):
        mask.cast("B")[:] = before
