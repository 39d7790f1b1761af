"""The part of a backend that allocates memory, for backends that compute in the processor's memory."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from mistralrs.ops.arena import Arena, buffer, buffers_bytes
from mistralrs.ops.buffer import Buffer
from mistralrs.ops.workspace import Sizes, StepArgs, Workspace

_VECTORS_BYTES = 1 << 20
"""The size of an arena that short vectors share."""


class HostMemory:
    """Allocates in arenas of this process. Not safe from several threads, as loading is not."""

    def __init__(self) -> None:
        self._vectors: Arena | None = None

    def vector(self, values: Sequence[float]) -> Buffer:
        """A float32 copy of ``values``, of shape (len(values),). Short ones share an arena."""
        need = buffers_bytes((len(values),))
        if self._vectors is None or self._vectors.left < need:
            self._vectors = Arena(max(need, _VECTORS_BYTES))
        result = buffer(self._vectors, len(values))
        result.values[:] = array("f", values)
        return result

    def workspace(self, sizes: Sizes) -> Workspace:
        """The buffers that steps of these sizes work in."""
        return Workspace(sizes)

    def step_args(self, sizes: Sizes) -> StepArgs:
        """The arrays that describe steps of these sizes."""
        return StepArgs(sizes)
