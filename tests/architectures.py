"""Tiny random models of every architecture, as Hugging Face folders that `transformers` reads.

The tensors' names and shapes are those of `transformers`. Their numbers come from an integer hash of their names and
lie on the float16 grid, so that every format starts from the same ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import gguf
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from tests.tiny import CHAT_TEMPLATE, CONTROL_TOKENS, MERGES, TOKENIZER_SIZE, hashed_weights, vocabulary

WINDOW = 20
"""Window of the variants that have a sliding one."""
HEAD_DIM = 32
"""Head size of the variants whose heads are wider than hidden_size / num_attention_heads, which is 16."""
ORIGINAL_CONTEXT = 64
"""The context that Llama 3's scaling and YaRN stretch."""
SHORT_CONTEXT = 256
"""The context that Phi-3's short factors are made for."""

BASE: Mapping[str, Any] = MappingProxyType(
    {
        "vocab_size": TOKENIZER_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
)


@dataclass(frozen=True, slots=True)
class Variant:
    """A model that differs from ``BASE`` in ``settings`` of its `config.json`."""

    model_type: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    in_gguf: bool = True
    """False: GGUF has no key for what is special about it."""


def _rope(kind: str, **settings: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 10000.0, **settings}


_LLAMA3 = _rope(
    "llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=ORIGINAL_CONTEXT,
)
_YARN = _rope("yarn", factor=4.0, original_max_position_embeddings=ORIGINAL_CONTEXT, beta_fast=8.0, beta_slow=0.5)
_LONG = _rope(
    "longrope",
    short_factor=[1.0 + 0.125 * i for i in range(8)],
    long_factor=[2.0 + 0.25 * i for i in range(8)],
    original_max_position_embeddings=SHORT_CONTEXT,
)
_GEMMA3 = {"tie_word_embeddings": True, "head_dim": HEAD_DIM, "num_hidden_layers": 7, "sliding_window": WINDOW}
_GEMMA3_ROPES = {
    "sliding_attention": _rope("default"),
    "full_attention": _rope("linear", factor=4.0) | {"rope_theta": 1e6},
}
_CAPS = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 10.0}
_GEMMA2 = {"tie_word_embeddings": True, "head_dim": HEAD_DIM, "sliding_window": WINDOW, **_CAPS}
_GRANITE = {
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.125,
    "logits_scaling": 8.0,
}
_GRANITE_HYBRID = {
    "layer_types": ["attention"] * 4,
    "num_local_experts": 0,
    "num_experts_per_tok": 0,
    "shared_intermediate_size": 160,
    "tie_word_embeddings": True,
    **_GRANITE,
}
_MINISTRAL3 = _YARN | {"factor": 8.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.5}
_MINISTRAL3 |= {"original_max_position_embeddings": 16}
_QWEN3MOE = {"head_dim": HEAD_DIM, "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
_USUAL_SCALE = torch.tensor(1 + 0.1 * math.log(_YARN["factor"])).item()
"""YaRN's factor on cosines and sines, as OLMo 3 says it, on the float32 grid, in which GGUF files have it."""
_OLMO3_ROPES = {"sliding_attention": _rope("default"), "full_attention": _YARN | {"attention_factor": _USUAL_SCALE}}
_ALTERNATING = ["sliding_attention", "full_attention"] * 2
_PHI3 = {"sliding_window": None}

VARIANTS: dict[str, Variant] = {
    "llama": Variant("llama", {"rope_parameters": _LLAMA3}),
    "llama-biased-tied": Variant("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama-linear": Variant("llama", {"rope_parameters": _rope("linear", factor=2.0)}),
    "llama-yarn": Variant("llama", {"rope_parameters": _YARN}),
    "mistral": Variant("mistral", {"sliding_window": WINDOW}),
    "mistral-nemo": Variant("mistral", {"sliding_window": None, "head_dim": HEAD_DIM}),
    "mixtral": Variant("mixtral", {"sliding_window": None, "num_local_experts": 5, "num_experts_per_tok": 2}),
    "gemma": Variant("gemma", {"tie_word_embeddings": True, "head_dim": HEAD_DIM}),
    "gemma2": Variant("gemma2", {**_GEMMA2, "query_pre_attn_scalar": HEAD_DIM}),
    "gemma2-scaled": Variant("gemma2", {**_GEMMA2, "query_pre_attn_scalar": 24}, in_gguf=False),
    "gemma3": Variant("gemma3_text", {**_GEMMA3, "query_pre_attn_scalar": HEAD_DIM}),
    "gemma3-linear": Variant(
        "gemma3_text", {**_GEMMA3, "query_pre_attn_scalar": HEAD_DIM, "rope_parameters": _GEMMA3_ROPES}
    ),
    "qwen2": Variant("qwen2", {"max_window_layers": 2}),
    "qwen2-window": Variant(
        "qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2}, in_gguf=False
    ),
    "qwen3": Variant("qwen3", {"head_dim": HEAD_DIM, "tie_word_embeddings": True}),
    "phi2": Variant("phi", {"num_key_value_heads": 4, "vocab_size": TOKENIZER_SIZE + 13, "intermediate_size": 256}),
    "phi3": Variant("phi3", {"sliding_window": WINDOW}),
    "phi3-partial": Variant("phi3", {**_PHI3, "rope_parameters": _rope("default", partial_rotary_factor=0.5)}),
    "phi3-long": Variant(
        "phi3", {**_PHI3, "original_max_position_embeddings": SHORT_CONTEXT, "rope_parameters": _LONG}
    ),
    "smollm3": Variant("smollm3", {"tie_word_embeddings": True}),
    "olmo2": Variant("olmo2"),
    "olmo3": Variant("olmo3", {"sliding_window": WINDOW, "rope_parameters": _OLMO3_ROPES}),
    "olmo3-alternating": Variant("olmo3", {"sliding_window": WINDOW, "layer_types": _ALTERNATING}),
    "mistral3": Variant("ministral3", {"head_dim": HEAD_DIM, "rope_parameters": _MINISTRAL3}),
    "qwen3moe": Variant("qwen3_moe", {**_QWEN3MOE, "norm_topk_prob": True}),
    "qwen3moe-plain": Variant("qwen3_moe", {**_QWEN3MOE, "norm_topk_prob": False}, in_gguf=False),
    "granite": Variant("granite", {"tie_word_embeddings": True, **_GRANITE}),
    "granitehybrid": Variant("granitemoehybrid", {**_GRANITE_HYBRID, "position_embedding_type": "rope"}),
    "granitehybrid-nope": Variant("granitemoehybrid", {**_GRANITE_HYBRID, "position_embedding_type": None}),
}

Folders = Callable[[str], Path]
"""Gives the folder of a variant, by its name."""

NORMS_MINUS_ONE = frozenset({"gemma", "gemma2", "gemma3_text"})
"""Model types whose folders store norms minus one."""


def write_folder(
    path: Path, variant: Variant, *, dtype: torch.dtype = torch.float16, decoded_as: str | None = None
) -> Path:
    """Writes config, weights, tokenizer and chat template.

    ``dtype``: the type of all but vectors and routers, which are float16 and therefore exact.
    ``decoded_as``: a GGML type; the matrices have the weights after a round trip through it.
    """
    config = AutoConfig.for_model(variant.model_type, **{**BASE, **variant.settings})
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    file = path / "model.safetensors"
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(file).items()}
    weights = {
        name: weight_of(name, shape, norms_minus_one=variant.model_type in NORMS_MINUS_ONE)
        for name, shape in shapes.items()
    }
    if decoded_as is not None:
        weights = {name: _decoded(name, weight, decoded_as) for name, weight in weights.items()}
    stored = {
        name: weight.to(torch.float16 if keeps_float(name, shapes[name]) else dtype) for name, weight in weights.items()
    }
    save_file(stored, file, metadata={"format": "pt"})
    write_tokenizer(path)
    return path


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Returns the weights of a folder in float32."""
    return {name: weight.float() for name, weight in load_file(folder / "model.safetensors").items()}


def read_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


def reference(folder: Path) -> PreTrainedModel:
    """Returns the folder's model in `transformers`, float32, with eager attention, which supports soft caps."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    assert isinstance(model, PreTrainedModel)
    model.eval()
    return model


def greedy(model: PreTrainedModel, prompt: list[int], *, count: int) -> list[int]:
    """Returns the greedy tokens of `transformers` after ``prompt``; never one that the tokenizer lacks."""
    generation = GenerationConfig(
        do_sample=False, max_new_tokens=count, pad_token_id=0, suppress_tokens=[*range(TOKENIZER_SIZE, _rows(model))]
    )
    model.generation_config.eos_token_id = None
    ids = torch.tensor([prompt])
    generate = cast(Callable[..., torch.Tensor], model.generate)
    with torch.inference_mode():
        found = generate(ids, attention_mask=torch.ones_like(ids), generation_config=generation)
    return [int(token) for token in found[0, len(prompt) :]]


def keeps_float(name: str, shape: tuple[int, ...]) -> bool:
    """Returns whether a tensor is F32 in every GGUF file: vectors, and routers, which are small and sensitive."""
    return len(shape) == 1 or name.endswith(("block_sparse_moe.gate.weight", "mlp.gate.weight", "ffn_gate_inp.weight"))


def _rows(model: PreTrainedModel) -> int:
    rows: int = model.config.vocab_size
    return rows


def weight_of(name: str, shape: tuple[int, ...], *, norms_minus_one: bool) -> torch.Tensor:
    """Returns the numbers of a tensor of that name, on the float16 grid."""
    if len(shape) == 1:
        offset = 0 if name.endswith(".bias") or norms_minus_one else 1
        return torch.from_numpy(offset + hashed_weights(name, shape, scale=0.25))
    # embeddings and heads four times larger than a projection: logits then spread enough for one token to win clearly
    gain = 4 if shape[0] >= TOKENIZER_SIZE else 1
    scale = gain * 2.0 ** round(math.log2((3 / shape[1]) ** 0.5))
    return torch.from_numpy(hashed_weights(name, shape, scale=scale))


def _decoded(name: str, weight: torch.Tensor, type_: str) -> torch.Tensor:
    if keeps_float(name, tuple(weight.shape)):
        return weight
    storage = gguf.GGMLQuantizationType[type_]
    return torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), storage), storage))


def write_tokenizer(path: Path) -> None:
    """Writes a byte-level tokenizer with a chat template."""
    ids = {token: index for index, token in enumerate(vocabulary())}
    merges = [(first, second) for first, second in (merge.split(" ") for merge in MERGES)]
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS])
    tokenizer.save(str(path / "tokenizer.json"))
    unk, bos, eos = CONTROL_TOKENS
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "unk_token": unk,
        "pad_token": unk,
        "add_bos_token": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
