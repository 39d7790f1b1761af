"""The grammar of one sequence: its state after the known tokens, the tokens it forces, the draft tokens it allows."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from mistralrs.engine.config import Request
from mistralrs.errors import RequestError

if TYPE_CHECKING:
    from mistralrs.grammar.constraint import GrammarConstraint


class SequenceConstraint:
    """Allows a sequence the tokens of its grammar. One thread at a time may use it.

    Where a grammar leaves one text only, its tokens are forced: the tokenizer's own spelling of that text, taken whole.
    They are looked up where none is left, and depend on the known tokens alone; neither draft tokens nor batches nor
    preemptions change them.
    """

    def __init__(self, state: GrammarConstraint, *, eos_ids: Iterable[int], request: Request) -> None:
        """``state``: at the start of an answer. ``eos_ids``: the vocabulary's end tokens."""
        self.state = state
        """The state after the known tokens."""
        self.eos_ids = frozenset(eos_ids)
        kept = request.sampling.stop_token_ids
        self.ignored_ends = self.eos_ids.difference(kept) if request.sampling.ignore_eos else frozenset()
        """End tokens that are allowed only where nothing else is."""
        self.forced: deque[int] = deque()
        """Tokens that come next whatever the logits are. None are there in many places that allow one token only."""
        # The model has to choose an end token if the caller reads their names.
        self._ends_without_token = not request.spelled_tokens & self.eos_ids
        self._probe: GrammarConstraint | None = None
        self._look_ahead()

    @property
    def next_forced(self) -> int | None:
        """The token that comes next whatever the logits are; None: they decide."""
        return self.forced[0] if self.forced else None

    def accept(self, token: int) -> bool:
        """Appends a known token. Returns whether the answer is over.

        Raises RequestError if the grammar does not allow the token, or cannot go on.
        """
        if self.state.accept([token]) != 1:
            message = f"no answer that the grammar allows, spelled in the model's tokens, goes on with token {token}"
            raise RequestError(message, hint="simplify the grammar", code="grammar_failed", param="grammar")
        if self.forced:
            self.forced.popleft()
        if not self.forced:
            self._look_ahead()
        return self.state.must_end and (self._ends_without_token or token in self.eos_ids)

    def may_only_end(self) -> bool:
        """Returns whether the answer is whole and only an end token could follow, which takes a mask to know: a number
        that no digit continues looks open to the grammar. Raises RequestError if the grammar cannot go on."""
        if not (self._ends_without_token and self.state.is_accepting):
            return False
        return self.state.allows_only(self.eos_ids)

    def allowed(self, drafts: Sequence[int]) -> tuple[int, ...]:
        """The draft tokens before the first that the grammar does not allow, or that is an end token.

        They are tried on a copy, so that what is too expensive there fails no answer that goes another way.
        """
        self._probe = None
        drafts = tuple(takewhile(lambda token: token not in self.eos_ids, drafts))
        if not drafts:
            return ()
        probe = self.state.copy()
        try:
            count = probe.accept(drafts)
            probe.rollback(count)
        except (RequestError, ValueError):
            return ()
        self._probe = probe
        return drafts[:count]

    @property
    def probe(self) -> GrammarConstraint:
        """A copy of ``state`` for the masks after draft tokens that ``allowed`` returned last."""
        assert self._probe is not None, "the draft tokens were not tried"
        return self._probe

    def _look_ahead(self) -> None:
        self.forced.extend(takewhile(lambda token: token not in self.eos_ids, self.state.forced_tokens()))
