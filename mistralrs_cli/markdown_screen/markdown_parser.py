"""Reads Markdown into markdown-it's tokens: CommonMark with tables, strikethrough and formulas."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_core import StateCore, inline, text_join
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

MOST_KEPT = 1000
"""Texts whose reading is kept for the next time."""
MAX_NESTING = 100
"""Containers within each other; markdown-it drops the text of deeper ones."""
LISTS = ("bullet_list_open", "ordered_list_open")
INDENT = "indent"
"""The columns that the text in an item is indented by, in the ``meta`` of its first token."""
_FIRST_LINES = "first lines"
_FORMULA = re.compile(
    r"""\$\$(?P<double>[^$]+?)\$\$
    | \$(?P<single>[^\s$](?:[^$\n]*[^\s$\\])?)\$(?![A-Za-z0-9])
    | \\\((?P<round>.+?)\\\)
    | \\\[(?P<square>.+?)\\\]""",
    re.DOTALL | re.VERBOSE,
)

Run = list[Token]
"""The tokens of one block."""


@dataclass(frozen=True, slots=True)
class Definition:
    """The address of links with this label."""

    label: str
    line: int
    """Its first line."""
    value: dict[str, Any]


class MarkdownParser:
    """Parses parts of one text. A link may refer to definitions before its block."""

    def __init__(self) -> None:
        self._parser = MarkdownIt("commonmark", {"maxNesting": MAX_NESTING}).enable(["table", "strikethrough"])
        self._parser.inline.ruler.before("escape", "formula", _formula)
        self._outlines = MarkdownIt("commonmark", {"maxNesting": MAX_NESTING}).enable("table")
        self._outlines.core.ruler.enableOnly(["normalize", "block"])
        self._outlines.block.ruler.before("table", "begin", _note_begin)
        self.known: dict[str, Any] = {}
        """The definitions so far, by their labels."""
        self._children: dict[str, list[Token]] = {}
        """The contents of lines that were read before: an open block is read again with each piece."""

    def outline(self, text: str) -> tuple[list[Run], list[Definition]]:
        """Returns the top-level blocks of a text, without the contents of their lines, and the definitions in it."""
        found: dict[str, Any] = {}
        firsts: dict[int, str] = {}
        tokens = self._outlines.parse(text, {"references": found, _FIRST_LINES: firsts})
        for token in tokens:
            if token.type in ("fence", "html_block", "table_open") and token.map is not None:
                token.meta[_FIRST_LINES] = firsts[token.map[0]]
        runs = top_level(tokens)
        return runs, [Definition(label, value["map"][0], value) for label, value in found.items()]

    def learn(self, definition: Definition) -> None:
        """Lets later blocks refer to a definition, unless there is an earlier one of that label."""
        self.known.setdefault(definition.label, definition.value)

    def fill(self, run: Run, definitions: Sequence[Definition] = ()) -> Run:
        """Returns a block with the contents of its lines. ``definitions``: those in it and around it."""
        if run[0].type in LISTS or run[0].type in ("list_item_open", "blockquote_open"):
            for block in top_level(run[1:-1]):
                self.fill(block, definitions)
            return run
        for definition in definitions:
            if run[0].map is not None and definition.line < run[0].map[0]:
                self.learn(definition)
        unread = []
        for token in run:
            if token.type == "inline" and token.content in self._children:
                token.children = self._children[token.content]
            elif token.type == "inline":
                unread.append(token)
        state = StateCore("", self._parser, {"references": self.known}, unread)
        inline(state)
        text_join(state)
        if len(self._children) > MOST_KEPT:
            self._children.clear()
        self._children |= {each.content: each.children or [] for each in unread if is_alone(each.content)}
        return run


def first_lines(run: Run, count: int) -> list[str]:
    """Returns the first lines of a leaf, at most two, without the marks of the containers around it."""
    return str(run[0].meta[_FIRST_LINES]).split("\n")[:count] if count else []


def is_alone(text: str) -> bool:
    """Returns whether the meaning of a text depends on no definition."""
    return "[" not in text


def top_level(tokens: Sequence[Token]) -> list[Run]:
    """Returns tokens in runs, each of one block that is in none of the others."""
    runs: list[Run] = []
    depth = 0
    for token in tokens:
        if depth == 0:
            runs.append([])
        runs[-1].append(token)
        depth += token.nesting
    return runs


def _note_begin(state: StateBlock, line: int, end: int, silent: bool) -> bool:
    """Notes what the tokens do not have; markdown-it calls it where a block begins."""
    if not silent:
        if state.tokens and state.tokens[-1].type == "list_item_open":
            state.tokens[-1].meta[INDENT] = state.blkIndent
        state.env[_FIRST_LINES][line] = state.getLines(line, min(line + 2, end), state.blkIndent, False)
    return False


def _formula(state: StateInline, silent: bool) -> bool:
    """Reads a formula between dollars, or after a backslash and a bracket; markdown-it calls it at every position."""
    if state.src[state.pos] not in "$\\":
        return False
    match = _FORMULA.match(state.src, state.pos, state.posMax)
    if match is None:
        return False
    if not silent:
        token = state.push("formula", "", 0)
        token.content = match[0]
        token.meta = {"formula": match[match.lastgroup or 0]}
    state.pos = match.end()
    return True
