"""The lexemes of a Yacc grammar: each as a terminal of llguidance's Lark dialect that no other one overlaps.

A Yacc lexer reads the longest lexeme of all, whatever the parser expects; of those that match the same text, the first
by priority: literals before regular expressions, longer ones first. llguidance reads the longest lexeme of those that
the parser expects. The two agree if no two lexemes share a text, and if a lexeme is never followed by text that with
its own would be the start of another lexeme that is not expected in its place.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from llguidance import LLMatcher

from mistralrs.errors import RequestError
from mistralrs.grammar.choice_grammar import literal
from mistralrs.grammar.library_limits import byte_tree, is_empty, limits, reason_of
from mistralrs.grammar.regex_syntax import refuse_unsupported, with_ascii_classes
from mistralrs.grammar.translation import Place, grammar_error

MAX_TERMINALS = 500
MAX_EXPRESSIONS = 64
_ANY = r"/(?s:.*)/"


@dataclass(frozen=True, slots=True)
class Lexeme:
    """The text of a terminal as the grammar has it."""

    text: str
    place: Place

    @property
    def is_expression(self) -> bool:
        """Whether it is a regular expression."""
        return len(self.text) > 2 and self.text[0] == "/" == self.text[-1]

    @property
    def source(self) -> str:
        """The lexeme as an expression of the Lark dialect, before any subtraction."""
        return (
            f"/{_with_escaped_slashes(with_ascii_classes(self.text[1:-1]))}/"
            if self.is_expression
            else literal(self.text)
        )

    @property
    def priority(self) -> tuple[bool, int]:
        """The lower, the earlier."""
        return self.is_expression, -len(self.text)


class Lexer:
    """The lexemes of one grammar by priority. Raises RequestError with the place of an expression that is broken."""

    def __init__(self, terminals: Mapping[str, Place]) -> None:
        self.lexemes = sorted(
            (Lexeme(text, place) for text, place in terminals.items()), key=lambda each: each.priority
        )
        self._numbers = {lexeme.text: number for number, lexeme in enumerate(self.lexemes)}
        self._starts = {each.text: _Start(_checked(each), each) for each in self.lexemes if each.is_expression}
        self._definitions: dict[str, str] = {}
        self._first: dict[str, frozenset[int]] = {}
        self._alive: dict[str, _Start] = {}
        if len(self.lexemes) > MAX_TERMINALS or len(self._starts) > MAX_EXPRESSIONS:
            raise grammar_error(
                f"it has more than {MAX_TERMINALS} terminals, or more than {MAX_EXPRESSIONS} regular expressions"
            )

    def name_of(self, text: str) -> str:
        """The name of the lexeme's terminal in the Lark grammar."""
        return f"T{self._numbers[text]}"

    def definition(self, text: str) -> str:
        """The lexeme without the texts that are another one's, and without the empty text."""
        if text not in self._definitions:
            self._definitions[text] = self._defined(self.lexemes[self._numbers[text]])
        return self._definitions[text]

    def first_bytes(self, text: str) -> frozenset[int]:
        """The bytes with which the lexeme may begin."""
        if text not in self._first:
            self._first[text] = self._behind(text, b"")
        return self._first[text]

    def bytes_read_together(self, text: str, following: Collection[str], expected: Collection[str]) -> frozenset[int]:
        """The bytes at the start of a following lexeme that would be read with this one, as the start of a third one.

        The third one is not among those that are ``expected`` wherever this one is; if one of these goes on as well,
        the library reads on too.
        """
        first = frozenset[int]().union(*map(self.first_bytes, following))
        others = [each for each in self.lexemes if each.text not in expected]
        if not self._is_expression(text):
            data = text.encode()
            found = frozenset[int]().union(*(self._behind(each.text, data) for each in others)) & first
            return found.difference(*(self._behind(each, data) for each in expected)) if found else found
        literals = (each.text.encode() for each in others if not each.is_expression)
        read = {data[end] for data in literals for end in self._ends_within(text, data, first, expected)}
        for other in others:
            if other.is_expression and self._goes_on(text, first, other, expected):
                groups = {self.first_bytes(each) for each in following}
                read |= set().union(*(each for each in groups if self._goes_on(text, each, other, expected)))
        return frozenset(read)

    def _is_expression(self, text: str) -> bool:
        return text in self._starts

    def _defined(self, lexeme: Lexeme) -> str:
        if not lexeme.is_expression:
            return lexeme.source
        earlier = [each for each in self.lexemes[: self._numbers[lexeme.text]] if self._overlap(each, lexeme)]
        without = [each.source for each in earlier] + (['""'] if self._starts[lexeme.text].matches(b"") else [])
        return f"{lexeme.source} & ~({' | '.join(without)})" if without else lexeme.source

    def _overlap(self, earlier: Lexeme, later: Lexeme) -> bool:
        if not earlier.is_expression:
            return self._starts[later.text].matches(earlier.text.encode())
        return not is_empty(f"start: X\nX: {earlier.source} & {later.source}")

    def _behind(self, text: str, data: bytes) -> frozenset[int]:
        """The bytes that may follow ``data`` within the lexeme."""
        if self._is_expression(text):
            if text not in self._alive:
                self._alive[text] = _Start(f"start: X\nX: {self.definition(text)}")
            return self._alive[text].bytes_behind(data)
        own = text.encode()
        return frozenset(own[len(data) : len(data) + 1] if own.startswith(data) else b"")

    def _ends_within(self, text: str, data: bytes, first: frozenset[int], expected: Collection[str]) -> Iterable[int]:
        """The lengths of the starts of ``data`` that are texts of the lexeme, and at which it alone ends."""
        for end in range(1, len(data)):
            is_end = data[end] in first and self._starts[text].matches(data[:end])
            if is_end and not any(data[end] in self._behind(each, data[:end]) for each in expected):
                yield end

    def _goes_on(self, text: str, first: frozenset[int], other: Lexeme, expected: Collection[str]) -> bool:
        """Whether an expression may go on where the lexeme ends and one of these bytes follows."""
        if not first:
            return False
        longer = [self.definition(each) for each in expected if self._is_expression(each)]
        without = f" & ~({' | '.join(f'({each})' for each in longer)})" if longer else ""
        start = f"(({self.definition(text)}) {_characters(first)})"
        return not is_empty(f"start: X\nX: (({start}{without}) {_ANY}) & {other.source}")


