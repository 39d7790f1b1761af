"""The KV cache of the reference implementation, and what its dtypes do to keys, values and queries."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from mistralrs.ops.backend import KV_GROUP, KvDtype, KvShape, check_kv_dtype

_DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32, "q8_0": torch.int16}
KEY_STEPS, VALUE_STEPS = 255, 127
"""The largest whole number of a key and of a value, with q8_0: of 9 and of 8 bits."""
_LARGEST = VALUE_STEPS * torch.finfo(torch.float16).max
_LEAST = 1e-34
"""Smaller values count as zeros: the inverse of their step would be infinite."""
_QUERY_STEPS = 127 * 256
"""The largest value of a query that is rounded to 16 bits."""


class StoredHeads:
    """The keys, or the values, of a layer: (blocks, block_size, kv_heads, head_dim), with q8_0 (..., groups) scales."""

    def __init__(self, blocks: int, shape: KvShape, *, steps: int) -> None:
        """``steps``: with q8_0, the largest whole number."""
        size = (blocks, shape.block_size, shape.kv_heads)
        self.dtype: KvDtype = shape.dtype
        self._steps = steps
        self.values = torch.zeros((*size, shape.head_dim), dtype=_DTYPES[shape.dtype])
        groups = -(-shape.head_dim // KV_GROUP) if shape.dtype == "q8_0" else 0
        self.scales = torch.zeros((*size, groups), dtype=torch.float16)

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.scales.nbytes

    def put(self, slots: torch.Tensor, x: torch.Tensor) -> None:
        """Stores x (tokens, kv_heads, head_dim), with q8_0 rotated, at ``slots`` (tokens,)."""
        block_size = self.values.shape[1]
        place = slots // block_size, slots % block_size
        if self.dtype == "q8_0":
            self.values[place], self.scales[place] = _rounded(x.clamp(-_LARGEST, _LARGEST), self._steps)
            return
        largest = torch.finfo(self.values.dtype).max
        self.values[place] = x.clamp(-largest, largest).to(self.values.dtype)

    def of_blocks(self, blocks: torch.Tensor) -> torch.Tensor:
        """Returns float32 (len(blocks) * block_size, kv_heads, head_dim)."""
        values = self.values[blocks].flatten(0, 1).float()
        if self.dtype != "q8_0":
            return values
        scales = self.scales[blocks].flatten(0, 1).float().repeat_interleave(KV_GROUP, -1)
        return values * scales[..., : values.shape[-1]]

    def scored(self, queries: torch.Tensor, scale: float, *, softcap: float) -> torch.Tensor:
        """Returns queries times ``scale``, rounded as the kernels round them beside these keys.

        They round exponents of two, which scores are before a soft cap alone.
        """
        if self.dtype in ("f16", "f32"):
            return queries * scale
        unit = 1.0 if softcap > 0 else math.log2(math.e)
        scaled = queries * (scale * unit)
        return (scaled.bfloat16().float() if self.dtype == "bf16" else _rounded_queries(scaled)) / unit

    def block_bytes(self, block: int) -> bytes:
        return b"".join(array[block].view(torch.uint8).numpy().tobytes() for array in (self.values, self.scales))

    def set_block(self, block: int, data: bytes) -> None:
        """Fills a block with ``block_bytes`` of another."""
        size = self.values[block].nbytes
        for array, part in ((self.values, data[:size]), (self.scales, data[size:])):
            if part:
                array[block] = torch.frombuffer(bytearray(part), dtype=array.dtype).view(array.shape[1:])


class ReferenceKv:
    """The cache as tensors for the keys and for the values of each layer."""

    def __init__(self, shape: KvShape) -> None:
        check_kv_dtype(shape.head_dim, shape.dtype)
        self.k = [StoredHeads(blocks, shape, steps=KEY_STEPS) for blocks in shape.blocks]
        self.v = [StoredHeads(blocks, shape, steps=VALUE_STEPS) for blocks in shape.blocks]
        self.nbytes = sum(stored.nbytes for stored in (*self.k, *self.v))

    def export_block(self, layers: Sequence[int], block: int) -> bytes:
        return b"".join(stored.block_bytes(block) for stored in self._of(layers))

    def import_block(self, layers: Sequence[int], block: int, data: bytes) -> None:
        sizes = [stored.nbytes // len(stored.values) for stored in self._of(layers)]
        if len(data) != sum(sizes):
            raise ValueError(f"a block of {len(layers)} layers has {sum(sizes)} bytes, not {len(data)}")
        start = 0
        for stored, size in zip(self._of(layers), sizes, strict=True):
            stored.set_block(block, data[start : start + size])
            start += size

    def _of(self, layers: Sequence[int]) -> list[StoredHeads]:
        return [stored for layer in layers for stored in (self.k[layer], self.v[layer])]


def rotated(x: torch.Tensor) -> torch.Tensor:
    """Returns the Walsh-Hadamard transform of x over its last dimension, which is its own inverse: of each so many
    values as the largest power of two that divides their number."""
    size = x.shape[-1] & -x.shape[-1]
    stride = 1
    while stride < size:
        a, b = x.unflatten(-1, (-1, 2, stride)).unbind(-2)
        x = torch.stack([a + b, a - b], dim=-2).flatten(-3)
        stride *= 2
    return x * torch.tensor(1 / math.sqrt(size), dtype=torch.float32)


def _groups(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns x (..., groups, 32), with zeros at the end, and each group's largest absolute value (..., groups, 1)."""
    groups = torch.nn.functional.pad(x, (0, -x.shape[-1] % KV_GROUP)).unflatten(-1, (-1, KV_GROUP))
    return groups, groups.abs().amax(-1, keepdim=True)


def _to_steps(groups: torch.Tensor, largest: torch.Tensor, most: int) -> torch.Tensor:
    inverse = torch.where(largest > _LEAST, torch.full_like(largest, most) / largest, 0)
    return torch.round(groups * inverse)


def _rounded(x: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns x as whole numbers up to ``most``, and the float16 scales of its groups."""
    groups, largest = _groups(x)
    values = _to_steps(groups, largest, most).flatten(-2)[..., : x.shape[-1]]
    # a true division, not a product with the reciprocal
    return values.to(torch.int16), (largest / torch.full_like(largest, most)).squeeze(-1).half()


def _rounded_queries(x: torch.Tensor) -> torch.Tensor:
    groups, largest = _groups(x)
    return (_to_steps(groups, largest, _QUERY_STEPS) * (largest / _QUERY_STEPS)).flatten(-2)[..., : x.shape[-1]]
