"""Writes a Hugging Face folder as a GGUF file, the way llama.cpp's converter does.

Keys come from `gguf`'s writer and tensor names from its map, independently of the loader.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import torch

from tests.architectures import NORMS_MINUS_ONE, keeps_float, read_config, read_weights
from tests.tiny import CHAT_TEMPLATE, CONTROL_TOKENS, MERGES, vocabulary

TYPES = ("F32", "F16", "BF16", "Q8_0")

ARCHITECTURES_IN_GGUF = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "mixtral": gguf.MODEL_ARCH.LLAMA,
    "gemma": gguf.MODEL_ARCH.GEMMA,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "phi": gguf.MODEL_ARCH.PHI2,
    "phi3": gguf.MODEL_ARCH.PHI3,
    "smollm3": gguf.MODEL_ARCH.SMOLLM3,
    "granite": gguf.MODEL_ARCH.GRANITE,
    "granitemoehybrid": gguf.MODEL_ARCH.GRANITE,
    "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE,
    "ministral3": gguf.MODEL_ARCH.MISTRAL3,
    "olmo2": gguf.MODEL_ARCH.OLMO2,
    "olmo3": gguf.MODEL_ARCH.OLMO2,
}
PAIRED = frozenset({"llama", "mistral", "mixtral", "smollm3", "granite", "granitemoehybrid", "ministral3"})
"""Model types whose q and k rows are stored with interleaved rotary pairs."""
_EXPERTS = {"w1": "gate", "w2": "down", "w3": "up", "gate_proj": "gate", "down_proj": "down", "up_proj": "up"}


@dataclass(frozen=True, slots=True)
class Layout:
    """The differences of older files."""

    single_experts: bool = False
    """Mixtral: a tensor for each expert."""
    fused_qkv: bool = False
    """Phi-2: q, k and v in one tensor."""
    architecture: gguf.MODEL_ARCH | None = None
    """None: the converter's choice."""
    window: bool = True
    """False: the sliding window is left out, as for Mistral in files of llama.cpp's converter."""


PLAIN = Layout()


