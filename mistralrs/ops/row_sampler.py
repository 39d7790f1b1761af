"""The interface of a backend that samples tokens from rows of logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol


class SamplingRows(NamedTuple):
    """Rows to be sampled, in a call of its own or behind the operations of a program."""

    address: int
    num_rows: int
    """Rows of each step."""
    scratch: int
    """The address of the memory in which they are sampled."""
    num_steps: int = 1
    """If more than one, the program is run again for the tokens of its rows, one of each sequence, until a token is one
    of its row's ``ends``."""
    wait_flag: int = 0
    """The address of an int32; once it is not zero, no further step follows. 0: there is none."""


class RowSampler(Protocol):
    """Samples tokens from rows of logits by the stages of ``mrs_sampling`` (kernels/csrc/structs.def). One thread uses
    it."""

    def new_row(self) -> Any:
        """An empty row, whose fields are those of ``mrs_sampling``; pointers are addresses."""
        ...

    def rows(self, templates: Sequence[Any]) -> Sequence[Any]:
        """Copies of these rows, valid until the next call, to be completed and then sampled."""
        ...

    def to_sample(self, count: int) -> SamplingRows:
        """The first ``count`` rows, at least one and all of one vocabulary, for ``run`` or, as those of one step, for
        ``StepArgs.sampling`` of a program of the same backend."""
        ...

    def run(self, rows: SamplingRows) -> None:
        """Samples a token for each row; the interpreter's lock is released."""
        ...
