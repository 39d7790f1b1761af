"""Writes legacy GGML files of every version, with the quantizers that llama.cpp had at the time.

The reference computes with the stored values: the writer returns the values that each tensor's blocks decode to.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file

from tests.tiny import TinyConfig, TinyModel

Weights = NDArray[np.float32]

SPACE = "\u2581"


@dataclass(frozen=True, slots=True)
class Format:
    """A version of the format. ``layout``: 1 and 2 for the older block layouts, 3 for those of today."""

    name: str
    start: bytes
    scores: bool
    alignment: int
    layout: int
    types: tuple[str, ...]
    """Names of the types in ggml at the time."""


_FIRST = ("F32", "F16", "Q4_0", "Q4_1")
FORMATS = {
    item.name: item
    for item in (
        Format("ggml", struct.pack("<I", 0x67676D6C), False, 1, 1, ("F32", "F16", "Q4_0")),
        Format("ggmf version 1", struct.pack("<II", 0x67676D66, 1), True, 1, 1, _FIRST),
        Format(
            "ggjt version 1",
            struct.pack("<II", 0x67676A74, 1),
            True, 32, 1, (*_FIRST, "Q4_2", "Q4_3", "Q5_0", "Q5_1", "Q8_0"),
        ),
        Format("ggjt version 2", struct.pack("<II", 0x67676A74, 2), True, 32, 2, (*_FIRST, "Q5_0", "Q5_1", "Q8_0")),
        Format("ggjt version 3", struct.pack("<II", 0x67676A74, 3), True, 32, 3, (*_FIRST, "Q5_0", "Q5_1", "Q8_0")),
    )
}  # fmt: skip

TYPE_IDS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q4_2": 4, "Q4_3": 5, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8}
_BITS = {"Q4_0": 4, "Q4_1": 4, "Q4_2": 4, "Q4_3": 4, "Q5_0": 5, "Q5_1": 5, "Q8_0": 8}
_WITH_MINIMUM = ("Q4_1", "Q4_3", "Q5_1")
_SINGLE_SCALES = ("Q4_0", "Q4_1", "Q8_0")
"""Types up to layout 2."""


def quantize(weights: Weights, type_: str, layout: int) -> tuple[bytes, Weights]:
    """Returns the bytes of a matrix and their decoded values. `gguf` quantizes the newest layout."""
    if type_ == "F32":
        return weights.tobytes(), weights
    if type_ == "F16":
        return weights.astype(np.float16).tobytes(), weights.astype(np.float16).astype(np.float32)
    if layout == 3:
        kind = gguf.GGMLQuantizationType[type_]
        data = gguf.quants.quantize(weights, kind)
        return data.tobytes(), gguf.quants.dequantize(data, kind)
    length = 16 if type_ in ("Q4_2", "Q4_3") else 32
    codes, scale, minimum = _codes(weights.reshape(-1, length), type_, layout)
    pieces = [scale.view(np.uint8).reshape(len(codes), -1)]
    if type_ in _WITH_MINIMUM:
        pieces.append(minimum.view(np.uint8).reshape(len(codes), -1))
        decoded = scale.astype(np.float32) * codes.astype(np.float32) + minimum.astype(np.float32)
    else:
        decoded = scale.astype(np.float32) * (codes - (0 if type_ == "Q8_0" else 1 << _BITS[type_] - 1))
    if _BITS[type_] == 5:
        fifth = (codes >> 4).astype(np.uint32) << np.arange(32, dtype=np.uint32)
        pieces.append(fifth.sum(axis=1, dtype=np.uint32).reshape(-1, 1).view(np.uint8))
    pieces.append(codes.astype(np.int8).view(np.uint8) if type_ == "Q8_0" else _nibbles(codes & 15, layout))
    return np.hstack(pieces).tobytes(), decoded.astype(np.float32).reshape(weights.shape)


def _codes(
    blocks: Weights, type_: str, layout: int
) -> tuple[NDArray[np.int32], NDArray[np.floating], NDArray[np.floating]]:
    """Returns integers, scales (blocks, 1) and minima (blocks, 1)."""
    number = np.float32 if type_ in _SINGLE_SCALES and layout < 3 else np.float16
    top = (1 << _BITS[type_]) - 1
    if type_ in _WITH_MINIMUM:
        minimum = blocks.min(axis=1, keepdims=True)
        scale = ((blocks.max(axis=1, keepdims=True) - minimum) / top).astype(number)
        shifted = (blocks - minimum) / np.where(scale == 0, 1, scale)
        return np.clip(np.round(shifted), 0, top).astype(np.int32), scale, minimum.astype(number)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1, keepdims=True), axis=1)
    middle = 0 if type_ == "Q8_0" else 1 << _BITS[type_] - 1
    scale = (np.abs(largest) / 127 if type_ == "Q8_0" else largest / -middle).astype(number)
    ratio = np.round(blocks / np.where(scale == 0, 1, scale))
    codes = np.clip(ratio, -127, 127) if type_ == "Q8_0" else np.clip(ratio + middle, 0, top)
    return codes.astype(np.int32), scale, np.zeros_like(scale)


def _nibbles(codes: NDArray[np.int32], layout: int) -> NDArray[np.uint8]:
    if layout == 1:
        low, high = codes[:, 0::2], codes[:, 1::2]
    else:
        low, high = np.hsplit(codes, 2)
    return (low | high << 4).astype(np.uint8)


def header(format_: Format, *sizes: int) -> bytes:
    """``sizes``: n_vocab, n_embd, n_mult, n_head, n_layer, n_rot, ftype."""
    return format_.start + struct.pack("<7I", *sizes)


def token(format_: Format, data: bytes, score: float = 0.0) -> bytes:
    return struct.pack("<I", len(data)) + data + (struct.pack("<f", score) if format_.scores else b"")


def tensor_start(name: bytes, dims: Sequence[int], type_id: int) -> bytes:
    """``dims`` as in the file, columns first."""
    return struct.pack("<3I", len(dims), len(name), type_id) + struct.pack(f"<{len(dims)}I", *dims) + name


def padding(format_: Format, position: int) -> bytes:
    return bytes(-position % format_.alignment)


def tokens(count: int) -> list[tuple[bytes, float]]:
    """Returns a small vocabulary of these files: three tokens without text, the bytes, pieces with scores."""
    pieces = [" ", "t", "h", "e", "a", "n", "d", " t", "he", " the", "an", " an", " and", "é"]
    pieces += [f"piece{number}" for number in range(count - 259 - len(pieces))]
    start = [(b" \xe2\x81\x87 ", 0.0), (b"", 0.0), (b"", 0.0), *((bytes([byte]), 0.0) for byte in range(256))]
    return [*start, *((piece.encode(), float(-rank)) for rank, piece in enumerate(pieces))]


def write_ggml(
    path: Path,
    model: TinyModel,
    *,
    version: str,
    type_: str = "F32",
    others: Mapping[str, str] = MappingProxyType({}),
) -> TinyModel:
    """Writes the same model as a GGML file; its matrices stored as ``type_``. It must have a head of its own.

    ``others``: types of parts that have another, such as ``q_proj``.
    """
    config, format_ = model.config, FORMATS[version]
    if config.tied or config.heads * config.head_dim != config.hidden:
        raise ValueError("a GGML file has a head, and heads that make up the width")
    sizes = (config.vocab, config.hidden, 32, config.heads, config.layers, config.head_dim, TYPE_IDS[type_])
    data = bytearray(header(format_, *sizes))
    for text, score in tokens(config.vocab):
        data += token(format_, text, score)
    weights: dict[str, Weights] = {}
    for name, original in model.weights.items():
        heads = _paired_heads(name, config)
        kind = others.get(name.split(".")[-2], type_ if original.ndim == 2 else "F32")
        stored, decoded = quantize(_paired(original, heads), kind, format_.layout)
        data += tensor_start(ggml_name(name).encode(), original.shape[::-1], TYPE_IDS[kind])
        data += padding(format_, len(data)) + stored
        weights[name] = _unpaired(decoded, heads)
    path.write_bytes(data)
    return TinyModel(path, config, weights)


def write_ggml_of(path: Path, folder: Path, *, type_: str = "F16") -> Path:
    """Writes the Llama of a Hugging Face folder as a GGML file; numbers that such files lack must be the defaults."""
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    unsaid = settings["model_type"], settings["rope_parameters"], settings["rms_norm_eps"]
    if unsaid != ("llama", rope, 1e-5):
        raise ValueError(f"a GGML file cannot say {unsaid}")
    weights = {name: weight.float().numpy() for name, weight in load_file(folder / "model.safetensors").items()}
    config = TinyConfig(
        vocab=settings["vocab_size"],
        hidden=settings["hidden_size"],
        layers=settings["num_hidden_layers"],
        heads=settings["num_attention_heads"],
        kv_heads=settings["num_key_value_heads"],
        head_dim=settings["head_dim"],
        tied=settings["tie_word_embeddings"],
    )
    return write_ggml(path, TinyModel(folder, config, weights), version="ggjt version 3", type_=type_).path


_NAMES = {
    "embed_tokens": "tok_embeddings", "norm": "norm", "lm_head": "output", "q_proj": "attention.wq",
    "k_proj": "attention.wk", "v_proj": "attention.wv", "o_proj": "attention.wo", "gate_proj": "feed_forward.w1",
    "down_proj": "feed_forward.w2", "up_proj": "feed_forward.w3", "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def ggml_name(name: str) -> str:
    """Returns a tensor's name: `model.layers.0.self_attn.q_proj.weight` -> `layers.0.attention.wq.weight`."""
    parts = name.split(".")
    layer = ".".join(parts[1:3]) + "." if parts[1] == "layers" else ""
    return f"{layer}{_NAMES[parts[-2]]}.weight"


def _paired_heads(name: str, config: TinyConfig) -> int:
    """Returns the heads of tensors whose rotary pairs are interleaved in these files, else 0."""
    return {"q_proj": config.heads, "k_proj": config.kv_heads}.get(name.split(".")[-2], 0)


def _paired(rows: Weights, heads: int) -> Weights:
    return rows if heads == 0 else rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def _unpaired(rows: Weights, heads: int) -> Weights:
    return rows if heads == 0 else rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
