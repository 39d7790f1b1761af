"""Honours ``%nonassoc``: operators that must not follow each other without parentheses.

Precedences choose between two derivations of a text, which changes no language, but ``%nonassoc`` forbids both. Rules
in which it does are rewritten into one rule for each level, as an expression grammar without precedences has them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from mistralrs.grammar.lr_automaton import Conflict
from mistralrs.grammar.translation import grammar_error
from mistralrs.grammar.yacc_reader import Precedence, Production, Symbol, YaccGrammar


def precedence_of(production: Production, grammar: YaccGrammar) -> Precedence | None:
    """The precedence of a production: that of ``%prec``, else of its last terminal."""
    if production.precedence_of is not None:
        return grammar.precedences.get(production.precedence_of)
    terminals = [symbol.name for symbol in production.symbols if symbol.is_terminal]
    return grammar.precedences.get(terminals[-1]) if terminals else None


def settle_conflicts(conflicts: Sequence[Conflict], grammar: YaccGrammar) -> tuple[int, set[str]]:
    """The number of conflicts that no precedence settles, and the rules in which ``%nonassoc`` forbids a text.

    ``conflicts`` name productions by their index, and terminals by their text.
    """
    unsettled = 0
    forbidding: set[str] = set()
    for conflict in conflicts:
        production = grammar.productions[conflict.production]
        own, read = precedence_of(production, grammar), grammar.precedences.get(conflict.terminal)
        if conflict.other is not None or own is None or read is None:
            unsettled += 1
        elif own.level == read.level and own.associativity == "nonassoc":
            forbidding.add(production.rule)
    return unsettled, forbidding


def rewrite_nonassoc(grammar: YaccGrammar, rule: str, edges: Sequence[dict[str, set[str]]]) -> list[str]:
    """Replaces a rule in which ``%nonassoc`` forbids texts by rules for each level; returns warnings.

    ``edges``: for each rule those with which it may begin, and those with which it may end. Raises RequestError if the
    rule is not of a form that can be rewritten.
    """
    mine = [production for production in grammar.productions if production.rule == rule]
    by_level: dict[int, list[Production]] = defaultdict(list)
    primaries = []
    for production in mine:
        starts, ends = _is_at(production, 0, rule, edges[0]), _is_at(production, -1, rule, edges[1])
        if not starts and not ends:
            primaries.append(production)
            continue
        precedence = precedence_of(production, grammar)
        direct = all(production.symbols[index].name == rule for index, on in ((0, starts), (-1, ends)) if on)
        if precedence is None or not direct or len(production.symbols) < 2:
            raise grammar_error(
                f"%nonassoc cannot be honoured in {rule}: this alternative has no precedence, or refers to {rule} "
                "through another rule",
                hint="write one rule for each level of precedence in place of %nonassoc",
                place=production.place,
            )
        by_level[precedence.level].append(production)
    levels = sorted(by_level)
    others = [production for production in grammar.productions if production.rule != rule]
    grammar.productions = others + _levelled(rule, [by_level[level] for level in levels], primaries, grammar)
    return _narrowed(rule, [by_level[level] for level in levels])


def _levelled(
    rule: str, levels: Sequence[Sequence[Production]], primaries: Sequence[Production], grammar: YaccGrammar
) -> list[Production]:
    names = [rule, *(f"{rule}%{number}" for number in range(1, len(levels) + 1))]
    found = []
    for name, higher, productions in zip(names, names[1:], levels, strict=False):
        found.append(Production(name, (Symbol(higher, is_terminal=False),), None, productions[0].place))
        for production in productions:
            precedence = precedence_of(production, grammar)
            assert precedence is not None
            symbols = list(production.symbols)
            if symbols[0].name == rule and not symbols[0].is_terminal:
                keeps = precedence.associativity == "left" or symbols[-1].name != rule
                symbols[0] = Symbol(name if keeps else higher, is_terminal=False)
            if symbols[-1].name == rule and not symbols[-1].is_terminal:
                is_prefix = production.symbols[0].name != rule or production.symbols[0].is_terminal
                keeps = precedence.associativity == "right" or is_prefix
                symbols[-1] = Symbol(name if keeps else higher, is_terminal=False)
            found.append(Production(name, tuple(symbols), None, production.place))
    return found + [Production(names[-1], each.symbols, None, each.place) for each in primaries]


def _narrowed(rule: str, levels: Sequence[Sequence[Production]]) -> list[str]:
    """A warning if an operator with one operand binds less tightly than one with two."""
    with_two = [
        index
        for index, productions in enumerate(levels)
        for each in productions
        if each.symbols[0].name == each.symbols[-1].name == rule
    ]
    with_one = [
        index
        for index, productions in enumerate(levels)
        for each in productions
        if (each.symbols[0].name == rule) != (each.symbols[-1].name == rule)
    ]
    if with_one and with_two and min(with_one) < max(with_two):
        return [f"in {rule}, operators with one operand need parentheses beside operators that bind more tightly"]
    return []


def _is_at(production: Production, index: int, rule: str, edges: dict[str, set[str]]) -> bool:
    """Whether the rule may stand at that end of the production."""
    if not production.symbols:
        return False
    symbol = production.symbols[index]
    return not symbol.is_terminal and (symbol.name == rule or rule in edges.get(symbol.name, set()))
