"""Reads grammars in GBNF, llama.cpp's notation, into trees of nodes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn, TypeAlias

from mistralrs.grammar.library_limits import MAX_RULES
from mistralrs.grammar.translation import Place, grammar_error

MAX_CHARACTER = 0x10FFFF
MAX_REPEAT = 10_000
_MAX_DEPTH = 50
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_SPACE = re.compile(r"(?:[ \t]|\#[^\n\r]*)*")
_SPACE_AND_LINES = re.compile(r"(?:[ \t\r\n]|\#[^\n\r]*)*")
_REPEAT = re.compile(r"\{\s*(\d+)\s*(?:(,)\s*(\d*)\s*)?\}")
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|([tnr\\\"\[\]\-^]))", re.DOTALL)
_LETTERS = {"t": "\t", "n": "\n", "r": "\r"}


@dataclass(frozen=True, slots=True)
class Characters:
    """One character of these ranges of code points, ends included."""

    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Reference:
    """The rule of this name."""

    name: str
    index: int


@dataclass(frozen=True, slots=True)
class Sequence:
    """These nodes in order."""

    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Alternatives:
    """One of these nodes."""

    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repetition:
    """A node, repeated; without an upper bound if ``most`` is None."""

    node: Node
    least: int
    most: int | None


Node: TypeAlias = "Characters | Reference | Sequence | Alternatives | Repetition"
ANY = Characters(((0, 0xD7FF), (0xE000, MAX_CHARACTER)))


def read_gbnf(text: str) -> dict[str, Node]:
    """The rules by name. Raises RequestError with line and column of what is wrong."""
    return _Reader(text).rules()


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._index = 0
        self._depth = 0

    def rules(self) -> dict[str, Node]:
        found: dict[str, Node] = {}
        self._skip(lines=True)
        while self._index < len(self._text):
            start = self._index
            name = self._name()
            self._skip(lines=False)
            self._expect("::=")
            self._skip(lines=True)
            if name in found:
                self._fail(f"the rule {name} is there twice", start)
            found[name] = self._alternatives(nested=False)
            if len(found) > MAX_RULES:
                self._fail(f"it has more than {MAX_RULES} rules")
            if self._index < len(self._text) and self._text[self._index] not in "\r\n":
                self._fail(f"{self._text[self._index]!r} is not expected")
            self._skip(lines=True)
        self._check_names(found)
        return found

    def _check_names(self, rules: dict[str, Node]) -> None:
        if "root" not in rules:
            raise grammar_error("it has no rule named root, with which an answer begins")
        waiting = list(rules.values())
        while waiting:
            node = waiting.pop()
            if isinstance(node, Reference) and node.name not in rules:
                self._fail(f"there is no rule named {node.name}", node.index)
            waiting += children(node)

    def _alternatives(self, *, nested: bool) -> Node:
        found = [self._sequence(nested=nested)]
        while self._text.startswith("|", self._index):
            self._index += 1
            self._skip(lines=True)
            found.append(self._sequence(nested=nested))
        return found[0] if len(found) == 1 else Alternatives(tuple(found))

    def _sequence(self, *, nested: bool) -> Node:
        nodes: list[Node] = []
        while (node := self._item()) is not None:
            self._skip(lines=nested)
            nodes.append(self._repeated(node, nested=nested))
        return nodes[0] if len(nodes) == 1 else Sequence(tuple(nodes))

    def _item(self) -> Node | None:
        character = self._text[self._index : self._index + 1]
        if character == '"':
            return self._literal()
        if character == "[":
            return self._class()
        if character == "(":
            return self._group()
        if character == ".":
            self._index += 1
            return ANY
        if character in ("<", "!"):
            self._fail("tokens in a GBNF grammar are not supported")
        if character and _NAME.match(character):
            start = self._index
            return Reference(self._name(), start)
        return None

    def _group(self) -> Node:
        start = self._index
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            self._fail(f"more than {_MAX_DEPTH} groups within each other")
        self._index += 1
        self._skip(lines=True)
        found = self._alternatives(nested=True)
        self._skip(lines=True)
        if not self._text.startswith(")", self._index):
            self._fail("the group has no end", start)
        self._index += 1
        self._depth -= 1
        return found

    def _repeated(self, node: Node, *, nested: bool) -> Node:
        while True:
            character = self._text[self._index : self._index + 1]
            if character and character in "*+?":
                self._index += 1
                node = Repetition(node, int(character == "+"), 1 if character == "?" else None)
            elif character == "{":
                match = _REPEAT.match(self._text, self._index)
                if match is None:
                    self._fail("a number of repetitions is expected")
                least = int(match[1])
                most = least if match[2] is None else int(match[3]) if match[3] else None
                if max(least, most or 0) > MAX_REPEAT or (most is not None and most < least):
                    self._fail(f"{match[0]} is no number of repetitions up to {MAX_REPEAT}")
                self._index = match.end()
                node = Repetition(node, least, most)
            else:
                return node
            self._skip(lines=nested)

    def _literal(self) -> Node:
        start = self._index
        self._index += 1
        found: list[Node] = []
        while not self._text.startswith('"', self._index):
            code = self._character(start)
            found.append(Characters(((code, code),)))
        self._index += 1
        return Sequence(tuple(found))

    def _class(self) -> Node:
        start = self._index
        self._index += 1
        negated = self._text.startswith("^", self._index)
        self._index += negated
        ranges = []
        while not self._text.startswith("]", self._index):
            first = last = self._character(start)
            if self._text.startswith("-", self._index) and not self._text.startswith("-]", self._index):
                self._index += 1
                last = self._character(start)
            if last < first:
                self._fail("a range of characters ends before it begins", start)
            ranges.append((first, last))
        self._index += 1
        return Characters(complement(ranges) if negated else complement(complement(ranges)))

    def _character(self, start: int) -> int:
        if self._index >= len(self._text) or self._text[self._index] in "\r\n":
            self._fail("it has no end", start)
        if self._text[self._index] != "\\":
            self._index += 1
            return ord(self._text[self._index - 1])
        match = _ESCAPE.match(self._text, self._index)
        if match is None:
            self._fail(f"{self._text[self._index : self._index + 2]} is not an escape")
        self._index = match.end()
        if match[4] is not None:
            return ord(_LETTERS.get(match[4], match[4]))
        code = int(match[1] or match[2] or match[3], 16)
        if code > MAX_CHARACTER or 0xD800 <= code < 0xE000:
            self._fail(f"{match[0]} is no character", match.start())
        return code

    def _name(self) -> str:
        match = _NAME.match(self._text, self._index)
        if match is None:
            self._fail("a rule's name is expected")
        self._index = match.end()
        return match[0]

    def _expect(self, text: str) -> None:
        if not self._text.startswith(text, self._index):
            self._fail(f"{text} is expected")
        self._index += len(text)

    def _skip(self, *, lines: bool) -> None:
        match = (_SPACE_AND_LINES if lines else _SPACE).match(self._text, self._index)
        assert match is not None
        self._index = match.end()

    def _fail(self, message: str, index: int | None = None) -> NoReturn:
        raise grammar_error(message, place=Place.of(self._text, self._index if index is None else index))


def children(node: Node) -> tuple[Node, ...]:
    """The nodes that a node consists of."""
    if isinstance(node, Sequence | Alternatives):
        return node.nodes
    return (node.node,) if isinstance(node, Repetition) else ()


def complement(ranges: list[tuple[int, int]] | tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    """The characters outside of the ranges, as ordered ranges."""
    found, start = [], 0
    for first, last in [*sorted([*ranges, (0xD800, 0xDFFF)]), (MAX_CHARACTER + 1, MAX_CHARACTER + 1)]:
        if start < first:
            found.append((start, first - 1))
        start = max(start, last + 1)
    return tuple(found)
