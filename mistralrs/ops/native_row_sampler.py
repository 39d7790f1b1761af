"""Sampling with the compiled kernels: rows of ``mrs_sampling`` and the memory in which they are computed."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from mistralrs_kernels import cpu

from mistralrs.ops.arena import Arena
from mistralrs.ops.native_program import Pool, describe_sampling
from mistralrs.ops.row_sampler import SamplingRows


class NativeRowSampler:
    """A ``RowSampler`` on a share of the pool of threads."""

    def __init__(self, table: cpu.Table, pool: Pool, threads: int) -> None:
        self._op = cpu.Op(run=table.sample)
        self._ops = (ctypes.c_void_p * 1)(ctypes.addressof(self._op))
        self._step = cpu.Step()
        self._pool = pool
        self._threads = threads
        self._rows: Any = (cpu.Sampling * 1)()
        self._arena: Arena | None = None
        self._vocab_size = 0
        self._scratch = 0

    def new_row(self) -> cpu.Sampling:
        return cpu.Sampling()

    def rows(self, templates: Sequence[cpu.Sampling]) -> Sequence[cpu.Sampling]:
        if len(self._rows) < len(templates):
            self._rows = (cpu.Sampling * len(templates))()
        for index, template in enumerate(templates):
            self._rows[index] = template  # copies it
        rows: Sequence[cpu.Sampling] = self._rows
        return rows

    def to_sample(self, count: int) -> SamplingRows:
        self._make_room(self._rows[0].vocab_size)
        return SamplingRows(ctypes.addressof(self._rows), count, self._scratch)

    def run(self, rows: SamplingRows) -> None:
        describe_sampling(self._step, rows)
        cpu.load().mrs_run(self._ops, 1, ctypes.byref(self._step), self._pool.pointer)

    def _make_room(self, vocab_size: int) -> None:
        """Makes scratch memory for a vocabulary. Its pages are zeros, and are taken when they are first used."""
        if self._vocab_size != vocab_size:
            nbytes = cpu.load().mrs_sampling_scratch(vocab_size, self._threads)
            self._arena = Arena(nbytes)
            self._scratch = self._arena.take(nbytes).address
            self._vocab_size = vocab_size
