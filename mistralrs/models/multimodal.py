"""The language model in a multimodal checkpoint: its configuration, and its tensors by the names of a text model.

It gives what `transformers` gives for such a checkpoint and a prompt without images. Images are not read. The module
handles names in `config.json` and of tensors; it opens no file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from mistralrs.errors import LoadError

TEXT_TYPES: Mapping[str, str] = MappingProxyType(
    {
        "gemma3": "gemma3_text",
        "mistral3": "mistral",
        "llava": "llama",
        "llava_next": "llama",
        "llava_onevision": "qwen2",
        "vipllava": "llama",
        "internvl": "qwen2",
        "idefics3": "llama",
        "smolvlm": "llama",
        "qwen2_vl": "qwen2_vl_text",
        "qwen2_5_vl": "qwen2_5_vl_text",
        "qwen3_vl": "qwen3_vl_text",
    }
)
"""``model_type`` of the supported multimodal checkpoints -> the default ``model_type`` of their language model."""

_FLAT = frozenset({"qwen2_vl", "qwen2_5_vl"})
"""Types that may have the language model's keys at the top level."""

_PLAIN_TYPES = {"qwen2_vl_text": "qwen2", "qwen2_5_vl_text": "qwen2", "qwen3_vl_text": "qwen3"}
"""Language models that are equal to a text model: a token of text has the same position in time, height and width, and
their rotary embedding in three parts is therefore the plain one."""

_LLAMA = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
}
_QWEN2 = _LLAMA | {
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_QWEN2_VL = {
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "sliding_window": 4096,
    "max_window_layers": 80,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA
    | {
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
    "ministral3": _LLAMA
    | {
        "intermediate_size": 14336,
        "num_hidden_layers": 34,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e6,
            "factor": 16.0,
            "original_max_position_embeddings": 16384,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
    },
    "qwen2": _QWEN2,
    "qwen2_vl_text": _QWEN2_VL,
    "qwen2_5_vl_text": _QWEN2_VL,
    "qwen3_vl_text": _QWEN2 | {"head_dim": 128, "max_position_embeddings": 128000, "rope_theta": 5e5},
    "gemma3_text": {
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
    },
}
"""The defaults of `transformers` for keys that a ``text_config`` lacks; the published ones lack most."""

LAYOUTS = (
    ("language_model.model.", "language_model.lm_head."),
    ("model.language_model.", "lm_head."),
    ("model.text_model.", "lm_head."),
    ("model.", "lm_head."),
)
"""Prefixes of the language model's tensors and of its head: as released, as newer versions of `transformers` write
them, and where the vision part has a name of its own."""

_VISION = re.compile(
    r"(?:model\.)?(?:vision_tower|vision_model|visual|multi_modal_projector|connector|image_newline)(?:\.|$)"
)
"""Tensors that only images need."""


def text_config(config: Mapping[str, object]) -> dict[str, object] | None:
    """Returns the language model's configuration as a text model's; None: the checkpoint is none of ``TEXT_TYPES``.

    Raises ``LoadError`` when the checkpoint has no such configuration.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in TEXT_TYPES:
        return None
    given = config.get("text_config", config if kind in _FLAT else None)
    if not isinstance(given, Mapping):
        raise LoadError(f"config.json of type {kind!r} has no text_config", hint="fetch the model again")
    nested = given.get("model_type", kind)
    text_type = TEXT_TYPES[kind] if nested == kind else nested
    if not isinstance(text_type, str):
        raise LoadError(
            f"config.json: the model_type of text_config is {text_type!r:.100}", hint="fetch the model again"
        )
    result = {**_DEFAULTS.get(text_type, {}), **given, "model_type": _PLAIN_TYPES.get(text_type, text_type)}
    ties = [place["tie_word_embeddings"] for place in (config, given) if "tie_word_embeddings" in place]
    if ties:
        result["tie_word_embeddings"] = True in ties
    if text_type in _PLAIN_TYPES:
        for key in ("rope_scaling", "rope_parameters"):
            result[key] = _without_parts(result.get(key))
    return result


def _without_parts(settings: object) -> object:
    """Returns the rotary settings without the split into time, height and width."""
    if not isinstance(settings, Mapping):
        return settings
    kept = {key: value for key, value in settings.items() if not str(key).startswith("mrope_")}
    return {
        key: "default" if key in ("type", "rope_type") and value == "mrope" else value for key, value in kept.items()
    }


def text_names(names: Iterable[str]) -> dict[str, str]:
    """Returns the checkpoint's tensor names -> those of a text model. Tensors that only images need are left out; an
    unknown tensor keeps its name, and is refused when the parts are checked."""
    names = list(names)
    layouts = (layout for layout in LAYOUTS if f"{layout[0]}embed_tokens.weight" in names)
    return renamed(names, next(layouts, LAYOUTS[-1]))


def layout_of(names: Iterable[str]) -> tuple[str, str]:
    """The beginnings of the names of the language model's tensors and of its head, of which ``names`` are some."""
    names = list(names)
    return next((layout for layout in LAYOUTS if any(name.startswith(layout[0]) for name in names)), LAYOUTS[-1])


def renamed(names: Iterable[str], layout: tuple[str, str]) -> dict[str, str]:
    """``text_names`` of names with these beginnings."""
    model, head = layout
    result = {}
    for name in names:
        if name.startswith(model):
            result[name] = "model." + name.removeprefix(model)
        elif name.startswith(head):
            result[name] = "lm_head." + name.removeprefix(head)
        elif not _VISION.match(name):
            result[name] = name
    return result
