"""Kernels bound to what they compute with, and programs of them that run on a share of the pool of threads."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from mistralrs_kernels import cpu

from mistralrs.errors import LoadError
from mistralrs.ops.native_deltas import DeltaScratch
from mistralrs.ops.row_sampler import SamplingRows
from mistralrs.ops.workspace import StepArgs


class Pool:
    """A backend's share of the process's one pool of threads (``csrc/pool.cpp``).

    The pool has as many threads as the largest share; each job runs on at most ``threads`` of them.
    """

    def __init__(self, threads: int) -> None:
        """Raises ``LoadError`` when the system does not start that many threads."""
        self.pointer = cpu.load().mrs_pool_acquire(threads)
        if not self.pointer:
            raise LoadError(f"{threads} threads cannot be started", hint="ask for fewer: --threads")

    def __del__(self) -> None:
        if getattr(self, "pointer", None):
            cpu.load().mrs_pool_release(self.pointer)


class NativeOp:
    """A kernel with everything it needs; ``keep`` holds what the struct points to."""

    def __init__(self, struct: Any, pool: Pool, keep: tuple[object, ...], deltas: DeltaScratch) -> None:
        self.struct = struct
        self.pointer = ctypes.addressof(struct)
        self._pool = pool
        self._keep = keep
        self._deltas = deltas

    def __call__(self, args: StepArgs) -> None:
        NativeProgram([self], args, self._pool, self._deltas)()


class NativeProgram:
    """Operations that run in one call, with the interpreter's lock released."""

    def __init__(self, ops: Sequence[NativeOp], args: StepArgs, pool: Pool, deltas: DeltaScratch) -> None:
        self._ops = (ctypes.c_void_p * len(ops))(*(op.pointer for op in ops))
        self._keep = (tuple(ops), args)
        self._args = args
        self._pool = pool
        self._deltas = deltas
        self._run = cpu.load().mrs_run
        names = ("tokens", "positions", "slot_mapping", "query_start_loc", "seq_lens", "block_tables", "logits_indices")
        self._step = cpu.Step(*(args.arrays[name].address for name in names))
        sizes = args.sizes
        self._step.max_tokens, self._step.max_seqs = sizes.max_tokens, sizes.max_seqs
        self._step.max_blocks, self._step.num_groups = sizes.max_blocks, sizes.kv_groups

    def __call__(self) -> None:
        step, args = self._step, self._args
        step.num_tokens, step.num_seqs, step.num_logits = args.num_tokens, args.num_seqs, args.num_logits
        step.cancel_flag = ctypes.addressof(args.cancel_flag)
        self._deltas.describe(step, args)
        describe_sampling(step, args.sampling)
        self._run(self._ops, len(self._ops), ctypes.byref(step), self._pool.pointer)


def describe_sampling(step: cpu.Step, rows: SamplingRows | None) -> None:
    """Fills the rows to be sampled into a step."""
    if rows is None:
        step.num_sampling, step.num_steps = 0, 1
    else:
        step.sampling, step.num_sampling, step.sampling_scratch, step.num_steps, step.wait_flag = rows
