"""Grammars in GBNF. They are grammars over characters, without lexemes.

A grammar without recursion becomes one regular expression. Any other becomes rules over lexemes where reading the
longest one changes no language, else over disjoint sets of characters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mistralrs.grammar.gbnf_lexemes import lexeme_grammar
from mistralrs.grammar.gbnf_reader import (
    ANY,
    MAX_CHARACTER,
    Alternatives,
    Characters,
    Node,
    Reference,
    Repetition,
    Sequence,
    children,
    read_gbnf,
)
from mistralrs.grammar.library_limits import NO_FORCING
from mistralrs.grammar.regex_grammar import regex_to_library
from mistralrs.grammar.translation import Translation, grammar_error

_MAX_EXPANDED = 5_000
"""Nodes of a grammar without recursion that become one expression."""
_MAX_SETS = 500
_MAX_OVERLAPS = 2_000
"""Sets of characters in all classes together."""
_MAX_LEVELS = 100


def translate_gbnf(text: str) -> Translation:
    """The translation of a GBNF grammar. Raises RequestError with line and column of what is wrong."""
    rules = read_gbnf(text)
    sizes = _sizes(rules)
    if "root" in sizes:
        return Translation(regex_to_library(_expression(rules["root"], rules)))

    def is_regular(node: Node) -> bool:
        return _size(node, sizes) <= _MAX_EXPANDED

    with_lexemes = lexeme_grammar(rules, is_regular=is_regular, expression=lambda node: _expression(node, rules))
    return Translation(with_lexemes or _lark(rules))


def _sizes(rules: Mapping[str, Node]) -> dict[str, int]:
    """The nodes of each rule as one expression; rules that are recursive or too large are left out."""
    uses = {name: _references(node) for name, node in rules.items()}
    users: dict[str, list[str]] = {name: [] for name in rules}
    for name, used in uses.items():
        for each in used:
            users[each].append(name)
    levels: dict[str, int] = {}
    sizes: dict[str, int] = {}
    ready = [name for name, used in uses.items() if not used]
    for name in ready:  # grows meanwhile
        size = _size(rules[name], sizes)
        levels[name] = 1 + max((levels[each] for each in uses[name]), default=0)
        if size > _MAX_EXPANDED or levels[name] > _MAX_LEVELS:
            continue
        sizes[name] = size
        ready += [user for user in users[name] if uses[user] <= sizes.keys()]
    return sizes


def _references(node: Node) -> set[str]:
    found, waiting = set(), [node]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Reference):
            found.add(part.name)
        waiting += children(part)
    return found


def _size(node: Node, sizes: Mapping[str, int]) -> int:
    """Nodes of a part as one expression; more than any bound if it refers to a rule that has no size."""
    if isinstance(node, Reference):
        return sizes.get(node.name, _MAX_EXPANDED + 1)
    return min(1 + sum(_size(child, sizes) for child in children(node)), _MAX_EXPANDED + 1)


def _expression(node: Node, rules: Mapping[str, Node]) -> str:
    if isinstance(node, Characters):
        return _class(node.ranges)
    if isinstance(node, Reference):
        return f"(?:{_expression(rules[node.name], rules)})"
    if isinstance(node, Sequence):
        return "".join(_grouped(each, rules) for each in node.nodes)
    if isinstance(node, Alternatives):
        return "|".join(_expression(each, rules) for each in node.nodes)
    return f"{_grouped(node.node, rules)}{_times(node)}"


def _grouped(node: Node, rules: Mapping[str, Node]) -> str:
    text = _expression(node, rules)
    return text if isinstance(node, Characters | Reference) else f"(?:{text})"


def _times(node: Repetition) -> str:
    simple = {(0, None): "*", (1, None): "+", (0, 1): "?"}.get((node.least, node.most))
    return simple or f"{{{node.least},{'' if node.most is None else node.most}}}"


def _class(ranges: Iterable[tuple[int, int]]) -> str:
    text = "".join(
        rf"\x{{{first:X}}}" if first == last else rf"\x{{{first:X}}}-\x{{{last:X}}}" for first, last in ranges
    )
    return f"[{text}]" if text else "[a&&b]"


def _lark(rules: Mapping[str, Node]) -> str:
    sets = _disjoint_sets(rules)
    names = {name: f"r{number}" for number, name in enumerate(rules)}

    def text_of(node: Node) -> str:
        if isinstance(node, Characters):
            inside = [f"C{number}" for number, ranges in enumerate(sets) if _is_within(ranges[0][0], node.ranges)]
            return f"({' | '.join(inside)})" if inside else "NOTHING"
        if isinstance(node, Reference):
            return names[node.name]
        if isinstance(node, Sequence):
            return " ".join(map(grouped, node.nodes)) or '""'
        if isinstance(node, Alternatives):
            return " | ".join(map(text_of, node.nodes))
        return f"{grouped(node.node)}{_times(node)}"

    def grouped(node: Node) -> str:
        return text_of(node) if isinstance(node, Characters | Reference) else f"({text_of(node)})"

    lines = [
        NO_FORCING,
        f"start: {names['root']}",
        *(f"{names[name]}: {text_of(node)}" for name, node in rules.items()),
    ]
    lines += [f"C{number}: /{_class(ranges)}/" for number, ranges in enumerate(sets)]
    return "\n".join([*lines, "NOTHING: /[a&&b]/"])


def _is_within(code: int, ranges: Iterable[tuple[int, int]]) -> bool:
    return any(first <= code <= last for first, last in ranges)


def _disjoint_sets(rules: Mapping[str, Node]) -> list[tuple[tuple[int, int], ...]]:
    """The characters, parted such that each class of the grammar is a union of parts."""
    classes: set[tuple[tuple[int, int], ...]] = set()
    waiting = list(rules.values())
    while waiting:
        node = waiting.pop()
        if isinstance(node, Characters):
            classes.add(node.ranges)
        waiting += children(node)
    starts = sorted({start for ranges in classes for first, last in ranges for start in (first, last + 1)})
    ordered = sorted(classes)
    parts: dict[tuple[bool, ...], list[tuple[int, int]]] = {}
    for first, behind in zip(starts, [*starts[1:], MAX_CHARACTER + 1], strict=True):
        members = tuple(_is_within(first, ranges) for ranges in ordered)
        if any(members) and _is_within(first, ANY.ranges):
            parts.setdefault(members, []).append((first, behind - 1))
    if len(parts) > _MAX_SETS or sum(map(sum, parts)) > _MAX_OVERLAPS:
        raise grammar_error("too many of its classes have characters in common", hint="use fewer classes")
    return [tuple(ranges) for ranges in parts.values()]
