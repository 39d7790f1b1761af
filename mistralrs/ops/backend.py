"""The table of backends, the best first, and the interface that each of them has.

A backend owns the form in which weights and cache are stored, therefore its operations come as a set. The plain torch
one is last and runs everywhere.
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from mistralrs.errors import LoadError, UsageError
from mistralrs.ops.buffer import Buffer
from mistralrs.ops.linear import DeltaShape, DeltaTable, Linear
from mistralrs.ops.row_sampler import RowSampler
from mistralrs.ops.weight import Matrix, Weight
from mistralrs.ops.workspace import Sizes, StepArgs, Workspace
from mistralrs.quant.types import QuantType

Epilogue = Literal["store", "add", "gated", "activate"]
Activation = Literal["silu", "gelu_tanh", "gelu"]
Op = Callable[[StepArgs], None]
KvDtype = Literal["f16", "bf16", "f32", "q8_0"]
"""The type in which keys and values are kept. With bf16, queries and the weights of values are rounded to it too.

q8_0: int8 with a half-precision scale for each 32 values of a head, of the rotated value; of the rotated key too, in 9
bits, because it is keys whose rounding moves an answer. The rotation is the
Walsh-Hadamard transform, divided by the root of its size, which is the largest power of two that divides the head's.
Queries are rotated too, and rounded to 16 bits with a scale for 32 of them; the result is rotated back.
"""
KV_GROUP = 32
"""Values that have a scale of their own with q8_0; 16 at the end of a head."""
_BYTES = {"f16": 2, "bf16": 2, "f32": 4, "q8_0": 1}


def kv_head_bytes(head_dim: int, dtype: KvDtype) -> int:
    """Bytes of a position's key and value of one head, divided by two."""
    scales = 4 * -(-head_dim // KV_GROUP) if dtype == "q8_0" else 0
    return -(-head_dim // 16) * 16 * _BYTES[dtype] + scales


def check_kv_dtype(head_dim: int, dtype: KvDtype) -> None:
    """Raises ``LoadError`` for heads that a cache of this dtype cannot hold."""
    if dtype == "q8_0" and head_dim % 16:
        raise LoadError(
            f"keys and values in q8_0 need heads of a multiple of 16, and this model's have {head_dim}",
            hint="--kv-cache-dtype f16 holds any",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class KvShape:
    """The shape of a KV cache: the heads that one position stores in a layer, and the blocks of each layer."""

    blocks: tuple[int, ...]
    """(layers,)"""
    kv_heads: int
    head_dim: int
    block_size: int
    dtype: KvDtype = "f16"


@dataclass(frozen=True, slots=True)
class Norm:
    """Normalization of a row: RMS, x / sqrt(mean(x^2) + eps) * weight, or layer norm."""

    weight: Buffer
    eps: float
    kind: Literal["rms", "layer"] = "rms"
    bias: Buffer | None = None


@dataclass(frozen=True, slots=True)
class Rotary:
    """A rotary table of the step: filled by ``embed``, read by ``attend``."""

    inv_freq: Buffer
    """(half,)"""
    table: Buffer
    """(max_tokens, 2, half) cosines and sines."""
    scale: float = 1.0
    """Factor on both."""


@dataclass(frozen=True, slots=True)
class Temperature:
    """A query at position p is multiplied by 1 + beta * log(1 + p // period)."""

    beta: float
    period: int


class KvCache(Protocol):
    """Keys and values of all layers in blocks; the layout is the backend's own."""

    nbytes: int

    def export_block(self, layers: Sequence[int], block: int) -> bytes:
        """The bytes of a block in these layers, for ``import_block`` of a cache of the same shape and backend."""
        ...

    def import_block(self, layers: Sequence[int], block: int, data: bytes) -> None:
        """Fills a block. Raises ValueError if ``data`` has another length."""
        ...


class Packing(AbstractContextManager["Packing"], Protocol):
    """Places matrices in the background, about in the order in which it gets them, until its end; what it was given
    must stay until then."""

    def place(self, matrix: Matrix, *, pages: memoryview | None = None) -> Weight:
        """Returns the weight as ``Backend.place`` does; it must not be used before ``wait`` has returned.

        ``pages``: bytes of a mapped file that nothing needs once this matrix is placed; their memory is released.
        """
        ...

    def wait(self, on_packed: Callable[[int], None]) -> None:
        """Returns when all matrices are placed; ``on_packed`` gets the number of those that are, now and then."""
        ...


class Backend(Protocol):
    """The operations of a model, bound to weights and buffers when they are made."""

    name: str
    threads: int
    torch_threads: int
    """Threads for torch's operations in the thread that runs the model's steps."""
    batch_invariant: bool
    """A token's result is the same bits in every batch."""
    half_kv: Literal["f16", "bf16"]
    """The 16-bit dtype of keys and values with which attention is fastest."""

    @property
    def results(self) -> str:
        """The name of the code that computes. Under the same name it computes the same bits."""
        ...

    def place(self, matrix: Matrix) -> Weight:
        """Returns the matrix in the backend's own memory and layout, or over its ``data`` if it stays ``in_place``.

        Raises ``LoadError`` if the backend cannot compute it.
        """
        ...

    def packing(self) -> Packing | None:
        """Returns what places matrices while other work goes on; None: ``place`` takes no time worth it."""
        ...

    def placed_bytes(self, matrix: Matrix) -> int:
        """Bytes of memory that ``place`` will take."""
        ...

    def reserve(self, nbytes: int) -> None:
        """Prepares memory for all the weights that will be placed, ``nbytes`` in sum."""
        ...

    def quantize(self, name: str, target: QuantType, values: memoryview) -> memoryview:
        """Returns blocks of ``target`` for ``values``, float32 (rows, columns), contiguous and writable, row after row.

        Raises ``LoadError`` for weights that are not finite or too large.
        """
        ...

    def kv_cache(self, shape: KvShape) -> KvCache:
        """Returns an empty cache; its memory is taken as it fills."""
        ...

    def delta_table(self, slots: int, shape: DeltaShape) -> DeltaTable:
        """Returns an empty table for the deltas of a matrix of this shape."""
        ...

    def vector(self, values: Sequence[float]) -> Buffer:
        """A float32 copy of ``values`` where the operations read it: a norm's weight, a rotary table's frequencies."""
        ...

    def row_sampler(self) -> RowSampler | None:
        """A sampler of tokens for the thread that runs the model's steps; None: the backend does not sample."""
        ...

    def workspace(self, sizes: Sizes) -> Workspace:
        """The buffers that steps of these sizes work in."""
        ...

    def step_args(self, sizes: Sizes) -> StepArgs:
        """The arrays that describe steps of these sizes, to be filled by ``StepArgs.set``."""
        ...

    def embed(self, linear: Linear, work: Workspace, *, rotaries: Sequence[Rotary], scale: float = 1.0) -> Op:
        """x = scale * rows of the embedding, with what adapters add to them; the step's rotary tables, at most two."""
        ...

    def project(
        self,
        linears: Sequence[Linear],
        x: Buffer,
        outs: Sequence[Buffer],
        *,
        norm: Norm | None = None,
        epilogue: Epilogue = "store",
        activation: Activation = "silu",
        outlier_threshold: float = math.inf,
        logits_only: bool = False,
        softcap: float = 0.0,
        scale: float = 1.0,
    ) -> Op:
        """out = linear(x) for each member; ``add`` adds to the values in out, ``gated`` gives act(first) * second,
        ``activate`` act(out). Outs have no memory in common with x.

        ``outlier_threshold``: for quantized weights, activations are rounded to int8 with one scale for 32 columns, or
        for 256 if a member has a K type.
        Outliers, quads of four columns with a value above so many times the average of a row's largest of each 32,
        take a coarse int8 term of their own, and their remainder stays among the others. Infinity: none do; 0: instead,
        the rounding error of all columns takes a second int8 term, the residual term.
        ``logits_only``: only the rows of x that the step wants logits of.
        ``scale``: factor on the outputs.
        ``softcap``: scaled outputs become softcap * tanh(output / softcap); 0: they do not.
        """
        ...

    def attend(
        self,
        work: Workspace,
        kv: KvCache,
        *,
        layer: int,
        group: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        scale: float,
        rotary: Rotary | None,
        q_norm: Norm | None = None,
        k_norm: Norm | None = None,
        full_norms: bool = False,
        window: int = 0,
        softcap: float = 0.0,
        temperature: Temperature | None = None,
    ) -> Op:
        """attended = causal attention of q over the cache, after norming and rotating q and k and writing k and v.

        ``group``: the KV group whose slots and block tables are used; all its layers have this window.
        ``full_norms``: ``q_norm`` and ``k_norm`` span all heads; False: each head is normed by itself.
        ``window``: a position sees itself and window - 1 before it; 0: all. ``softcap``: of the scores; 0: none.
        """
        ...

    def add_norm(self, y: Buffer, x: Buffer, norm: Norm) -> Op:
        """x += norm(y), row by row."""
        ...

    def normalize(self, x: Buffer, out: Buffer, *, norm: Norm) -> None:
        """Writes the norm of each row of ``x`` into ``out``, of the same shape, before it returns."""
        ...

    def moe(
        self,
        work: Workspace,
        *,
        norm: Norm,
        router: Linear,
        gate: Sequence[Linear],
        up: Sequence[Linear],
        down: Sequence[Linear],
        used: int,
        activation: Activation,
        outlier_threshold: float,
        normalize_weights: bool = True,
        scale: float = 1.0,
    ) -> Op:
        """x += scale * sum over each token's ``used`` best experts of weight * down(act(gate(norm(x))) * up(norm(x))).

        Weights: the softmax over all experts of the router, of the chosen ones; ``normalize_weights`` divides them by
        their sum.
        ``outlier_threshold`` as in ``project``.
        """
        ...

    def program(self, ops: Sequence[Op], args: StepArgs) -> Callable[[], None]:
        """One call that runs the operations in order on ``args``; stops between two when ``abort`` is set."""
        ...


# device -> (name, factory), the best first; a factory raises BackendUnavailable with the reason
BACKENDS: dict[str, tuple[tuple[str, str], ...]] = {
    "cpu": (
        ("native", "mistralrs.ops.native_backend:NativeBackend"),
        ("torch", "mistralrs.ops.reference_backend:ReferenceBackend"),
    ),
}


class BackendUnavailable(Exception):
    """A backend cannot run here. The message says why."""


@dataclass(frozen=True, slots=True)
class ResolvedBackend:
    """The chosen backend, and for each better one the reason why it cannot run."""

    backend: Backend
    unavailable_backends: tuple[str, ...]


def usable_cpus() -> int:
    """Processors of the system that this process may run on, hardware threads counted one by one."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resolve(device: str, *, threads: int | None = None, isa: str | None = None) -> ResolvedBackend:
    """The best backend that runs on ``device``. ``isa`` names an instruction set, or ``torch`` for the plain backend.

    Raises ``UsageError`` for a device or instruction set that is not there.
    """
    if device not in BACKENDS:
        raise UsageError(f"no such device: {device}", hint=f"devices: {', '.join(BACKENDS)}")
    unavailable_backends = []
    for name, factory in BACKENDS[device]:
        if isa == "torch" and name != "torch":
            continue
        module, attribute = factory.split(":")
        try:
            backend = getattr(importlib.import_module(module), attribute)(threads=threads, isa=isa)
        except BackendUnavailable as reason:
            if isa not in (None, "torch"):
                raise UsageError(f"the {isa} kernels cannot be used: {reason}") from reason
            unavailable_backends.append(f"{name}: {reason}")
        else:
            return ResolvedBackend(backend, tuple(unavailable_backends))
    raise LoadError(f"nothing runs on {device}: {'; '.join(unavailable_backends)}")


__all__ = [
    "BACKENDS",
    "Backend",
    "BackendUnavailable",
    "KvCache",
    "KvShape",
    "Norm",
    "Op",
    "ResolvedBackend",
    "Sizes",
    "resolve",
]