class _Start:
    """Questions about the beginnings of the texts of one expression."""

    def __init__(self, grammar: str, lexeme: Lexeme | None = None) -> None:
        self._matcher = LLMatcher(byte_tree(), grammar, log_level=0, limits=limits())
        if lexeme is not None and self._matcher.is_error():
            raise grammar_error(reason_of(self._matcher.get_error()), place=lexeme.place)

    def matches(self, data: bytes) -> bool:
        """Whether the expression matches exactly this text."""
        matcher = self._matcher.deep_copy()
        return matcher.try_consume_tokens(list(data)) == len(data) and matcher.is_accepting()

    def bytes_behind(self, data: bytes) -> frozenset[int]:
        """The bytes that may follow this text within a text of the expression."""
        matcher = self._matcher.deep_copy()
        if data and matcher.try_consume_tokens(list(data)) != len(data):
            return frozenset()
        mask = matcher.compute_bitmask()
        return frozenset(byte for byte in range(256) if mask[byte // 8] >> byte % 8 & 1)


def _checked(lexeme: Lexeme) -> str:
    """The grammar of an expression. Raises RequestError if it has what is not supported."""
    pattern = lexeme.text[1:-1]
    try:
        refuse_unsupported(pattern)
    except RequestError as error:
        raise grammar_error(error.message.rpartition(": ")[2], place=lexeme.place) from None
    return LLMatcher.grammar_from_regex(with_ascii_classes(pattern))


def _characters(first: Iterable[int]) -> str:
    """A class of the characters that begin with these bytes."""
    ascii_part = "".join(rf"\x{byte:02X}" for byte in sorted(first) if byte < 0x80)
    others = r"\x{80}-\x{10FFFF}" if any(byte >= 0x80 for byte in first) else ""
    return f"/[{ascii_part}{others}]/"


def _with_escaped_slashes(pattern: str) -> str:
    found, index = [], 0
    while index < len(pattern):
        length = 2 if pattern[index] == "\\" else 1
        piece = pattern[index : index + length]
        found.append(r"\/" if piece == "/" else piece)
        index += length
    return "".join(found)
