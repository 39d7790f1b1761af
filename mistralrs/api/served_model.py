"""A loaded model as a caller sees it: plain facts, tokenizer and chat template. Can be pickled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mistralrs.api.checked_grammars import CheckedGrammars
from mistralrs.api.loaded_adapters.known_adapters import KnownAdapters
from mistralrs.engine.request_hooks import HookNames

if TYPE_CHECKING:
    from mistralrs.grammar.grammar_text import GrammarText
    from mistralrs.text.chat_template import ChatTemplate
    from mistralrs.text.response.call_format import CallFormat
    from mistralrs.text.response.response_template import ResponseTemplate
    from mistralrs.text.tokenizer import Tokenizer

NO_ADAPTERS = KnownAdapters()
NO_HOOKS = HookNames()


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
    """Bytes of address space of the KV cache; memory is taken as it fills."""
    load_s: float
    unavailable_backends: tuple[str, ...]
    """Better backends that cannot run here, and why."""
    sampling: Mapping[str, float] = field(default_factory=dict)
    """The sampling parameters that its makers recommend, by the names of ``SamplingParams``."""
    precision: str = "default"
    """``--precision``, or ``f32`` with ``--dtype f32``."""
    kv_cache_dtype: str = ""
    """The type of keys and values in the KV cache."""
    kv_token_bytes: int = 0
    """Bytes that a token of context takes in it, in all layers."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The data of a model that preparing a request and reading its answer need; nothing of its engine."""

    info: ModelInfo
    tokenizer: Tokenizer
    template: ChatTemplate | None
    max_len: int
    """Tokens of one sequence, prompt and answer together, at most."""
    vocab_size: int
    """The number of valid ids: larger ones are never sampled and not accepted."""
    hidden_size: int
    """Values in an embedding."""
    adapters: KnownAdapters = NO_ADAPTERS
    """Those at the moment when this snapshot was taken."""
    responses: ResponseTemplate | None = None
    """Splits answers into content, reasoning and tool calls; None: they are content."""
    call_format: CallFormat | None = None
    """The form of its tool calls, for grammars; None: no grammar can hold an answer to it."""
    hooks: HookNames = NO_HOOKS
    """Hooks that requests may name."""
    grammars: CheckedGrammars = field(default_factory=CheckedGrammars, repr=False, compare=False)

    def check_grammar(self, grammar: GrammarText) -> tuple[str, ...]:
        """Returns the warnings about a grammar. Raises RequestError for one that cannot be used."""
        return self.grammars.check(grammar, self.tokenizer)
