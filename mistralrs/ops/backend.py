"""Which code runs: the table of backends, the best first, and what one has to offer.

A backend owns the form in which weights and cache are stored, so its operations come as a set. The plain torch one is
last and runs everywhere.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from mistralrs.errors import LoadError, UsageError
from mistralrs.ops.arena import Buffer
from mistralrs.ops.weight import Matrix, Weight
from mistralrs.ops.workspace import Sizes, StepArgs, Workspace

Finish = Literal["store", "add", "gated"]
Activation = Literal["silu"]
Op = Callable[[StepArgs], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class KvShape:
    """What one sequence position stores in a layer, and how many blocks there are."""

    layers: int
    kv_heads: int
    head_dim: int
    num_blocks: int
    block_size: int


@dataclass(frozen=True, slots=True)
class Norm:
    """RMS normalisation before a projection: x / sqrt(mean(x^2) + eps) * weight."""

    weight: Buffer
    eps: float


class KvCache(Protocol):
    """Keys and values of all layers in blocks; the layout is the backend's own."""

    nbytes: int


class Backend(Protocol):
    """The operations of a model, bound to weights and buffers when they are made."""

    name: str
    threads: int

    def place(self, matrix: Matrix) -> Weight: ...

    def placed_bytes(self, matrix: Matrix) -> int:
        """Memory that ``place`` will take."""
        ...

    def reserve(self, nbytes: int) -> None:
        """Prepares memory for all the weights that will be placed."""
        ...

    def kv_cache(self, shape: KvShape) -> KvCache: ...

    def embed(self, weight: Weight, work: Workspace, *, inv_freq: Buffer, rotary_scale: float) -> Op:
        """x = rows of the embedding; the step's rotary table."""
        ...

    def project(
        self,
        weights: Sequence[Weight],
        x: Buffer,
        outs: Sequence[Buffer],
        *,
        norm: Norm | None = None,
        finish: Finish = "store",
        activation: Activation = "silu",
        terms: int = 1,
        logits_only: bool = False,
    ) -> Op:
        """out = weight x for each member; ``add`` adds to what is in out, ``gated`` gives act(first) * second.

        ``terms``: int8 terms that an activation is rounded to, 1 or 2, for quantised weights.
        ``logits_only``: only the rows of x that the step wants logits of.
        """
        ...

    def attend(
        self, work: Workspace, kv: KvCache, *, layer: int, heads: int, kv_heads: int, head_dim: int, scale: float
    ) -> Op:
        """attended = causal attention of q over the cache, after rotating q and k and writing k and v."""
        ...

    def program(self, ops: Sequence[Op], args: StepArgs) -> Callable[[], None]:
        """One call that runs the operations in order on ``args``; stops between two when ``abort`` is set."""
        ...


# device -> (name, factory), the best first; a factory raises BackendUnavailable with the reason
BACKENDS: dict[str, tuple[tuple[str, str], ...]] = {
    "cpu": (
        ("native", "mistralrs.ops.native:NativeBackend"),
        ("torch", "mistralrs.ops.reference:ReferenceBackend"),
    ),
}


class BackendUnavailable(Exception):
    """A backend cannot run here; the message says why."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """The backend chosen, and why not the better ones."""

    backend: Backend
    passed_over: tuple[str, ...]


def resolve(device: str, *, threads: int | None = None, isa: str | None = None) -> Resolved:
    """The best backend that runs on ``device``. ``isa`` names an instruction set, or ``torch`` for the plain backend.

    Raises ``UsageError`` for a device or instruction set that is not there.
    """
    if device not in BACKENDS:
        raise UsageError(f"no such device: {device}", hint=f"devices: {', '.join(BACKENDS)}")
    passed_over = []
    for name, factory in BACKENDS[device]:
        if isa == "torch" and name != "torch":
            continue
        module, attribute = factory.split(":")
        try:
            backend = getattr(importlib.import_module(module), attribute)(threads=threads, isa=isa)
        except BackendUnavailable as reason:
            if isa not in (None, "torch"):
                raise UsageError(f"the {isa} kernels cannot be used: {reason}") from reason
            passed_over.append(f"{name}: {reason}")
        else:
            return Resolved(backend, tuple(passed_over))
    raise LoadError(f"nothing runs on {device}: {'; '.join(passed_over)}")


__all__ = ["BACKENDS", "Backend", "BackendUnavailable", "KvCache", "KvShape", "Norm", "Op", "Resolved", "Sizes", "resolve"]
