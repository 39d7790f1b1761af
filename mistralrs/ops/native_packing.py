"""Matrices of a file that the kernels' library packs in threads of its own while other work goes on."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Self

from mistralrs_kernels import cpu

from mistralrs.errors import LoadError
from mistralrs.ops.native_memory import PackedWeight
from mistralrs.ops.weight import Matrix

PackOne = Callable[[Matrix, int, int], None]
"""Takes a matrix, its address in the file and that of its panels."""
_POLL_MS = 50
"""The time after which ``wait`` lets Python handle a signal."""


class NativePacking:
    """Packs in the order of ``place`` (``csrc/packing.cpp``). A context manager, at whose end packing stops."""

    def __init__(self, threads: int, place: Callable[[Matrix, PackOne], PackedWeight]) -> None:
        """``threads`` pack at once, the one that waits included. ``place`` gives a matrix memory and has it packed.

        Raises ``LoadError`` when the system does not start the threads.
        """
        self._place, self._helps = place, threads > 1
        self._kept: list[object] = []
        self._pointer = cpu.load().mrs_packing_start(max(1, threads - 1))
        if not self._pointer:
            raise LoadError(f"{threads} threads cannot be started", hint="ask for fewer: --threads")

    def place(self, matrix: Matrix, *, pages: memoryview | None = None) -> PackedWeight:
        weight = self._place(matrix, partial(self._add, pages))
        self._kept.append((matrix, weight, pages))
        return weight

    def _add(self, pages: memoryview | None, matrix: Matrix, source: int, target: int) -> None:
        order = None if matrix.order is None else matrix.order.buffer_info()[0]
        released = (None, 0) if pages is None else (_address(pages), len(pages))
        row_bytes = matrix.type.row_bytes(matrix.columns)
        arguments = (matrix.type.ggml_id, source, row_bytes, matrix.rows, matrix.columns, order, target, *released)
        cpu.load().mrs_packing_add(self._pointer, *arguments)

    def wait(self, on_packed: Callable[[int], None]) -> None:
        packed = 0
        while packed < len(self._kept):
            packed = cpu.load().mrs_packing_wait(self._pointer, len(self._kept), _POLL_MS, self._helps)
            on_packed(packed)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        cpu.load().mrs_packing_end(self._pointer)
        self._kept.clear()


def _address(data: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(data))