def write_gguf(path: Path, folder: Path, *, type_: str = "F16", layout: Layout = PLAIN) -> Path:
    """Writes the folder's model; matrices in one of ``TYPES``, vectors and routers in F32."""
    config, weights = read_config(folder), read_weights(folder)
    if not layout.window:
        config["sliding_window"] = None
    model_type = config["model_type"]
    architecture = layout.architecture or ARCHITECTURES_IN_GGUF[model_type]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_name("tiny")
    _add_sizes(writer, config)
    _SPECIAL[model_type](writer, config)
    _add_tokenizer(writer, config["vocab_size"])
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    for name, weight in _tensors(config, weights, names, layout):
        storage = "F32" if keeps_float(name, tuple(weight.shape)) else type_
        quantized = gguf.GGMLQuantizationType[storage]
        writer.add_tensor(name, gguf.quants.quantize(weight.contiguous().numpy(), quantized), raw_dtype=quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors(
    config: dict[str, Any], weights: dict[str, torch.Tensor], names: gguf.TensorNameMap, layout: Layout
) -> Iterator[tuple[str, torch.Tensor]]:
    model_type = config["model_type"]
    stacked: dict[str, dict[int, torch.Tensor]] = {}
    fused: dict[str, dict[int, torch.Tensor]] = {}
    for name, weight in _unfused(weights).items():
        if model_type in PAIRED and ".q_proj." in name:
            weight = paired(weight, config["num_attention_heads"])
        elif model_type in PAIRED and ".k_proj." in name:
            weight = paired(weight, config["num_key_value_heads"])
        elif model_type in NORMS_MINUS_ONE and name.endswith("norm.weight"):
            weight = weight + 1
        if ".experts." in name:  # model.layers.0.block_sparse_moe.experts.3.w1.weight
            _, _, layer, _, _, expert, matrix, _ = name.split(".")
            part = f"blk.{layer}.ffn_{_EXPERTS[matrix]}"
            if layout.single_experts:
                yield f"{part}.{expert}.weight", weight
            else:
                stacked.setdefault(f"{part}_exps.weight", {})[int(expert)] = weight
            continue
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if stored is None:
            raise ValueError(f"GGUF has no name for {name}")
        place = next((i for i, part in enumerate(("attn_q.", "attn_k.", "attn_v.")) if part in stored), None)
        if layout.fused_qkv and place is not None:
            fused.setdefault(re.sub(r"attn_[qkv]", "attn_qkv", stored), {})[place] = weight
        else:
            yield stored, weight
    for name, members in stacked.items():
        yield name, torch.stack([members[expert] for expert in sorted(members)])
    for name, members in fused.items():
        yield name, torch.cat([members[place] for place in sorted(members)])
    yield from _rope_factors(config)


def _unfused(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gate and up of Granite's shared experts apart, and its feed-forward under the names of Llama."""
    apart: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        if ".shared_mlp.input_linear." in name:
            for part, rows in zip(("gate_proj", "up_proj"), weight.chunk(2), strict=True):
                apart[name.replace("shared_mlp.input_linear", f"mlp.{part}")] = rows
        else:
            apart[name.replace("shared_mlp.output_linear", "mlp.down_proj")] = weight
    return apart


def paired(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Returns the rows with interleaved pairs; `transformers` rotates row i of a head with row i + head_dim / 2."""
    return rows.view(heads, 2, -1, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _head_dim(config: dict[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _rope_factors(config: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    rope = config["rope_parameters"]
    if rope.get("rope_type") == "llama3":
        yield "rope_freqs.weight", _llama3_factors(rope, _head_dim(config))
    if rope.get("rope_type") == "longrope":
        yield "rope_factors_long.weight", torch.tensor(rope["long_factor"])
        yield "rope_factors_short.weight", torch.tensor(rope["short_factor"])


def _llama3_factors(rope: Mapping[str, Any], head_dim: int) -> torch.Tensor:
    """Returns the divisor of each frequency: 1 for the fast ones, ``factor`` for the slow ones."""
    frequencies = 1.0 / rope["rope_theta"] ** (torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    smooth = (turns - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
    smooth = smooth.clamp(0, 1)
    factors: torch.Tensor = 1 / ((1 - smooth) / rope["factor"] + smooth)
    return factors.float()


def _add_sizes(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config.get("shared_intermediate_size", config["intermediate_size"]))
    writer.add_head_count(config["num_attention_heads"])
    hybrid = config["model_type"] == "granitemoehybrid"  # whose Mamba layers would have none
    writer.add_head_count_kv(
        [config["num_key_value_heads"]] * config["num_hidden_layers"] if hybrid else config["num_key_value_heads"]
    )
    if "rms_norm_eps" in config:
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if config.get("head_dim"):
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    rope = config["rope_parameters"].get("full_attention", config["rope_parameters"])
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        _add_yarn(writer, rope)


def _add_yarn(writer: gguf.GGUFWriter, rope: Mapping[str, Any]) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(rope["factor"])
    writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if "beta_fast" in rope:
        writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
        writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])
    if "attention_factor" in rope:
        writer.add_rope_scaling_yarn_attn_factor(rope["attention_factor"])
    if rope.get("mscale_all_dim"):
        writer.add_rope_scaling_yarn_log_mul(rope["mscale_all_dim"])


def _add_llama(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_vocab_size(config["vocab_size"])
    writer.add_rope_dimension_count(_head_dim(config))
    if config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])


def _add_mixtral(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    _add_llama(writer, config)
    writer.add_expert_count(config["num_local_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])


def _add_granite(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    _add_llama(writer, config)
    writer.add_attention_scale(config["attention_multiplier"])
    writer.add_embedding_scale(config["embedding_multiplier"])
    writer.add_residual_scale(config["residual_multiplier"])
    writer.add_logit_scale(config["logits_scaling"])


def _add_granite_hybrid(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    _add_granite(writer, config)
    writer.add_expert_count(0)
    writer.add_expert_used_count(0)
    writer.add_expert_shared_feed_forward_length(config["shared_intermediate_size"])
    writer.add_rope_scaling_finetuned(config["position_embedding_type"] == "rope")


def _add_olmo3(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_sliding_window(config["sliding_window"])
    writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config["layer_types"]])


def _add_mistral3(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    _add_llama(writer, config)
    writer.add_attn_temperature_scale(config["rope_parameters"]["llama_4_scaling_beta"])


def _add_qwen3moe(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_expert_count(config["num_local_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])


def _add_gemma2(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
    writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    writer.add_sliding_window(config["sliding_window"])


def _add_gemma3(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_sliding_window(config["sliding_window"])


def _add_phi2(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_rope_dimension_count(_rotary_dim(config))


def _add_phi3(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    original, context = config["original_max_position_embeddings"], config["max_position_embeddings"]
    writer.add_rope_scaling_orig_ctx_len(original)
    writer.add_rope_dimension_count(_rotary_dim(config))
    writer.add_sliding_window(config["sliding_window"] or 0)
    if config["rope_parameters"]["rope_type"] == "longrope":
        factor = math.sqrt(1 + math.log(context / original) / math.log(original)) if context > original else 1.0
        writer.add_rope_scaling_attn_factors(factor)


def _rotary_dim(config: dict[str, Any]) -> int:
    return int(_head_dim(config) * config["rope_parameters"]["partial_rotary_factor"])


def _nothing(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    pass


_SPECIAL: dict[str, Callable[[gguf.GGUFWriter, dict[str, Any]], None]] = {
    "llama": _add_llama,
    "mistral": _add_llama,
    "mixtral": _add_mixtral,
    "gemma": _nothing,
    "gemma2": _add_gemma2,
    "gemma3_text": _add_gemma3,
    "qwen2": _nothing,
    "qwen3": _nothing,
    "phi": _add_phi2,
    "phi3": _add_phi3,
    "smollm3": _add_llama,
    "granite": _add_granite,
    "granitemoehybrid": _add_granite_hybrid,
    "qwen3_moe": _add_qwen3moe,
    "ministral3": _add_mistral3,
    "olmo2": _nothing,
    "olmo3": _add_olmo3,
}


def _add_tokenizer(writer: gguf.GGUFWriter, rows: int) -> None:
    tokens = vocabulary()
    padding = [f"[PAD{token}]" for token in range(len(tokens), rows)]
    control, normal = len(CONTROL_TOKENS), len(tokens) - len(CONTROL_TOKENS)
    kinds = [gguf.TokenType.CONTROL] * control + [gguf.TokenType.NORMAL] * normal
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*tokens, *padding])
    writer.add_token_types([*kinds, *([gguf.TokenType.UNUSED] * len(padding))])
    writer.add_token_merges(list(MERGES))
    unk, bos, eos = (tokens.index(token) for token in CONTROL_TOKENS)
    writer.add_bos_token_id(bos)
    writer.add_eos_token_id(eos)
    writer.add_unk_token_id(unk)
    writer.add_pad_token_id(unk)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
