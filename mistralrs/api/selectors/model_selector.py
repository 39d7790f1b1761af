"""The table of selectors: every way to name a model, as architecture x format x adapter, with defaults of its options.

A selector becomes a subcommand, a class of ``Which``, a line of the documentation and one of the test matrix. It
describes a user's choice, not the way in which a model is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Format = Literal["plain", "gguf", "ggml", "any"]
Adapter = Literal["lora", "x-lora"]


@dataclass(frozen=True, slots=True)
class ModelSelector:
    """One way to name a model. An option whose default is None must be given, unless its comment says otherwise."""

    name: str
    """The subcommand."""
    architecture: str | None
    """The architecture of the weights, a name of ``models.registry.ARCHITECTURES``; None: any that the file names."""
    format: Format
    """The storage of the weights: safetensors (plain), one GGUF or GGML file, or any of these."""
    adapter: Adapter | None = None
    """The adapters that are added to the weights."""
    base_repo: str | None = None
    """Default of ``--model-id``; only for safetensors. GGUF and GGML files have their own tokenizer. An ordering of
    adapters may name another one."""
    quantized_repo: str | None = None
    """Default of ``--quantized-model-id``; None: a local file."""
    quantized_filename: str | None = None
    """Default of ``--quantized-filename``."""
    template: str | None = None
    """The shipped chat template for the selector's own file, if that is older than templates in files."""
    adapter_repo: str | None = None
    """Default of ``--xlora-model-id`` or ``--adapters-model-id``."""
    gqa: int = 1
    """Default of ``--gqa``: query heads that share a KV head, a number that GGML files lack."""
    repeat_last_n: int = 64
    """Default of ``--repeat-last-n``: the number of last tokens that the penalties cover."""


def selector_named(name: str) -> ModelSelector | None:
    """Returns the selector of that name; ``xlora`` is accepted for ``x-lora``. None: there is none."""
    return SELECTORS.get("x-" + name[1:] if name.partition("-")[0] == "xlora" else name)


def defaults_of(row: ModelSelector) -> dict[str, str]:
    """Returns the defaults of fields that are the selector's own, by field, as text."""
    defaults = {
        "model_id": row.base_repo,
        "quantized_model_id": row.quantized_repo,
        "quantized_filename": row.quantized_filename,
        "xlora_model_id": row.adapter_repo,
        "adapters_model_id": row.adapter_repo,
        "gqa": str(row.gqa),
        "repeat_last_n": str(row.repeat_last_n),
    }
    return {field: default for field, default in defaults.items() if default}


def required_of(row: ModelSelector) -> frozenset[str]:
    """Returns the fields that must be given."""
    weights = {"plain": "model_id", "gguf": "quantized_filename", "ggml": "quantized_filename", "any": "source"}
    wanted = {weights[row.format]}
    if row.adapter is not None:
        wanted.add({"x-lora": "xlora_model_id", "lora": "adapters_model_id"}[row.adapter])
        wanted.discard("model_id")  # the ordering may name it
    return frozenset(wanted - defaults_of(row).keys())


def _adapted(adapter: Adapter, base: ModelSelector, adapter_repo: str | None = None) -> ModelSelector:
    """Returns the selector ``base`` with an adapter."""
    return replace(base, name=f"{adapter}-{base.name}", adapter=adapter, adapter_repo=adapter_repo)


