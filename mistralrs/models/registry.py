"""The architectures that can be built, by the name that a GGUF file gives."""

from __future__ import annotations

from mistralrs.models.gguf_architecture import GgufArchitecture
from mistralrs.models.llama import LLAMA

ARCHITECTURES: dict[str, GgufArchitecture] = {
    "llama": LLAMA,
}

GGUF_NAMES: dict[str, str] = {
    "llama": "llama",
    "mistral": "llama",
}
"""What users call an architecture -> what GGUF files call it."""
