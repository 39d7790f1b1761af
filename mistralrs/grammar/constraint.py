"""The state of a grammar in one answer: masks of the tokens that may come next, and masks of many answers at once."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from llguidance import LLExecutor, LLMatcher

from mistralrs.errors import RequestError
from mistralrs.grammar.library_limits import is_dead_end, reason_of
from mistralrs.grammar.token_table import TokenTable

WritableBuffer: TypeAlias = "bytearray | memoryview | array[int]"
_WORD_BYTES = 4


class GrammarConstraint:
    """The state of a compiled grammar after the tokens of one answer. One thread at a time may use it.

    Masks are int32 words, the lowest bit first: token ``t`` is bit ``t % 32`` of word ``t // 32``. The end tokens are
    allowed exactly where the grammar accepts. A grammar that becomes too expensive to go on with, or that has led to a
    place from where no answer can end, raises RequestError with the code ``grammar_failed``.
    """

    def __init__(self, matcher: LLMatcher, table: TokenTable) -> None:
        self._matcher = matcher
        self._table = table
        self._ended = 0  # end tokens that were accepted: 0 or 1

    @property
    def is_accepting(self) -> bool:
        """Whether the answer may end here. After an end token it is over, which counts as well."""
        return self._ended > 0 or self._matcher.is_accepting()

    @property
    def must_end(self) -> bool:
        """Whether nothing but an end token may follow."""
        return self._ended > 0 or (self._matcher.is_stopped() and self._matcher.is_accepting())

    def mask(self, out: WritableBuffer) -> None:
        """Writes the mask, ``TokenTable.mask_words`` words, into a writable buffer of that length.

        Raises ValueError if the length is another.
        """
        address, size = _address(out)
        if size != self._table.mask_words * _WORD_BYTES:
            raise ValueError(f"a mask has {self._table.mask_words * _WORD_BYTES} bytes, the buffer {size}")
        self._matcher.unsafe_compute_mask_ptr(address, size)
        self.check()

    def allows_only(self, tokens: Iterable[int]) -> bool:
        """Whether the mask has no other tokens. Raises as ``mask`` does."""
        words = array("I", [0]) * self._table.mask_words
        self.mask(words)
        for token in tokens:
            words[token // 32] &= ~(1 << token % 32)
        return not any(words)

    def accept(self, tokens: Sequence[int]) -> int:
        """Appends tokens up to the first that is not allowed; returns the number of those appended.

        An end token is allowed where the grammar accepts; nothing is allowed after it.
        """
        if self._ended:
            return 0
        ends = [index for index, token in enumerate(tokens) if token in self._table.eos_ids]
        before = list(tokens[: ends[0]] if ends else tokens)
        count = self._matcher.try_consume_tokens(before) if before else 0
        self._check_error()
        if ends and count == len(before) and self._matcher.is_accepting():
            self._ended = 1
            return count + 1
        return count

    def rollback(self, count: int) -> None:
        """Takes back the last ``count`` tokens, an end token among them. Raises ValueError if there are fewer."""
        if count <= 0:
            return
        count, self._ended = count - self._ended, 0
        if count and not self._matcher.rollback(count):
            raise ValueError(f"the answer has fewer than {count} tokens: {self._matcher.get_error()}")

    def forced_tokens(self) -> list[int]:
        """The tokens that must come next, as the tokenizer would write them; they are not appended.

        They are known for schemas, expressions and choices; for other kinds the list is empty.
        """
        return [] if self._ended else list(self._matcher.compute_ff_tokens())

    def copy(self) -> GrammarConstraint:
        """An independent constraint in the same state."""
        other = GrammarConstraint(self._matcher.deep_copy(), self._table)
        other._ended = self._ended
        return other

    def check(self) -> None:
        """Raises RequestError if the last mask could not be computed, or if the answer cannot be completed."""
        if not self._ended and is_dead_end(self._matcher):
            raise _failed("no answer that begins like this one matches the grammar")
        self._check_error()

    def _check_error(self) -> None:
        if self._matcher.is_error():
            raise _failed(reason_of(self._matcher.get_error()))


class MaskExecutor:
    """Computes the masks of several answers in parallel, without the interpreter's lock. One thread may use it."""

    def __init__(self, threads: int | None = None) -> None:
        self._executor = LLExecutor(threads)

    def masks(self, rows: Sequence[tuple[GrammarConstraint, int]], out: WritableBuffer) -> None:
        """Writes the mask of each constraint into its row of ``out``, (rows, mask words) int32, C order.

        The caller then calls ``check`` of each constraint: one that failed leaves the others' masks as they are.
        """
        if rows:
            address, row_bytes, count = _rows([(constraint, row, ()) for constraint, row in rows], out)
            jobs = [(constraint._matcher, row) for constraint, row in rows]
            self._executor.unsafe_compute_mask_ptr(jobs, address, row_bytes, count)

    def masks_with_drafts(
        self, rows: Sequence[tuple[GrammarConstraint, int, Sequence[int]]], out: WritableBuffer
    ) -> None:
        """The same with draft tokens: row ``i`` gets the mask, row ``i + k`` the one after the first ``k`` drafts.

        The rows behind the first draft token that is not allowed stay as they are. No constraint moves.
        """
        self.masks([(constraint, row) for constraint, row, drafts in rows if not drafts], out)
        if with_drafts := [each for each in rows if each[2]]:
            address, row_bytes, count = _rows(with_drafts, out)
            jobs = [(constraint._matcher, row, list(drafts)) for constraint, row, drafts in with_drafts]
            self._executor.unsafe_compute_mask_ptr_with_draft_token(jobs, address, row_bytes, count)


def _rows(rows: Sequence[tuple[GrammarConstraint, int, Sequence[int]]], out: WritableBuffer) -> tuple[int, int, int]:
    """The address of the masks, the bytes of one and their number. Raises ValueError if the rows do not fit."""
    address, size = _address(out)
    row_bytes = rows[0][0]._table.mask_words * _WORD_BYTES
    if any(constraint._table.mask_words * _WORD_BYTES != row_bytes for constraint, _, _ in rows):
        raise ValueError("the constraints are of vocabularies of different sizes")
    count, rest = divmod(size, row_bytes)
    last = max(row + len(drafts) for _, row, drafts in rows)
    if rest or last >= count:
        raise ValueError(f"{last + 1} masks of {row_bytes} bytes do not fit into {size} bytes")
    return address, row_bytes, count


def _failed(reason: str) -> RequestError:
    return RequestError(
        f"the answer cannot go on under its grammar: {reason}",
        hint="simplify the grammar",
        code="grammar_failed",
        param="grammar",
    )


def _address(out: WritableBuffer) -> tuple[int, int]:
    view = memoryview(out)
    if view.readonly or not view.c_contiguous:
        raise ValueError("a mask needs a writable buffer in C order")
    return ctypes.addressof(ctypes.c_char.from_buffer(view.cast("B"))), view.nbytes
