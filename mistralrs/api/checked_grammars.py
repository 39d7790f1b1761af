"""The grammars that a model's callers may use: each is checked once, in the process that answers them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from mistralrs.errors import RequestError

if TYPE_CHECKING:
    from mistralrs.grammar.grammar_text import GrammarText
    from mistralrs.grammar.token_table import TokenTable
    from mistralrs.text.tokenizer import Tokenizer

MAX_CHECKED = 256
MAX_CHECKED_CHARACTERS = 4 << 20
"""Characters of the grammars that are remembered, at most."""


class CheckedGrammars:
    """Remembers the grammars of one vocabulary that were found usable. Any thread may use it.

    A copy for another process begins empty.
    """

    def __init__(self) -> None:
        self._warnings: OrderedDict[GrammarText, tuple[str, ...]] = OrderedDict()
        self._num_characters = 0
        self._table: TokenTable | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[CheckedGrammars], tuple[()]]:
        return CheckedGrammars, ()

    def knows(self, grammar: GrammarText) -> bool:
        """Returns whether ``check`` would answer at once."""
        return grammar in self._warnings

    def check(self, grammar: GrammarText, tokenizer: Tokenizer) -> tuple[str, ...]:
        """Returns the warnings about a grammar, each a sentence for the caller.

        A grammar that was not checked before takes milliseconds, and up to two seconds if it is hostile. Raises
        RequestError for one that cannot be used; ``param`` is ``grammar`` and the JSON pointer, where there is one.
        """
        with self._lock:
            if (known := self._warnings.get(grammar)) is not None:
                self._warnings.move_to_end(grammar)
                return known
        warnings = self._validated(grammar, tokenizer)
        with self._lock:
            if grammar not in self._warnings:
                self._num_characters += len(grammar.text)
            self._warnings[grammar] = warnings
            while len(self._warnings) > MAX_CHECKED or self._num_characters > MAX_CHECKED_CHARACTERS:
                dropped, _ = self._warnings.popitem(last=False)
                self._num_characters -= len(dropped.text)
        return warnings

    def _validated(self, grammar: GrammarText, tokenizer: Tokenizer) -> tuple[str, ...]:
        from mistralrs.grammar.compile_grammar import validate_grammar  # its library is needed for grammars only
        from mistralrs.grammar.lark_grammar import names_control_tokens

        if not tokenizer.eos_ids:
            raise RequestError(
                "the model's vocabulary has no end token, which a grammar needs to end an answer",
                hint="name its eos_token_id in generation_config.json, if it has one",
                code="unsupported_grammar",
                param="grammar",
            )
        names_tokens = grammar.kind == "lark" and names_control_tokens(grammar.text)
        return validate_grammar(grammar.kind, grammar.text, table=self._tokens(tokenizer) if names_tokens else None)

    def _tokens(self, tokenizer: Tokenizer) -> TokenTable:
        """Returns the vocabulary with its control tokens: half a second of work that few grammars need."""
        from mistralrs.grammar.token_table import TokenTable

        with self._lock:
            if self._table is None:
                self._table = TokenTable(tokenizer)
            return self._table