_MISTRAL = ModelSelector("mistral", "mistral", "plain", base_repo="mistralai/Mistral-7B-Instruct-v0.1")
_GEMMA = ModelSelector("gemma", "gemma", "plain", base_repo="google/gemma-7b-it")
_LLAMA = ModelSelector("llama", "llama", "plain", base_repo="meta-llama/Llama-2-13b-chat-hf")
_MIXTRAL = ModelSelector("mixtral", "mixtral", "plain", base_repo="mistralai/Mixtral-8x7B-Instruct-v0.1")
_PHI2 = ModelSelector("phi2", "phi2", "plain", base_repo="microsoft/phi-2")
_MISTRAL_GGUF = ModelSelector(
    "mistral-gguf",
    "mistral",
    "gguf",
    quantized_repo="TheBloke/Mistral-7B-Instruct-v0.1-GGUF",
    quantized_filename="mistral-7b-instruct-v0.1.Q4_K_M.gguf",
    template="mistral",
)
_LLAMA_GGUF = ModelSelector(
    "llama-gguf",
    "llama",
    "gguf",
    quantized_repo="TheBloke/Llama-2-13B-chat-GGUF",
    quantized_filename="llama-2-13b-chat.Q4_K_M.gguf",
    template="llama-2",
)
_LLAMA_GGML = ModelSelector(
    "llama-ggml",
    "llama",
    "ggml",
    quantized_repo="TheBloke/Llama-2-13B-chat-GGML",
    quantized_filename="llama-2-13b-chat.ggmlv3.q4_K_M.bin",
    template="llama-2",
)
_MIXTRAL_GGUF = ModelSelector(
    "mixtral-gguf",
    "mixtral",
    "gguf",
    quantized_repo="TheBloke/Mixtral-8x7B-v0.1-GGUF",
    quantized_filename="mixtral-8x7b-v0.1.Q4_K_M.gguf",
    template="mistral",
)
# The default base of adapters. X-LoRA's own adapters are made for Zephyr.
_ADAPTERS = "lamm-mit/x-lora"
_ZEPHYR = replace(_MISTRAL, base_repo="HuggingFaceH4/zephyr-7b-beta")
_ZEPHYR_GGUF = replace(
    _MISTRAL_GGUF,
    quantized_repo="TheBloke/zephyr-7B-beta-GGUF",
    quantized_filename="zephyr-7b-beta.Q8_0.gguf",
    template="zephyr",
)
_ANY_GEMMA, _ANY_LLAMA, _ANY_MIXTRAL, _ANY_PHI2 = (
    replace(row, base_repo=None) for row in (_GEMMA, _LLAMA, _MIXTRAL, _PHI2)
)

ORIGINAL = (
    _MISTRAL,
    _GEMMA,
    _LLAMA,
    _MIXTRAL,
    _PHI2,
    _MISTRAL_GGUF,
    _LLAMA_GGUF,
    _LLAMA_GGML,
    _MIXTRAL_GGUF,
    _adapted("x-lora", _ZEPHYR, _ADAPTERS),
    _adapted("x-lora", _ANY_GEMMA),
    _adapted("x-lora", _ANY_LLAMA),
    _adapted("x-lora", _ANY_MIXTRAL),
    _adapted("x-lora", _ANY_PHI2),
    _adapted("x-lora", _ZEPHYR_GGUF, _ADAPTERS),
    _adapted("x-lora", _LLAMA_GGUF),
    _adapted("x-lora", _LLAMA_GGML),
    _adapted("x-lora", _MIXTRAL_GGUF),
    _adapted("lora", _ZEPHYR, _ADAPTERS),
    _adapted("lora", _ANY_MIXTRAL),
    _adapted("lora", _ANY_LLAMA),
    _adapted("lora", _ZEPHYR_GGUF, _ADAPTERS),
    _adapted("lora", _LLAMA_GGUF),
    _adapted("lora", _LLAMA_GGML),
    _adapted("lora", _MIXTRAL_GGUF),
)
"""The 25 selectors of mistral.rs."""


def _both(
    architecture: str, base_repo: str, quantized_repo: str, quantized_filename: str
) -> tuple[ModelSelector, ModelSelector]:
    """Returns an architecture's selectors for safetensors and for GGUF files."""
    plain = ModelSelector(architecture, architecture, "plain", base_repo=base_repo)
    file = ModelSelector(
        f"{architecture}-gguf",
        architecture,
        "gguf",
        quantized_repo=quantized_repo,
        quantized_filename=quantized_filename,
    )
    return plain, file


_GEMMA_GGUF = ModelSelector(
    "gemma-gguf",
    "gemma",
    "gguf",
    quantized_repo="lmstudio-ai/gemma-2b-it-GGUF",
    quantized_filename="gemma-2b-it-q4_k_m.gguf",
    template="gemma",
)
_PHI2_GGUF = ModelSelector(
    "phi2-gguf",
    "phi2",
    "gguf",
    quantized_repo="TheBloke/phi-2-GGUF",
    quantized_filename="phi-2.Q4_K_M.gguf",
)

