"""Lexemes for grammars over characters: parts without recursion that may be read as a whole.

The library reads the longest lexeme. That changes no language if nothing that may follow a lexeme could go on with it
or with another one. Parts for which this does not hold are split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from llguidance import LLMatcher

from mistralrs.errors import RequestError
from mistralrs.grammar.gbnf_reader import Alternatives, Characters, Node, Reference, Repetition, Sequence
from mistralrs.grammar.library_limits import NO_FORCING, byte_tree, is_empty, limits
from mistralrs.grammar.lr_automaton import END, LrAutomaton

MAX_LEXEMES = 40
_MAX_ROUNDS = 8
_Part = tuple[str, tuple[str, ...]]
"""A part of a rule in the Lark dialect, and the symbols that it consists of."""


def lexeme_grammar(
    rules: Mapping[str, Node], *, is_regular: Callable[[Node], bool], expression: Callable[[Node], str]
) -> str | None:
    """The grammar in the Lark dialect, with lexemes; None if they cannot be kept apart or are too many.

    ``is_regular`` says whether a part is without recursion, ``expression`` gives such a part as a regular expression.
    """
    split: set[str] = set()
    for _ in range(_MAX_ROUNDS):
        try:
            plan = _Plan(rules, is_regular=is_regular, expression=expression, split=split)
            if len(plan.lexemes) > MAX_LEXEMES:
                return None
            more = plan.read_together()
        except RequestError:  # the automaton or an expression is too large
            return None
        if not more:
            return plan.lark()
        if more & (plan.characters | split):
            return None
        split |= more
    return None


class _Plan:
    """The rules and lexemes of one round."""

    def __init__(
        self,
        rules: Mapping[str, Node],
        *,
        is_regular: Callable[[Node], bool],
        expression: Callable[[Node], str],
        split: set[str],
    ) -> None:
        self._is_regular, self._expression, self._split = is_regular, expression, split
        self.lexemes: dict[str, str] = {}
        self.characters: set[str] = set()
        self._names = {name: f"r{number}" for number, name in enumerate(rules)}
        self._reached = ["root"]
        self._productions: list[tuple[str, tuple[str, ...]]] = []
        self._lines: list[str] = []
        self._num_helpers = 0
        for name in self._reached:  # grows meanwhile
            text, symbols = self._part(rules[name])
            self._lines.append(f"{self._names[name]}: {text}")
            self._productions.append((self._names[name], symbols))

    def lark(self) -> str:
        """The grammar in the Lark dialect."""
        definitions = [f"{name}: {_definition(pattern)}" for pattern, name in self.lexemes.items()]
        return "\n".join([NO_FORCING, f"start: {self._names['root']}", *self._lines, *definitions])

    def read_together(self) -> set[str]:
        """The patterns that would go on where some lexeme ends and another one follows."""
        automaton = LrAutomaton(self._productions, self._names["root"])
        patterns = {name: pattern for pattern, name in self.lexemes.items()}
        first = {name: _first_characters(pattern) for name, pattern in patterns.items()}
        found = set()
        for name, pattern in patterns.items():
            behind = [first[each] for each in sorted(automaton.follow.get(name, set()) - {END}) if first[each]]
            if behind:
                start = f"({_definition(pattern)}) ({' | '.join(behind)}) /(?s:.*)/"
                found |= {
                    other
                    for other in patterns.values()
                    if not is_empty(f"start: X\nX: ({start}) & ({_definition(other)})")
                }
        return found

    def _part(self, node: Node) -> _Part:
        if self._is_regular(node) and (pattern := self._expression(node)) not in self._split:
            return self._lexeme(pattern, is_character=isinstance(node, Characters))
        if isinstance(node, Reference):
            if node.name not in self._reached:
                self._reached.append(node.name)
            return self._names[node.name], (self._names[node.name],)
        if isinstance(node, Sequence):
            parts = [self._part(each) for each in self._merged(node)]
            return " ".join(text for text, _ in parts) or '""', tuple(each for _, symbols in parts for each in symbols)
        if isinstance(node, Alternatives):
            parts = [self._part(each) for each in node.nodes]
            return f"({' | '.join(text for text, _ in parts)})", (self._helper([symbols for _, symbols in parts]),)
        assert isinstance(node, Repetition)
        text, symbols = self._part(node.node)
        helper = self._helper([()] if node.least == 0 else [symbols])
        if node.most is None or node.most > 1:
            self._productions.append((helper, (helper, *symbols)))
        elif node.least == 0:
            self._productions.append((helper, symbols))
        return f"({text}){{{node.least},{'' if node.most is None else node.most}}}", (helper,)

    def _merged(self, node: Sequence) -> list[Node]:
        """The parts of a sequence, neighbours without recursion as one unless that one is split."""
        found: list[Node] = []
        for each in node.nodes:
            if found and self._is_regular(found[-1]) and self._is_regular(each):
                before = found[-1].nodes if isinstance(found[-1], Sequence) else (found[-1],)
                together = Sequence((*before, each))
                if self._is_regular(together) and self._expression(together) not in self._split:
                    found[-1] = together
                    continue
            found.append(each)
        return found

    def _helper(self, alternatives: list[tuple[str, ...]]) -> str:
        """A rule of the automaton only, for a part that the Lark dialect writes in place."""
        self._num_helpers += 1
        name = f"h{self._num_helpers}"
        self._productions += [(name, symbols) for symbols in alternatives]
        return name

    def _lexeme(self, pattern: str, *, is_character: bool) -> _Part:
        name = self.lexemes.setdefault(pattern, f"L{len(self.lexemes)}")
        if is_character:
            self.characters.add(pattern)
        matcher = LLMatcher(byte_tree(), f"start: X\nX: /{pattern}/", log_level=0, limits=limits())
        return (f"({name})?", (self._helper([(), (name,)]),)) if matcher.is_accepting() else (name, (name,))


def _definition(pattern: str) -> str:
    return f'/{pattern}/ & ~("")' if pattern else "/[a&&b]/"


def _first_characters(pattern: str) -> str:
    """A class of the characters with which a text of the lexeme may begin; empty if there is none."""
    matcher = LLMatcher(byte_tree(), f"start: X\nX: {_definition(pattern)}", log_level=0, limits=limits())
    mask = matcher.compute_bitmask()
    ascii_part = "".join(rf"\x{byte:02X}" for byte in range(128) if mask[byte // 8] >> byte % 8 & 1)
    others = r"\x{80}-\x{10FFFF}" if any(mask[16:32]) else ""
    return f"/[{ascii_part}{others}]/" if ascii_part or others else ""
