"""A loaded model as a caller sees it: plain facts, and what turns text into ids and back. Can be pickled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mistralrs.text.chat_template import ChatTemplate
    from mistralrs.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Facts of a loaded model and of the backend that serves it."""

    name: str
    architecture: str
    quantization: str
    context_length: int
    backend: str
    threads: int
    parameters: int
    file_bytes: int
    kv_bytes: int
    """Address space of the KV cache; memory is taken as it fills."""
    load_s: float
    unavailable_backends: tuple[str, ...]
    """Better backends that cannot run here, and why."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as far as it is known without its engine: all that preparing a request and reading its answer take."""

    info: ModelInfo
    tokenizer: Tokenizer
    template: ChatTemplate | None
    max_len: int
    """Tokens that one sequence can have, prompt and answer together."""
    vocab_size: int
    """Ids from here on are never drawn and not accepted."""
    hidden_size: int
    """Values in an embedding."""
