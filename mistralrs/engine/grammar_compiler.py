"""Compiles the grammars of requests beside the engine's thread."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING

from mistralrs.engine.config import Request
from mistralrs.engine.sequence_constraint import SequenceConstraint
from mistralrs.errors import EngineError, MistralrsError

if TYPE_CHECKING:
    from mistralrs.grammar.compile_grammar import GrammarCache
    from mistralrs.grammar.token_table import TextTokens

logger = logging.getLogger(__name__)

THREADS = 2
"""Grammars that are compiled at once: as many as ``library_limits`` lets run in one process."""

OnCompiled = Callable[[SequenceConstraint | MistralrsError], None]


class GrammarCompiler:
    """Makes constraints of requests' grammars, for one vocabulary. The table of its tokens is built with the first."""

    def __init__(self, tokenizer: TextTokens, vocab_size: int) -> None:
        """``vocab_size``: ids from here on are never allowed."""
        self._tokens = _ServedTokens(tokenizer, vocab_size) if tokenizer.vocab_size > vocab_size else tokenizer
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(THREADS, "mistralrs-grammar")

    @property
    def mask_words(self) -> int:
        """Words of a mask of this vocabulary, 32 bits each."""
        return -(-self._vocab_size // 32)

    def compile(self, request: Request, on_compiled: OnCompiled) -> None:
        """Passes the constraint of the request's grammar to ``on_compiled``, or the error that it has. Another thread
        makes the call."""
        self._pool.submit(self._run, request, on_compiled)

    def close(self) -> None:
        """Drops the grammars that wait. Those under way are compiled to their end, within seconds."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _run(self, request: Request, on_compiled: OnCompiled) -> None:
        assert request.grammar is not None
        result: SequenceConstraint | MistralrsError
        try:
            with self._lock:
                cache = self._cache
            state = cache.get(request.grammar.kind, request.grammar.text).constraint()
            result = SequenceConstraint(state, eos_ids=cache.table.eos_ids, request=request)
        except MistralrsError as error:
            result = error
        except Exception as error:
            logger.exception("a grammar could not be compiled")
            result = EngineError(f"the grammar could not be compiled: {type(error).__name__}: {error}")
        on_compiled(result)

    @cached_property
    def _cache(self) -> GrammarCache:
        from mistralrs.grammar.compile_grammar import GrammarCache  # here, because the engine loads without it
        from mistralrs.grammar.token_table import TokenTable

        return GrammarCache(TokenTable(self._tokens, vocab_size=self._vocab_size))


class _ServedTokens:
    """The tokens of a tokenizer for which the model has logits."""

    def __init__(self, tokenizer: TextTokens, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.eos_ids = frozenset(token for token in tokenizer.eos_ids if token < vocab_size)
        self.bos_id = tokenizer.bos_id
        self.token_bytes = tokenizer.token_bytes
        self.token_text = tokenizer.token_text

    @property
    def quick_bytes(self) -> int:
        return self._tokenizer.quick_bytes

    def encode(self, text: str, *, special: bool, bos: bool = False) -> list[int]:
        """The token ids of a text; none if the model lacks one of them."""
        ids = self._tokenizer.encode(text, special=special, bos=bos)
        return ids if max(ids, default=0) < self.vocab_size else []
