"""The model factory: tiny random Llamas, on disk as GGUF with tokenizer and chat template, and in `transformers`.

Weights are drawn on the float16 grid from a fixed integer hash of the tensor's name, so that every run and every
storage type starts from the same numbers. The reference computes with the stored values: it gets the weights as the
file's own type decodes them, in the order that `transformers` has them.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import gguf
import numpy as np
from numpy.typing import NDArray

from mistralrs.quant.types import TYPES
from tests.quant.blocks import sane_rows

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM

CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = (
    "t h", "Ġ t", "i n", "h e", "Ġ a", "e r", "o n", "Ġt he", "r e", "Ġ w", "o u", "l l", "a n", "Ġ c", "Ġ s", "s t",
    "Ġa n", "Ġan d", "e n", "Ġ i", "Ġi s", "o r", "Ġ o", "Ġo f", "i t", "Ġ p", "Ġ h", "Ġ f", "Ġ b",
)  # fmt: skip
TOKENIZER_SIZE = len(CONTROL_TOKENS) + 256 + len(MERGES)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

QUANTISABLE = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
"""The types that `gguf` can quantize to; the K types get random blocks."""


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Llama 3.1's scaling of RoPE, as in `config.json`."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 64


@dataclass(frozen=True, slots=True)
class StorageTypes:
    """Names of the storage types, per class of matrix. Norms are always F32."""

    embedding: str = "F32"
    attention: str = "F32"
    feed_forward: str = "F32"
    head: str = "F32"

    @classmethod
    def all(cls, name: str) -> StorageTypes:
        return cls(name, name, name, name)


@dataclass(frozen=True, slots=True)
class TinyConfig:
    """The shape of a tiny Llama. K types need ``hidden``, ``heads * head_dim``, ``feed_forward`` in 256s."""

    hidden: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    feed_forward: int = 96
    vocab: int = TOKENIZER_SIZE
    context: int = 512
    rope_base: float = 10000.0
    norm_eps: float = 1e-5
    tied: bool = True
    rope_scaling: Llama3Scaling | None = None
    types: StorageTypes = field(default_factory=StorageTypes)

    def __post_init__(self) -> None:
        if self.vocab < TOKENIZER_SIZE:
            raise ValueError(f"the tokenizer has {TOKENIZER_SIZE} tokens, the vocabulary must not be smaller")


DEFAULT = TinyConfig()


@dataclass(frozen=True, slots=True)
class TinyModel:
    """A model on disk and its weights as the file's types decode them."""

    path: Path
    config: TinyConfig
    weights: dict[str, NDArray[np.float32]]
    """The weights by the names and in the row order of `transformers`."""

    def reference(self) -> LlamaForCausalLM:
        """Returns the same model in `transformers`, float32, on the CPU."""
        import torch
        from transformers import LlamaForCausalLM

        model: LlamaForCausalLM = LlamaForCausalLM(transformers_config(self.config))
        model.eval()
        state = {name: torch.from_numpy(weight) for name, weight in self.weights.items()}
        if self.config.tied:
            state["lm_head.weight"] = state["model.embed_tokens.weight"]
        model.load_state_dict(state)
        return model


def write_tiny(path: Path, config: TinyConfig = DEFAULT) -> TinyModel:
    """Writes the model to ``path`` as a GGUF file of version 3, as llama.cpp's converter would."""
    writer = gguf.GGUFWriter(path, "llama")
    _add_metadata(writer, config)
    _add_tokenizer(writer, config)
    weights = {}
    for tensor in _tensors(config):
        storage = gguf.GGMLQuantizationType[tensor.type]
        rows = _stored_rows(tensor)
        writer.add_tensor(tensor.name, rows, raw_dtype=storage)
        weights[tensor.reference_name] = _original_order(gguf.quants.dequantize(rows, storage), tensor.paired_heads)
    if config.rope_scaling is not None:
        writer.add_tensor("rope_freqs.weight", rope_factors(config, config.rope_scaling))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return TinyModel(path, config, weights)


def transformers_config(config: TinyConfig) -> LlamaConfig:
    """Returns the `LlamaConfig` of the same shape."""
    from transformers import LlamaConfig

    rope: dict[str, object] = {"rope_type": "default", "rope_theta": config.rope_base}
    scaling = config.rope_scaling
    if scaling is not None:
        rope |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
    return LlamaConfig(
        vocab_size=config.vocab,
        hidden_size=config.hidden,
        intermediate_size=config.feed_forward,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.context,
        rms_norm_eps=config.norm_eps,
        rope_parameters=rope,
        tie_word_embeddings=config.tied,
    )


def vocabulary() -> list[str]:
    """Returns the tokens in order of their ids: control tokens, 256 bytes in GPT-2's spelling, the merges' results."""
    return [*CONTROL_TOKENS, *byte_characters(), *(merge.replace(" ", "") for merge in MERGES)]


def byte_characters() -> list[str]:
    """Returns GPT-2's character for each byte: itself if it is printable, else the next one from U+0100 on."""
    printing = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printing else next(others)) for byte in range(256)]


