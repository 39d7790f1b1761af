"""Writes a LoRA adapter as a GGUF file that llama.cpp reads too.

The file has one alpha for all matrices, and the scale of each is alpha / rank. A scale of another form, such as that of
rslora in files with several ranks, is multiplied into B.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mistralrs.adapters.lora.gguf_lora import A_SUFFIX, ALPHA, B_SUFFIX, KIND, TOKENS, gguf_form
from mistralrs.adapters.lora.lora import LoraAdapter
from mistralrs.adapters.lora.lora_pairs import LoraPair, pairs_of, stored_bytes, stored_type, with_scale
from mistralrs.loading.gguf_writer import TensorInfo, Value, new_gguf
from mistralrs.models.registry import GGUF_NAMES
from mistralrs.models.spec import DecoderSpec
from mistralrs.quant.types import TYPES


def write_gguf_lora(
    adapter: LoraAdapter, out: Path, *, architecture: str, spec: DecoderSpec, base: str | None = None
) -> None:
    """Writes ``out`` for GGUF files of ``architecture`` (a key of ``ARCHITECTURES``) with this spec.

    Matrices keep their type (F32, F16 or BF16) unless a scale is multiplied into them. ``base``: the name or hub id of
    the base model. Raises ``LoadError`` for an adapter that such a file cannot hold, or if it cannot be written.
    """
    pairs = pairs_of(adapter, gguf_form(architecture), spec)
    alpha = _alpha(pairs)
    pairs = [with_scale(pair, alpha / pair.rank) for pair in pairs]
    metadata = _metadata(adapter, architecture, alpha, base)
    named = [
        (pair.tensor + suffix, values) for pair in pairs for suffix, values in ((A_SUFFIX, pair.a), (B_SUFFIX, pair.b))
    ]
    infos = [TensorInfo(name, TYPES[stored_type(values)], tuple(values.shape)) for name, values in named]
    with new_gguf(out, metadata, infos) as writer:
        for name, values in named:
            writer.write(name, [stored_bytes(values)])


def _alpha(pairs: Sequence[LoraPair]) -> float:
    """The alpha that fits most matrices, as the file holds it. It cannot be 0, which would mean a scale of 1."""
    found = Counter(_as_float32(pair.scale * pair.rank) for pair in pairs)
    del found[0.0]
    return found.most_common(1)[0][0] if found else 1.0


def _as_float32(value: float) -> float:
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded


def _metadata(adapter: LoraAdapter, architecture: str, alpha: float, base: str | None) -> dict[str, Value]:
    metadata: dict[str, Value] = {
        "general.architecture": GGUF_NAMES[architecture],
        "general.type": "adapter",
        "general.name": adapter.name,
        KIND: "lora",
        ALPHA: alpha,
    }
    if base is not None:
        metadata |= {"general.base_model.count": 1, "general.base_model.0.name": base}
    if adapter.invocation_tokens:
        metadata[TOKENS] = adapter.invocation_tokens
    return metadata
