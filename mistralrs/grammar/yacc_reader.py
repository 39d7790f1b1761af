"""Reads grammars in Yacc's notation: the original one, without actions' meaning."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NoReturn

from mistralrs.grammar.library_limits import MAX_RULES
from mistralrs.grammar.translation import Place, grammar_error

SKIP = "SKIP"
"""The rule whose alternatives are texts that may stand between any two terminals."""
_PIECE = re.compile(
    r"""
    (?P<space>\s+|//[^\n]*|/\*.*?\*/)
    | (?P<mark>%%)
    | (?P<directive>%[A-Za-z_-]+)
    | (?P<quoted>"[^"\n]+"|'[^'\n]+')
    | (?P<name>[A-Za-z_.][A-Za-z0-9_.]*)
    | (?P<number>\d+)
    | (?P<tag><[A-Za-z_][A-Za-z0-9_]*>)
    | (?P<sign>[:|;{}])
    """,
    re.VERBOSE | re.DOTALL,
)
_PRECEDENCES = {"%left": "left", "%right": "right", "%nonassoc": "nonassoc", "%precedence": "precedence"}
_TOKEN_LISTS = ("%token", "%avoid_insert", "%expect-unused")
_REST_OF_LINE = ("%expect", "%expect-rr", "%parse-param", "%actiontype", "%epp")


@dataclass(frozen=True, slots=True)
class Symbol:
    """A terminal or a rule in an alternative."""

    name: str
    is_terminal: bool
    is_separated: bool = False
    """Whether a skipped text has to follow the terminal."""


@dataclass(frozen=True, slots=True)
class Production:
    """One alternative of a rule."""

    rule: str
    symbols: tuple[Symbol, ...]
    precedence_of: str | None
    """The terminal whose precedence it has, as ``%prec`` names it; else None."""
    place: Place


@dataclass(frozen=True, slots=True)
class Precedence:
    """A level, which binds more tightly the higher it is, and ``left``, ``right``, ``nonassoc`` or ``precedence``."""

    level: int
    associativity: str


@dataclass
class YaccGrammar:
    """A grammar as it is written."""

    start: str = ""
    productions: list[Production] = field(default_factory=list)
    terminals: dict[str, Place] = field(default_factory=dict)
    """Texts of the terminals in order of appearance, those of SKIP among them."""
    skips: list[str] = field(default_factory=list)
    precedences: dict[str, Precedence] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Piece:
    kind: str
    text: str
    index: int


def read_yacc(text: str) -> YaccGrammar:
    """The grammar. Raises RequestError with line and column of what is wrong."""
    return _Reader(text).grammar()


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._index = 0
        self._grammar = YaccGrammar()
        self._used: list[tuple[Production, list[_Piece]]] = []
        self._levels = 0

    def grammar(self) -> YaccGrammar:
        start = self._declarations()
        self._rules()
        rules = {production.rule for production, _ in self._used}
        for production, pieces in self._used:
            symbols = tuple(self._symbol(piece, rules) for piece in pieces)
            if production.rule == SKIP:
                self._add_skip(symbols, production.place)
            else:
                self._grammar.productions.append(
                    Production(production.rule, symbols, production.precedence_of, production.place)
                )
        if not self._grammar.productions:
            self._fail("it has no rule", len(self._text))
        self._grammar.start = start.text if start else self._grammar.productions[0].rule
        if start and (start.text not in rules or start.text == SKIP):
            self._fail(f"there is no rule named {start.text}", start.index)
        return self._grammar

    def _declarations(self) -> _Piece | None:
        start = None
        while (piece := self._next("a declaration or %%")).kind != "mark":
            if piece.kind != "directive":
                self._fail(f"a declaration or %% is expected in place of {piece.text}", piece.index)
            if piece.text == "%start":
                start = self._next("a rule's name")
            elif piece.text in _PRECEDENCES:
                self._levels += 1
                for token in self._token_list():
                    self._grammar.precedences[token] = Precedence(self._levels, _PRECEDENCES[piece.text])
            elif piece.text in _TOKEN_LISTS:
                self._token_list()
            elif piece.text in _REST_OF_LINE:
                end = self._text.find("\n", self._index)
                self._index = len(self._text) if end < 0 else end
            else:
                self._fail(f"the declaration {piece.text} is not supported", piece.index)
        return start

    def _token_list(self) -> list[str]:
        found = []
        while (piece := self._peek()) is not None and piece.kind in ("name", "quoted", "tag", "number"):
            self._take(piece)
            if piece.kind in ("name", "quoted"):
                found.append(self._terminal(piece))
        return found

    def _rules(self) -> None:
        while (piece := self._peek()) is not None and piece.kind != "mark":
            self._take(piece)
            if piece.kind != "name":
                self._fail(f"a rule's name is expected in place of {piece.text}", piece.index)
            colon = self._next("a colon")
            if colon.text != ":":
                self._fail(f"a colon is expected in place of {colon.text}", colon.index)
            while self._alternative(piece):
                pass

    def _alternative(self, rule: _Piece) -> bool:
        """Reads one alternative; returns whether another one follows."""
        pieces: list[_Piece] = []
        precedence: str | None = None
        first = self._peek()
        while True:
            piece = self._next("; at the end of the rule")
            if piece.text in ("|", ";") and piece.kind == "sign":
                break
            if piece.kind in ("name", "quoted"):
                pieces.append(piece)
            elif piece.text == "%prec":
                precedence = self._terminal(self._next("a terminal"))
            elif piece.text == "{":
                self._skip_action(piece)
            elif piece.text != "%empty":
                self._fail(f"{piece.text} is not expected in a rule", piece.index)
        for used in pieces:
            if used.kind == "quoted":
                self._terminal(used)
        place = Place.of(self._text, first.index if first else rule.index)
        self._used.append((Production(rule.text, (), precedence, place), pieces))
        if len(self._used) > MAX_RULES:
            self._fail(f"it has more than {MAX_RULES} alternatives", rule.index)
        return piece.text == "|"

    def _skip_action(self, opening: _Piece) -> None:
        depth = 1
        while depth:
            if self._index >= len(self._text):
                self._fail("the action has no end", opening.index)
            depth += {"{": 1, "}": -1}.get(self._text[self._index], 0)
            self._index += 1

    def _terminal(self, piece: _Piece) -> str:
        if piece.kind not in ("name", "quoted"):
            self._fail(f"a terminal is expected in place of {piece.text}", piece.index)
        text = piece.text[1:-1] if piece.kind == "quoted" else piece.text
        self._grammar.terminals.setdefault(text, Place.of(self._text, piece.index))
        return text

    def _symbol(self, piece: _Piece, rules: set[str]) -> Symbol:
        if piece.kind == "quoted":
            return Symbol(piece.text[1:-1], is_terminal=True)
        if piece.text in rules and piece.text != SKIP:
            return Symbol(piece.text, is_terminal=False)
        if piece.text not in self._grammar.terminals:
            self._fail(f"{piece.text} is neither a rule nor a terminal", piece.index)
        return Symbol(piece.text, is_terminal=True)

    def _add_skip(self, symbols: tuple[Symbol, ...], place: Place) -> None:
        if len(symbols) != 1 or not symbols[0].is_terminal:
            raise grammar_error(f"an alternative of {SKIP} is one terminal", place=place)
        self._grammar.skips.append(symbols[0].name)

    def _next(self, expected: str) -> _Piece:
        piece = self._peek()
        if piece is None:
            self._fail(f"{expected} is expected", len(self._text))
        self._take(piece)
        return piece

    def _take(self, piece: _Piece) -> None:
        self._index = piece.index + len(piece.text)

    def _peek(self) -> _Piece | None:
        while self._index < len(self._text):
            match = _PIECE.match(self._text, self._index)
            if match is None or match.lastgroup is None:
                self._fail(f"{self._text[self._index]!r} is not expected")
            if match.lastgroup != "space":
                return _Piece(match.lastgroup, match[0], self._index)
            self._index = match.end()
        return None

    def _fail(self, message: str, index: int | None = None) -> NoReturn:
        raise grammar_error(message, place=Place.of(self._text, self._index if index is None else index))
