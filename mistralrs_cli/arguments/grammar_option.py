"""The grammar that the command line asks for: read, and checked before a model is loaded."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from mistralrs.api.options.declarations import Options
from mistralrs.errors import LoadError, RequestError, UsageError
from mistralrs.files import read_text
from mistralrs.grammar.grammar_text import GRAMMAR_KINDS, GrammarText

ENDINGS = {".y": "yacc", ".yacc": "yacc", ".lark": "lark", ".gbnf": "gbnf", ".json": "json_schema"}
"""The kind of a grammar by the ending of its file."""
FILE_KINDS = tuple(kind for kind in GRAMMAR_KINDS if kind != "json_object")
"""The kinds of grammars that have a text."""
_FILE_BYTES = 1 << 20
_FLAGS = ("grammar", "regex", "schema", "choice")

logger = logging.getLogger("mistralrs.cli")


def grammar_of(values: Options) -> GrammarText | None:
    """Returns the grammar that answers must match; None: they are any text. Its warnings are logged.

    Raises ``UsageError`` for several of them, for a file that cannot be read, and for a grammar that cannot be used. A
    Lark grammar that names control tokens is checked later, because only a model's vocabulary has these.
    """
    given = [name for name in _FLAGS if getattr(values, name) not in (None, ())]
    if len(given) > 1:
        raise UsageError(f"--{given[0]} and --{given[1]} exclude each other", hint="give one of them")
    if not given:
        return None
    if values.regex is not None:
        grammar, written = GrammarText("regex", values.regex), "--regex"
    elif values.schema is not None:
        return schema_in(values.schema, written="--schema")
    elif values.choice:
        grammar, written = GrammarText("choice", json.dumps(values.choice, ensure_ascii=False)), "--choice"
    else:
        assert values.grammar is not None
        grammar, written = _from_file(values.grammar), f"--grammar {values.grammar}"
    _check(grammar, written)
    return grammar


def schema_in(path: Path, *, written: str) -> GrammarText:
    """Returns the JSON schema of a file, checked. ``written``: the option or command that names it. Raises
    ``UsageError``."""
    grammar = GrammarText("json_schema", _read(written, path))
    _check(grammar, f"{written} {path}")
    return grammar


def _from_file(word: str) -> GrammarText:
    kind, colon, name = word.partition(":")
    if not colon or kind not in FILE_KINDS:
        kind, name = ENDINGS.get(Path(word).suffix.lower(), ""), word
    if not kind:
        hint = f"write it as KIND:FILE, KIND being one of {', '.join(FILE_KINDS)}; or end its name in .y, .lark, .gbnf"
        raise UsageError(f"--grammar {word}: the file's kind is unknown", hint=hint)
    text = _read("--grammar", Path(name))
    return GrammarText(kind, text.removesuffix("\n") if kind == "regex" else text)


def _read(flag: str, path: Path) -> str:
    try:
        return read_text(path, limit=_FILE_BYTES, hint="name a text file", pipe=True)
    except LoadError as error:
        raise UsageError(f"{flag} {error.message}", hint=error.hint) from error


def _check(grammar: GrammarText, written: str) -> None:
    from mistralrs.grammar.compile_grammar import validate_grammar  # its library is needed for grammars only
    from mistralrs.grammar.lark_grammar import names_control_tokens
    from mistralrs.grammar.translation import reason_in

    if grammar.kind == "lark" and names_control_tokens(grammar.text):
        return
    try:
        warnings = validate_grammar(grammar.kind, grammar.text)
    except RequestError as error:
        raise UsageError(f"{written}: {reason_in(error)}", hint=error.hint) from error
    for sentence in warnings:
        logger.warning("%s: %s", written, sentence)
