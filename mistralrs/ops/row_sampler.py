"""The interface of a backend that samples tokens from rows of logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class RowSampler(Protocol):
    """Samples tokens from rows of logits by the stages of ``mrs_sampling`` (kernels/csrc/structs.def). One thread uses
    it."""

    def new_row(self) -> Any:
        """An empty row, whose fields are those of ``mrs_sampling``; pointers are addresses."""
        ...

    def rows(self, templates: Sequence[Any]) -> Sequence[Any]:
        """Copies of these rows, valid until the next call, to be completed and then run."""
        ...

    def run(self, count: int) -> None:
        """Samples a token for the first ``count`` rows, all of one vocabulary; the interpreter's lock is released."""
        ...
