"""The architectures that can be built, one row each, with their names in files and for users."""

from __future__ import annotations

from mistralrs.models.architecture import Architecture, WeightsMapping
from mistralrs.models.gemma import GEMMA, GEMMA2, GEMMA3
from mistralrs.models.granite import GRANITE
from mistralrs.models.granite_hybrid import GRANITE_HYBRID, GRANITE_HYBRID_GGUF
from mistralrs.models.llama import LLAMA, MISTRAL, MIXTRAL, SMOLLM3
from mistralrs.models.mistral3 import MISTRAL3
from mistralrs.models.olmo import OLMO2, OLMO3
from mistralrs.models.phi import PHI2, PHI3
from mistralrs.models.qwen import QWEN2, QWEN2VL_GGUF, QWEN3, QWEN3VL_GGUF
from mistralrs.models.qwen_moe import QWEN3MOE

ARCHITECTURES: dict[str, Architecture] = {
    "llama": LLAMA,
    "mistral": MISTRAL,
    "mixtral": MIXTRAL,
    "gemma": GEMMA,
    "gemma2": GEMMA2,
    "gemma3": GEMMA3,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "phi2": PHI2,
    "phi3": PHI3,
    "smollm3": SMOLLM3,
    "granite": GRANITE,
    "granitehybrid": GRANITE_HYBRID,
    "mistral3": MISTRAL3,
    "olmo2": OLMO2,
    "olmo3": OLMO3,
    "qwen3moe": QWEN3MOE,
}

_SHARED = {"mistral": "llama", "mixtral": "llama", "olmo3": "olmo2", "granitehybrid": "granite"}
GGUF_NAMES: dict[str, str] = {name: _SHARED.get(name, name) for name in ARCHITECTURES}
"""The names in ``general.architecture`` of GGUF files."""

GGUF_OTHER_NAMES: dict[str, tuple[str, WeightsMapping]] = {
    "qwen2vl": ("qwen2", QWEN2VL_GGUF),
    "qwen3vl": ("qwen3", QWEN3VL_GGUF),
    "granitehybrid": ("granite", GRANITE_HYBRID_GGUF),
}
"""``general.architecture`` of models of these architectures under other names -> architecture and mapping: the language
models of multimodal ones, and dense Granite hybrids."""

HF_MODEL_TYPES: dict[str, str] = {
    "llama": "llama",
    "mistral": "mistral",
    "mixtral": "mixtral",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "phi": "phi2",
    "phi3": "phi3",
    "smollm3": "smollm3",
    "granite": "granite",
    "granitemoehybrid": "granitehybrid",
    "ministral3": "mistral3",
    "olmo2": "olmo2",
    "olmo3": "olmo3",
    "qwen3_moe": "qwen3moe",
}
"""``model_type`` of a `config.json` -> architecture."""