def hashed_weights(name: str, shape: tuple[int, ...], *, scale: float) -> NDArray[np.float32]:
    """Returns numbers in [-scale, scale), 1/1024 of ``scale`` apart, a power of two; a name's are always the same."""
    with np.errstate(over="ignore"):
        x = np.arange(math.prod(shape), dtype=np.uint32) * np.uint32(0x9E3779B1) + np.uint32(zlib.crc32(name.encode()))
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):  # the finaliser of MurmurHash3
            x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
        x ^= x >> np.uint32(16)
    steps = (x >> np.uint32(21)).astype(np.float32) - 1024
    return (steps * np.float32(scale / 1024)).reshape(shape)


def rope_factors(config: TinyConfig, scaling: Llama3Scaling) -> NDArray[np.float32]:
    """Returns divisors of rotary frequencies, (head_dim / 2,): 1 for the fast ones, ``factor`` for the slow ones."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    turns = scaling.original_context / (2 * math.pi * config.rope_base**exponents)  # within the original context
    share = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    share = np.clip(share, 0.0, 1.0)
    return (1.0 / ((1.0 - share) / scaling.factor + share)).astype(np.float32)


class _Tensor(NamedTuple):
    name: str
    reference_name: str
    shape: tuple[int, ...]
    type: str
    paired_heads: int = 0
    """Not 0: the number of heads of rows whose rotary pairs the file interleaves."""


def _tensors(config: TinyConfig) -> Iterator[_Tensor]:
    types, hidden = config.types, config.hidden
    yield _Tensor("token_embd.weight", "model.embed_tokens.weight", (config.vocab, hidden), types.embedding)
    for layer in range(config.layers):
        yield from _layer_tensors(config, layer)
    yield _Tensor("output_norm.weight", "model.norm.weight", (hidden,), "F32")
    if not config.tied:
        yield _Tensor("output.weight", "lm_head.weight", (config.vocab, hidden), types.head)


def _layer_tensors(config: TinyConfig, layer: int) -> Iterator[_Tensor]:
    hidden, inner = config.hidden, config.feed_forward
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    attention, feed_forward = config.types.attention, config.types.feed_forward
    for name, reference, shape, type_, heads in (
        ("attn_norm", "input_layernorm", (hidden,), "F32", 0),
        ("attn_q", "self_attn.q_proj", (q, hidden), attention, config.heads),
        ("attn_k", "self_attn.k_proj", (kv, hidden), attention, config.kv_heads),
        ("attn_v", "self_attn.v_proj", (kv, hidden), attention, 0),
        ("attn_output", "self_attn.o_proj", (hidden, q), attention, 0),
        ("ffn_norm", "post_attention_layernorm", (hidden,), "F32", 0),
        ("ffn_gate", "mlp.gate_proj", (inner, hidden), feed_forward, 0),
        ("ffn_up", "mlp.up_proj", (inner, hidden), feed_forward, 0),
        ("ffn_down", "mlp.down_proj", (hidden, inner), feed_forward, 0),
    ):
        yield _Tensor(f"blk.{layer}.{name}.weight", f"model.layers.{layer}.{reference}.weight", shape, type_, heads)


def _stored_rows(tensor: _Tensor) -> NDArray[np.uint8]:
    """Returns the tensor's bytes in the file, (rows, row_bytes), or (bytes,) for a norm."""
    if len(tensor.shape) == 1:
        return (1 + hashed_weights(tensor.name, tensor.shape, scale=0.25)).view(np.uint8)
    rows, columns = tensor.shape
    # Embeddings four times larger than a projection: logits then spread enough for one token to win clearly.
    gain = 4 if tensor.name in ("token_embd.weight", "output.weight") else 1
    if tensor.type not in QUANTISABLE:
        seed = zlib.crc32(tensor.name.encode())
        return sane_rows(TYPES[tensor.type], rows=rows, columns=columns, seed=seed, deviation=gain / columns**0.5)
    scale = gain * 2.0 ** round(math.log2((3 / columns) ** 0.5))
    weights = _file_order(hashed_weights(tensor.name, tensor.shape, scale=scale), tensor.paired_heads)
    stored: NDArray[np.generic] = gguf.quants.quantize(weights, gguf.GGMLQuantizationType[tensor.type])
    return np.ascontiguousarray(stored).view(np.uint8)


def _file_order(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Returns the rows in the file's order: `transformers` rotates row i of a head with row i + head_dim / 2, which
    llama.cpp's files interleave.
    """
    return rows if heads == 0 else rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def _original_order(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Returns the rows in the original order, the inverse of ``_file_order``."""
    return rows if heads == 0 else rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def _add_metadata(writer: gguf.GGUFWriter, config: TinyConfig) -> None:
    writer.add_name("tiny")
    writer.add_block_count(config.layers)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.hidden)
    writer.add_feed_forward_length(config.feed_forward)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab)
    writer.add_rope_dimension_count(config.head_dim)
    if config.head_dim * config.heads != config.hidden:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)


def _add_tokenizer(writer: gguf.GGUFWriter, config: TinyConfig) -> None:
    tokens = vocabulary()
    unused = [f"[PAD{token}]" for token in range(len(tokens), config.vocab)]
    control, normal = len(CONTROL_TOKENS), len(tokens) - len(CONTROL_TOKENS)
    types = [gguf.TokenType.CONTROL] * control + [gguf.TokenType.NORMAL] * normal
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*tokens, *unused])
    writer.add_token_types([*types, *([gguf.TokenType.UNUSED] * len(unused))])
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(tokens.index("<|im_start|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_unk_token_id(tokens.index("<|endoftext|>"))
    writer.add_pad_token_id(tokens.index("<|im_end|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
