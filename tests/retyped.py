"""Tiny models whose tensors are each stored in a chosen type, and the comparison of two backends on such a file."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gguf
import numpy as np
import torch

from mistralrs.quant.types import BY_GGML_ID, QuantType
from tests.architectures import VARIANTS, Variant, write_folder
from tests.gguf_edits import copied, read_gguf
from tests.gguf_of import PLAIN, Layout, write_gguf
from tests.parity.running import Running, Text, random_tokens
from tests.quant.blocks import sane_rows
from tests.tiny import QUANTISABLE, TOKENIZER_SIZE
from tests.tolerances import PAIRED_TYPES

STORABLE: dict[str, QuantType] = {type_.name: type_ for type_ in BY_GGML_ID.values()}
"""Every type that a GGUF file may hold."""
TOKENS = tuple(random_tokens(TOKENIZER_SIZE, 21, seed=11))
"""Two tiles of eight, one of four and a single token, in two blocks of the cache."""
DECODED_ALONE = 3
"""The last tokens, which are also computed one by one."""


@dataclass(frozen=True, slots=True)
class Family:
    """A model whose rows have 256 weights, so that every type can store them."""

    variant: Variant
    layout: Layout = PLAIN


def _family(name: str, layout: Layout = PLAIN, **settings: Any) -> Family:
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2, "max_position_embeddings": 128}
    variant = VARIANTS[name]
    rope = variant.settings.get("rope_parameters", {})
    if "short_factor" in rope:  # heads are four times wider than the variant's
        settings["rope_parameters"] = {**rope, **{key: rope[key] * 4 for key in ("short_factor", "long_factor")}}
    return Family(Variant(variant.model_type, {**variant.settings, **sizes, **settings}), layout)


_WIDE = {"head_dim": 256, "num_attention_heads": 2, "num_key_value_heads": 1}

FAMILIES: dict[str, Family] = {
    "llama": _family("llama", attention_bias=True, mlp_bias=True),
    "mixtral": _family("mixtral"),
    "mixtral-single": _family("mixtral", Layout(single_experts=True)),
    "gemma2": _family("gemma2", **_WIDE),
    "gemma3": _family("gemma3", **_WIDE),
    "qwen2": _family("qwen2", max_window_layers=0),
    "qwen3": _family("qwen3", **_WIDE),
    "phi2": _family("phi2", Layout(fused_qkv=True)),
    "phi3": _family("phi3"),
    "phi3-long": _family("phi3-long", original_max_position_embeddings=64),
}


def write_base(folder: Path, name: str) -> Path:
    """Writes a family's model as a GGUF file of F32 tensors."""
    family = FAMILIES[name]
    plain = write_folder(folder / name, family.variant)
    return write_gguf(folder / f"{name}.gguf", plain, type_="F32", layout=family.layout)


@dataclass(frozen=True, slots=True)
class Base:
    """A file of F32 tensors, read once."""

    metadata: dict[str, Any]
    tensors: dict[str, np.ndarray]

    @classmethod
    def read(cls, path: Path) -> Base:
        return cls(*read_gguf(path))

    def roles(self) -> dict[str, list[str]]:
        """Returns the tensors of each role, which is their name without layer and expert."""
        found: dict[str, list[str]] = {}
        for name in self.tensors:
            found.setdefault(re.sub(r"^blk\.\d+\.|(?<=\.)\d+\.", "", name), []).append(name)
        return found

    def can_store(self, name: str, type_: QuantType) -> bool:
        """Returns whether the tensor's rows split in blocks of the type."""
        return self.tensors[name].shape[-1] % type_.block_len == 0

    def write(self, target: Path, types: Mapping[str, str]) -> Path:
        """Writes a copy with some tensors in other types, by their names."""
        tensors = {
            name: (stored(name, values, STORABLE[types[name]]), STORABLE[types[name]]) if name in types else values
            for name, values in self.tensors.items()
        }
        return copied(self.metadata, tensors, target)


def stored(name: str, values: np.ndarray, type_: QuantType) -> np.ndarray:
    """Returns the values in a type, as bytes (..., row_bytes); random ones of this size if `gguf` cannot quantize."""
    if type_.name in QUANTISABLE:
        packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType[type_.name])
        return np.ascontiguousarray(packed).view(np.uint8)
    rows, columns = int(np.prod(values.shape[:-1])), values.shape[-1]
    size = float(np.sqrt(np.square(values.astype(np.float64)).mean()))
    blocks = sane_rows(type_, rows=rows, columns=columns, seed=zlib.crc32(name.encode()), deviation=size)
    return blocks.reshape(*values.shape[:-1], -1)


def difference(path: Path, *, isa: str | None = None, gqa: int = 1) -> float:
    """Returns the distance of the kernels' logits from those of plain torch, as a part of the latter's range.

    Raises ``LoadError`` if the kernels refuse the file, and AssertionError if a token's result alone differs from that
    in its prompt.
    """
    kernels = Running.load(path, precision="f32", threads=1, isa=isa, gqa=gqa)
    logits = kernels.whole(TOKENS)
    text = Text(list(TOKENS), seed=0)
    for position in range(len(TOKENS) - DECODED_ALONE, len(TOKENS)):
        [row] = kernels.step((text, position, position + 1))
        assert torch.equal(row[0], logits[position]), f"token {position} alone is another"
    return _apart(logits, _plain_logits(path, gqa))


def rounding(path: Path, *, gqa: int = 1) -> float:
    """Returns the distance of plain torch from itself with activations that are not rounded to int8, in the same unit.

    A difference in the last bit of a float32 sum can change a rounding, and a model may amplify that. Where minima are
    multiplied with sums of columns, kernels round these sums as well (``PAIRED_SUM``) and torch does not, with steps of
    about the same size: the distance counts twice (1.65 was the most in a whole drill).
    """
    rounded = _plain_logits(path, gqa)
    with patch("mistralrs.ops.reference_ops.round_to_int8", lambda x, outlier_threshold, *, shared: x):
        once = _apart(rounded, _plain_logits(path, gqa))
    types = {tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    return once if types.isdisjoint(PAIRED_TYPES) else 2 * once


def _plain_logits(path: Path, gqa: int) -> torch.Tensor:
    return Running.load(path, precision="f32", threads=1, isa="torch", gqa=gqa).whole(TOKENS)


def _apart(logits: torch.Tensor, expected: torch.Tensor) -> float:
    assert bool(expected.isfinite().all()), "the logits are not finite"
    return float((logits - expected).abs().max()) / max(float(expected.amax() - expected.amin()), 1e-6)
