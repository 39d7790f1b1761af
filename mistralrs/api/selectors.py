"""The table of rows: every way to name a model, as architecture x format x adapter, with the defaults of its options.

A row becomes a subcommand, and later a ``Which``, a line of the documentation and of the test matrix. Knows no file
and no torch: it says what a user may ask for, not how it is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Format = Literal["plain", "gguf", "ggml"]
Adapter = Literal["lora", "x-lora"]


@dataclass(frozen=True, slots=True)
class Row:
    """One way to name a model. An option whose default is None must be given, unless its comment says otherwise."""

    name: str
    """The subcommand."""
    architecture: str | None
    """What the weights must be; None: whatever the file says."""
    format: Format
    """How the weights are stored: a folder of safetensors (plain), or one GGUF or GGML file."""
    adapter: Adapter | None = None
    """What is added to the weights."""
    base_repo: str | None = None
    """Default of ``--model-id`` (plain) or ``--tok-model-id`` (GGML). A GGUF file brings its own tokenizer: None there
    means that none is fetched unless the user asks."""
    quantized_repo: str | None = None
    """Default of ``--quantized-model-id``; None: only a local file."""
    quantized_filename: str | None = None
    """Default of ``--quantized-filename``."""
    adapter_repo: str | None = None
    """Default of ``--xlora-model-id`` or ``--adapters-model-id``."""
    gqa: int = 1
    """Default of ``--gqa``: query heads to a key head, which a GGML file does not say."""
    repeat_last_n: int = 64
    """Default of ``--repeat-last-n``: tokens that the penalties look back on."""


ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        Row(
            "mistral-gguf",
            architecture="mistral",
            format="gguf",
            quantized_repo="TheBloke/Mistral-7B-Instruct-v0.1-GGUF",
            quantized_filename="mistral-7b-instruct-v0.1.Q4_K_M.gguf",
        ),
        Row(
            "llama-gguf",
            architecture="llama",
            format="gguf",
            quantized_repo="TheBloke/Llama-2-13B-chat-GGUF",
            quantized_filename="llama-2-13b-chat.Q4_K_M.gguf",
        ),
        Row("gguf", architecture=None, format="gguf"),
    )
}
"""Every row, by name, in the order in which help lists them."""
