"""Converts stored matrices before they are placed: requantizes types without kernels, converts floats, and quantizes.

torch is imported only if a matrix needs conversion. Vectors are not converted here: ``ops.weight.read_vector`` decodes
norms, biases and rotary factors of any type.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from mistralrs.errors import LoadError
from mistralrs.loading.checkpoint import RawTensor
from mistralrs.ops.backend import Backend
from mistralrs.ops.weight import Matrix
from mistralrs.quant.quantize import ISQ_TYPES, target_of
from mistralrs.quant.types import DECODED, EXPANDED, I8, TYPES, QuantType

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_FLOATS = frozenset({"F32", "F16", "BF16"})
_AT_ONCE = 1 << 20
"""Weights that are decoded at once, to four bytes each, which bounds the memory of a conversion beside its result."""
READ_AS_FLOATS = frozenset({"router"})
"""Parts that kernels read as floats: they are decoded if a file has them quantized, and never quantized. They are
small, and errors in them matter much."""

Dtype = Literal["auto", "bf16", "f16", "f32"]


@dataclass(frozen=True, slots=True)
class Conversion:
    """The conversion of a model's matrices. ``dtype``: the type for matrices that are stored as floats; ``auto`` and
    ``f32`` keep the file's values exactly. ``quantize_to``: a value of ``ISQ_TYPES`` for these matrices."""

    dtype: Dtype = "auto"
    quantize_to: QuantType | None = None
    said: set[str] = field(default_factory=set)
    """Messages that were logged already."""

    def target(self, part: str, matrix: Matrix) -> QuantType:
        """The type in which a matrix will be placed. Raises ``LoadError`` if it cannot be placed."""
        if matrix.columns % matrix.type.block_len:
            raise LoadError(f"{matrix.name}: rows of {matrix.columns} do not split in blocks of {matrix.type.name}")
        if part in READ_AS_FLOATS and (matrix.type.name not in _FLOATS or self.quantize_to is not None):
            return TYPES["F32"]
        if matrix.type.name in EXPANDED and matrix.columns % I8.block_len == 0:
            return I8
        if matrix.type.name in EXPANDED or matrix.type.name in DECODED:
            return TYPES["F32"]
        if matrix.type.name in _FLOATS:
            if self.quantize_to is not None:
                target = target_of(self.quantize_to, matrix.columns)
                self._say(target.reason)
                return target.type or matrix.type
            if self.dtype in ("bf16", "f16"):
                return TYPES[self.dtype.upper()]
        return matrix.type

    def merged_target(self, part: str, matrix: Matrix) -> QuantType:
        """The type in which a matrix is placed whose values change after they were read; the ``dtype`` ``f32`` keeps
        them exactly. Raises ``LoadError`` for a type that nothing can be quantized to."""
        target = self.target(part, matrix)
        if target.name in _FLOATS:
            return TYPES["F32"] if self.dtype == "f32" else target
        if target not in ISQ_TYPES.values():
            raise LoadError(
                f"{matrix.name} is stored as {matrix.type.name}, to which changed weights cannot be quantized",
                hint="use the adapter without merging it, or a base stored in another type",
            )
        return target

    def _say(self, reason: str | None) -> None:
        if reason is not None and reason not in self.said:
            self.said.add(reason)
            logger.warning("%s", reason)

    def convert(
        self, matrix: Matrix, target: QuantType, backend: Backend, *, release: Callable[[], None] | None = None
    ) -> Matrix:
        """The matrix in the type that ``target`` returns; ``backend`` quantizes. ``release`` is called whenever bytes
        of ``matrix`` were read that are not needed again."""
        if matrix.type == target:
            return matrix
        source, width = matrix.type.row_bytes(matrix.columns), target.row_bytes(matrix.columns)
        data = memoryview(bytearray(matrix.rows * width))
        step = max(1, _AT_ONCE // matrix.columns)
        for start in range(0, matrix.rows, step):
            end = min(start + step, matrix.rows)
            rows = replace(matrix, rows=end - start, data=matrix.data[start * source : end * source])
            data[start * width : end * width] = _converted(rows, target, backend)
            if release is not None:
                release()
        return replace(matrix, type=target, data=data)


def decoded(matrix: Matrix) -> memoryview:
    """Returns the values of a stored matrix, float32 (rows, columns), in the wanted order of rows."""
    values = _decoded(matrix)
    return (values if matrix.order is None else values[list(matrix.order)]).contiguous().numpy().data


def encoded(name: str, values: memoryview, target: QuantType, backend: Backend) -> memoryview:
    """Returns the bytes of float32 values (rows, columns) in a float type or one that can be quantized to.

    Raises ``LoadError``.
    """
    import torch

    if target.name not in _FLOATS:
        return backend.quantize(name, target, values)
    assert values.shape is not None
    return _cast(name, torch.frombuffer(values, dtype=torch.float32).view(values.shape), target)


def _converted(matrix: Matrix, target: QuantType, backend: Backend) -> memoryview:
    if target is I8:
        return _expanded(matrix)
    return encoded(matrix.name, _decoded(matrix).contiguous().numpy().data, target, backend)


def _raw(matrix: Matrix) -> torch.Tensor:
    """The stored bytes as uint8 (rows, row_bytes)."""
    import torch

    row_bytes = matrix.type.row_bytes(matrix.columns)
    return torch.frombuffer(matrix.data, dtype=torch.uint8).view(-1, row_bytes)


def _bytes(tensor: torch.Tensor) -> memoryview:
    import torch

    return tensor.contiguous().view(torch.uint8).numpy().data.cast("B")


def _expanded(matrix: Matrix) -> memoryview:
    from mistralrs.quant.requantize_lossless import to_i8

    return _bytes(to_i8(matrix.type, _raw(matrix), matrix.columns))


def _decoded(matrix: Matrix) -> torch.Tensor:
    """float32 (rows, columns)."""
    from mistralrs.quant.dequantize import dequantize

    return dequantize(matrix.type, _raw(matrix), matrix.columns)


def _cast(name: str, values: torch.Tensor, target: QuantType) -> memoryview:
    import torch

    dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    cast = values.to(dtypes[target.name])
    if not torch.isfinite(cast).all() and torch.isfinite(values).all():
        raise LoadError(f"{name}: a weight is too large for {target.name}", hint="leave out --dtype, or use bf16")
    return _bytes(cast)


def storage_label(tensors: Iterable[RawTensor], dtype: Dtype, isq: str | None) -> str:
    """Returns the type of most matrices, and the type that they are computed in if it differs."""
    types = [tensor.type for tensor in tensors if len(tensor.shape) > 1]
    stored = max(sorted(set(types), key=lambda type_: type_.name), key=types.count)
    if isq is not None:
        return f"{stored.name} quantized to {isq.upper()}"
    if stored.name in EXPANDED:
        return f"{stored.name} computed in 8 bits without loss"
    if stored.name in DECODED:
        return f"{stored.name} decoded to F32"
    if stored.name in _FLOATS and dtype in ("bf16", "f16") and dtype.upper() != stored.name:
        return f"{stored.name} as {dtype.upper()}"
    return stored.name
