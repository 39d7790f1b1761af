"""Tiny random multimodal checkpoints, as folders that `transformers` reads, each with a vision part."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from tests.architectures import BASE, HEAD_DIM, NORMS_MINUS_ONE, WINDOW, weight_of, write_tokenizer

_SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
_IMAGE = {**_SMALL, "image_size": 16, "patch_size": 8}
_SIGLIP = {"model_type": "siglip_vision_model", **_IMAGE}
_CLIP = {"model_type": "clip_vision_model", **_IMAGE, "projection_dim": 32}
_PIXTRAL = {"model_type": "pixtral", **_IMAGE, "head_dim": 16}
_QWEN = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64}
_MROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
_GEMMA3_ROPES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
}
_TEXT: dict[str, Any] = {key: value for key, value in BASE.items() if key != "tie_word_embeddings"}


def _checkpoint(text: Mapping[str, Any], vision: Mapping[str, Any], **more: Any) -> Mapping[str, Any]:
    return {"text_config": {**_TEXT, **text}, "vision_config": dict(vision), **more}


CHECKPOINTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "gemma3": _checkpoint(
            {
                "model_type": "gemma3_text",
                "head_dim": HEAD_DIM,
                "num_hidden_layers": 7,
                "sliding_window": WINDOW,
                "query_pre_attn_scalar": HEAD_DIM,
                "rope_parameters": _GEMMA3_ROPES,
            },
            _SIGLIP,
            mm_tokens_per_image=4,
        ),
        "mistral3": _checkpoint(
            {"model_type": "mistral", "head_dim": HEAD_DIM, "sliding_window": None},
            _PIXTRAL,
            tie_word_embeddings=False,
        ),
        "qwen2_5_vl": _checkpoint({"rope_parameters": _MROPE}, _QWEN, tie_word_embeddings=True),
        "qwen2_vl": _checkpoint(
            {"rope_parameters": _MROPE},
            {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 1},
        ),
        "qwen3_vl": _checkpoint(
            {"head_dim": HEAD_DIM, "rope_parameters": {**_MROPE, "mrope_section": [6, 5, 5]}},
            {**_QWEN, "deepstack_visual_indexes": [0]},
        ),
        "llava": _checkpoint({"model_type": "llama"}, _CLIP),
        "llava_next": _checkpoint({"model_type": "mistral", "sliding_window": WINDOW}, _CLIP),
        "llava_onevision": _checkpoint({"model_type": "qwen2"}, _SIGLIP),
        "vipllava": _checkpoint({"model_type": "llama"}, _CLIP, vision_feature_layers=[0]),
        "internvl": _checkpoint(
            {"model_type": "qwen2"}, {**_SMALL, "image_size": [16, 16], "patch_size": [8, 8]}, tie_word_embeddings=False
        ),
        "idefics3": _checkpoint({"model_type": "llama"}, _IMAGE),
        "smolvlm": _checkpoint({"model_type": "llama"}, _IMAGE),
    }
)
"""The settings of `config.json` by ``model_type``."""


def write_multimodal(path: Path, kind: str) -> Path:
    """Writes config, weights, tokenizer and chat template, as `transformers` does."""
    config = AutoConfig.for_model(kind, **json.loads(json.dumps(CHECKPOINTS[kind])))
    AutoModelForImageTextToText.from_config(config).save_pretrained(path)
    file = path / "model.safetensors"
    text_type = CHECKPOINTS[kind]["text_config"].get("model_type", kind)
    weights = {
        name: weight_of(name, tuple(tensor.shape), norms_minus_one=text_type in NORMS_MINUS_ONE).to(torch.float16)
        for name, tensor in load_file(file).items()
    }
    save_file(weights, file, metadata={"format": "pt"})
    write_tokenizer(path)
    return path


def rename_tensors(folder: Path, names: Mapping[str, str]) -> None:
    """Replaces the prefix of tensors whose names begin with a key of ``names``."""
    file = folder / "model.safetensors"
    weights = {}
    for name, weight in load_file(file).items():
        old = next((old for old in names if name.startswith(old)), "")
        weights[names.get(old, "") + name.removeprefix(old)] = weight
    save_file(weights, file, metadata={"format": "pt"})


def multimodal_reference(folder: Path) -> PreTrainedModel:
    """Returns the folder's model in `transformers`, float32."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    assert isinstance(model, PreTrainedModel)
    model.eval()
    return model