_KINDS: tuple[Adapter, ...] = ("lora", "x-lora")
_PLAIN = ModelSelector("plain", None, "plain")
_ANY_GGUF = ModelSelector("gguf", None, "gguf")
_ANY_GGML = ModelSelector("ggml", None, "ggml")

GENERAL = (
    _PLAIN,
    _ANY_GGUF,
    _ANY_GGML,
    *(replace(_adapted(adapter, _PLAIN), name=adapter) for adapter in _KINDS),
    *(_adapted(adapter, file) for adapter in _KINDS for file in (_ANY_GGUF, _ANY_GGML)),
)
"""The selectors of later versions of mistral.rs, for any architecture."""

MORE = (
    ModelSelector("auto", None, "any"),
    *GENERAL,
    _GEMMA_GGUF,
    _PHI2_GGUF,
    _adapted("x-lora", _GEMMA_GGUF),
    _adapted("x-lora", _PHI2_GGUF),
    *_both(
        "qwen2",
        "Qwen/Qwen2.5-1.5B-Instruct",
        "Qwen/Qwen2.5-1.5B-Instruct-GGUF",
        "qwen2.5-1.5b-instruct-q4_k_m.gguf",
    ),
    *_both("qwen3", "Qwen/Qwen3-8B", "Qwen/Qwen3-8B-GGUF", "Qwen3-8B-Q4_K_M.gguf"),
    *_both("gemma2", "google/gemma-2-9b-it", "bartowski/gemma-2-9b-it-GGUF", "gemma-2-9b-it-Q4_K_M.gguf"),
    *_both("gemma3", "google/gemma-3-1b-it", "ggml-org/gemma-3-1b-it-GGUF", "gemma-3-1b-it-Q4_K_M.gguf"),
    *_both(
        "phi3",
        "microsoft/Phi-3.5-mini-instruct",
        "bartowski/Phi-3.5-mini-instruct-GGUF",
        "Phi-3.5-mini-instruct-Q4_K_M.gguf",
    ),
    *_both("smollm3", "HuggingFaceTB/SmolLM3-3B", "ggml-org/SmolLM3-3B-GGUF", "SmolLM3-Q4_K_M.gguf"),
    *_both("qwen3moe", "Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-30B-A3B-GGUF", "Qwen3-30B-A3B-Q4_K_M.gguf"),
    *_both(
        "granite",
        "ibm-granite/granite-3.3-2b-instruct",
        "ibm-granite/granite-3.3-2b-instruct-GGUF",
        "granite-3.3-2b-instruct-Q4_K_M.gguf",
    ),
    *_both(
        "granitehybrid",
        "ibm-granite/granite-4.0-1b",
        "ibm-granite/granite-4.0-1b-GGUF",
        "granite-4.0-1b-Q4_K_M.gguf",
    ),
    *_both(
        "mistral3",
        "mistralai/Ministral-3-3B-Instruct-2512-BF16",
        "mistralai/Ministral-3-3B-Instruct-2512-GGUF",
        "Ministral-3-3B-Instruct-2512-Q4_K_M.gguf",
    ),
    *_both(
        "olmo2",
        "allenai/OLMo-2-0425-1B-Instruct",
        "allenai/OLMo-2-0425-1B-Instruct-GGUF",
        "OLMo-2-0425-1B-Instruct-Q4_K_M.gguf",
    ),
    *_both(
        "olmo3",
        "allenai/Olmo-3-7B-Instruct",
        "unsloth/Olmo-3-7B-Instruct-GGUF",
        "Olmo-3-7B-Instruct-Q4_K_M.gguf",
    ),
)
"""Selectors that mistral.rs does not have."""

SELECTORS: dict[str, ModelSelector] = {row.name: row for row in (*ORIGINAL, *MORE)}
"""Every selector, by name, in the order in which help lists them."""
