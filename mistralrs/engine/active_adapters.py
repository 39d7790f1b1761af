"""The adapters that act on one sequence, and from which token on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mistralrs.engine.config import RequestAdapter


@dataclass(frozen=True, slots=True)
class ActiveAdapter:
    """An adapter that acts on at least one token of a sequence."""

    digest: bytes
    slot: int
    weight: float
    first_position: int
    """The position of the first token on which it acts."""


def active_adapters(adapters: Iterable[RequestAdapter], prompt: Sequence[int]) -> tuple[ActiveAdapter, ...]:
    """The adapters that act on a sequence with this prompt, in the order in which a step adds them up.

    Their contents alone decide the order, so that neither a request's order nor the slots change a bit of the sums.
    """
    found = []
    for adapter in adapters:
        first = _last_occurrence(adapter.invocation_tokens, prompt)
        if adapter.weight != 0 and first is not None:
            found.append(ActiveAdapter(adapter.digest, adapter.slot, adapter.weight, first))
    return tuple(sorted(found, key=lambda active: (active.digest, active.weight, active.first_position)))


def _last_occurrence(wanted: tuple[int, ...], tokens: Sequence[int]) -> int | None:
    """Where the last occurrence of ``wanted`` starts; None: there is none; 0 if nothing is wanted."""
    if not wanted:
        return 0
    for start in range(len(tokens) - len(wanted), -1, -1):
        if tokens[start] == wanted[0] and tuple(tokens[start : start + len(wanted)]) == wanted:
            return start
    return None
