"""Grammars by kind: checked in the process that answers a caller, compiled and cached in the engine's."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from llguidance import LLMatcher

from mistralrs.errors import RequestError
from mistralrs.grammar.choice_grammar import translate_choice
from mistralrs.grammar.constraint import GrammarConstraint
from mistralrs.grammar.gbnf_grammar import translate_gbnf
from mistralrs.grammar.json_grammar import translate_object, translate_schema
from mistralrs.grammar.lark_grammar import translate_lark
from mistralrs.grammar.library_limits import TIMEOUT_S, byte_tree, matcher, within
from mistralrs.grammar.regex_grammar import translate_regex
from mistralrs.grammar.structural_tag import translate_structural_tag
from mistralrs.grammar.token_table import TokenTable
from mistralrs.grammar.translation import MAX_BYTES, Translation, grammar_error
from mistralrs.grammar.yacc_grammar import translate_yacc

KINDS: dict[str, Callable[[str], Translation]] = {
    "regex": translate_regex,
    "yacc": translate_yacc,
    "lark": translate_lark,
    "gbnf": translate_gbnf,
    "json_schema": translate_schema,
    "json_object": translate_object,
    "choice": translate_choice,
    "structural_tag": translate_structural_tag,
}
"""The translation of each kind of grammar."""
MAX_CACHED = 128
MAX_CACHED_BYTES = 16 << 20
"""Text of the grammars that one cache holds, in bytes: what they compile to grows with it."""


@dataclass(frozen=True, slots=True)
class CompiledGrammar:
    """A grammar for one vocabulary. Any thread may make constraints of it."""

    warnings: tuple[str, ...]
    """Sentences for the caller about differences between the text and the language that is served."""
    _table: TokenTable
    _start: LLMatcher
    _lock: threading.Lock

    def constraint(self) -> GrammarConstraint:
        """A constraint at the start of an answer."""
        with self._lock:
            return GrammarConstraint(self._start.deep_copy(), self._table)


def validate_grammar(
    kind: str, text: str, *, table: TokenTable | None = None, timeout_s: float = TIMEOUT_S
) -> tuple[str, ...]:
    """The warnings about a grammar that can be used. Raises RequestError with the reason if it cannot.

    It makes the checks of ``compile_grammar`` within the same limits. A Lark grammar that names control tokens can be
    checked with the ``table`` of the model only. ``timeout_s``: seconds after which a grammar is refused.
    """
    translate = _translation_of(kind, text)

    def check() -> tuple[str, ...]:
        translation = translate(text)
        matcher(translation.grammar, table.tree if table is not None else byte_tree())
        return translation.warnings

    return within(timeout_s, check)


def compile_grammar(kind: str, text: str, table: TokenTable, *, timeout_s: float = TIMEOUT_S) -> CompiledGrammar:
    """The grammar, compiled for a vocabulary. Raises RequestError with the code ``invalid_grammar`` and the reason.

    ``kind`` is one of ``KINDS``; ``timeout_s`` is the time in seconds after which a grammar is refused.
    """
    translate = _translation_of(kind, text)

    def compile_text() -> CompiledGrammar:
        translation = translate(text)
        start = matcher(translation.grammar, table.tree)
        return CompiledGrammar(translation.warnings, table, start, threading.Lock())

    return within(timeout_s, compile_text)


class GrammarCache:
    """The grammars that were compiled last for one vocabulary. Any thread may use it."""

    def __init__(self, table: TokenTable, *, max_grammars: int = MAX_CACHED, max_bytes: int = MAX_CACHED_BYTES) -> None:
        self.table = table
        self._max_grammars = max_grammars
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._grammars: OrderedDict[tuple[str, str], CompiledGrammar] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._grammars)

    def get(self, kind: str, text: str, *, timeout_s: float = TIMEOUT_S) -> CompiledGrammar:
        """The compiled grammar, as ``compile_grammar`` returns it. Errors are not cached."""
        key = (kind, text)
        with self._lock:
            if (found := self._grammars.get(key)) is not None:
                self._grammars.move_to_end(key)
                return found
        compiled = compile_grammar(kind, text, self.table, timeout_s=timeout_s)
        with self._lock:
            if key not in self._grammars:
                self._num_bytes += len(text)
            self._grammars[key] = compiled
            while len(self._grammars) > 1 and (
                len(self._grammars) > self._max_grammars or self._num_bytes > self._max_bytes
            ):
                (_, dropped), _ = self._grammars.popitem(last=False)
                self._num_bytes -= len(dropped)
        return compiled


def _translation_of(kind: str, text: str) -> Callable[[str], Translation]:
    translate = KINDS.get(kind)
    if translate is None:
        raise RequestError(
            f"there is no grammar of the kind {kind!r}",
            hint=f"the kinds are {', '.join(KINDS)}",
            code="invalid_grammar",
            param="grammar",
        )
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        raise grammar_error(f"its text has {size} bytes, more than {MAX_BYTES}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise grammar_error("its text has half of a surrogate pair, which is no character")
    return translate
