"""The names of architectures, as Python callers and the option ``--arch`` give them."""

from __future__ import annotations

import enum

from mistralrs.errors import UsageError


class Architecture(enum.StrEnum):
    """An architecture, for the field ``arch`` of general selectors: ``Which.Plain("OWNER/NAME", Architecture.Llama)``.

    Its value is the name in ``models.registry.ARCHITECTURES``, which may be given in its place.
    """

    Llama = "llama"
    Mistral = "mistral"
    Mixtral = "mixtral"
    Gemma = "gemma"
    Gemma2 = "gemma2"
    Gemma3 = "gemma3"
    Qwen2 = "qwen2"
    Qwen3 = "qwen3"
    Qwen3Moe = "qwen3moe"
    Phi2 = "phi2"
    Phi3 = "phi3"
    SmolLm3 = "smollm3"
    Granite = "granite"
    GraniteHybrid = "granitehybrid"
    Mistral3 = "mistral3"
    Olmo2 = "olmo2"
    Olmo3 = "olmo3"


def check_architecture(name: str, written: str) -> str:
    """Returns the name of an architecture. ``written``: the option, for the error. Raises ``UsageError``."""
    if name not in [*Architecture]:
        raise UsageError(
            f"{written}: {name!r} is no architecture", hint=f"choose one of: {', '.join(sorted(Architecture))}"
        )
    return str(name)
