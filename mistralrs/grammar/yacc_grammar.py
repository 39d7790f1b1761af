"""Yacc grammars: terminals are the texts that they name, without a lexer of their own.

Quoted texts between slashes are regular expressions, other texts and names stand for themselves, and the rule ``SKIP``
has what may stand between terminals. ``%left``, ``%right`` and ``%prec`` are read and change no language; ``%nonassoc``
is honoured. Conflicts that no precedence settles are left to the whole context-free language, with a warning.
"""

from __future__ import annotations

from dataclasses import replace

from mistralrs.grammar.library_limits import NO_FORCING
from mistralrs.grammar.lr_automaton import Conflict, LrAutomaton
from mistralrs.grammar.translation import Translation, grammar_error
from mistralrs.grammar.yacc_adjacency import RULE, TERMINAL, separated
from mistralrs.grammar.yacc_lexemes import Lexer
from mistralrs.grammar.yacc_precedence import rewrite_nonassoc, settle_conflicts
from mistralrs.grammar.yacc_reader import Production, Symbol, YaccGrammar, read_yacc


def translate_yacc(text: str) -> Translation:
    """The translation of a Yacc grammar. Raises RequestError with line and column of what is wrong."""
    grammar = read_yacc(text)
    lexer = Lexer(grammar.terminals)
    grammar.productions = _useful(grammar)
    automaton = _automaton(grammar)
    unsettled, forbidding = settle_conflicts([_plain(each) for each in automaton.conflicts()], grammar)
    warnings = []
    if unsettled:
        warnings.append(
            f"the grammar has {unsettled} conflicts that no precedence settles: texts are allowed that a Yacc parser, "
            "which decides them by its own rules, may not accept"
        )
    for rule in sorted(forbidding):
        warnings += rewrite_nonassoc(grammar, rule, _edges(grammar))
    inlined = _inlined(grammar)
    is_same = not forbidding and inlined == grammar.productions
    grammar.productions = inlined
    grammar.productions = separated(grammar, lexer, automaton if is_same else _automaton(grammar))
    return Translation(_lark(grammar, lexer), tuple(warnings))


def _useful(grammar: YaccGrammar) -> list[Production]:
    """The productions that an answer can use."""
    productive: set[str] = set()
    size = -1
    while len(productive) != size:
        size = len(productive)
        productive |= {
            each.rule for each in grammar.productions if all(_is_known(symbol, productive) for symbol in each.symbols)
        }
    if grammar.start not in productive:
        raise grammar_error(f"no text matches its rule {grammar.start}")
    useful = [each for each in grammar.productions if all(_is_known(symbol, productive) for symbol in each.symbols)]
    reached = {grammar.start}
    waiting = [grammar.start]
    while waiting:
        rule = waiting.pop()
        names = {s.name for each in useful if each.rule == rule for s in each.symbols if not s.is_terminal}
        waiting += names - reached
        reached |= names
    return [each for each in useful if each.rule in reached]


def _inlined(grammar: YaccGrammar) -> list[Production]:
    """The productions with terminals in place of the rules that are one terminal, such as ``NAME: "/[a-z]+/" ;``.

    What follows such a rule somewhere would else decide how its terminal is kept apart everywhere.
    """
    found: dict[str, list[Production]] = {}
    for each in grammar.productions:
        found.setdefault(each.rule, []).append(each)
    terminals = {
        rule: all_[0].symbols[0]
        for rule, all_ in found.items()
        if rule != grammar.start and len(all_) == 1 and len(all_[0].symbols) == 1 and all_[0].symbols[0].is_terminal
    }
    return [
        replace(each, symbols=tuple(s if s.is_terminal else terminals.get(s.name, s) for s in each.symbols))
        for each in grammar.productions
        if each.rule not in terminals
    ]


def _is_known(symbol: Symbol, rules: set[str]) -> bool:
    return symbol.is_terminal or symbol.name in rules


def _automaton(grammar: YaccGrammar) -> LrAutomaton:
    productions = [(RULE + each.rule, [_name(symbol) for symbol in each.symbols]) for each in grammar.productions]
    return LrAutomaton(productions, RULE + grammar.start)


def _name(symbol: Symbol) -> str:
    return (TERMINAL if symbol.is_terminal else RULE) + symbol.name


def _plain(conflict: Conflict) -> Conflict:
    return Conflict(conflict.production, conflict.terminal.removeprefix(TERMINAL), conflict.other)


def _edges(grammar: YaccGrammar) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """For each rule those with which it may begin, and those with which it may end."""
    nullable = {name.removeprefix(RULE) for name in _automaton(grammar).nullable}
    both: list[dict[str, set[str]]] = []
    for step in (1, -1):
        found: dict[str, set[str]] = {each.rule: set() for each in grammar.productions}
        changed = True
        while changed:
            changed = False
            for production in grammar.productions:
                for symbol in production.symbols[::step]:
                    if symbol.is_terminal:
                        break
                    more = {symbol.name, *found[symbol.name]}
                    changed = changed or not more <= found[production.rule]
                    found[production.rule] |= more
                    if symbol.name not in nullable:
                        break
        both.append(found)
    return both[0], both[1]


def _lark(grammar: YaccGrammar, lexer: Lexer) -> str:
    rules: dict[str, list[str]] = {grammar.start: []}
    for production in grammar.productions:
        rules.setdefault(production.rule, [])
    names = {rule: f"r{number}" for number, rule in enumerate(rules)}
    used: dict[Symbol, None] = {}
    for production in grammar.productions:
        parts = []
        for symbol in production.symbols:
            if symbol.is_terminal:
                used.setdefault(symbol)
            parts.append(_lexeme_name(symbol, lexer) if symbol.is_terminal else names[symbol.name])
        rules[production.rule].append(" ".join(parts) or '""')
    lines = [NO_FORCING, '%llguidance {"allow_initial_skip": true}', f"start: {names[grammar.start]}"]
    lines += [f"{names[rule]}: {' | '.join(dict.fromkeys(parts))}" for rule, parts in rules.items()]
    skips = [f"S{number}" for number in range(len(dict.fromkeys(grammar.skips)))]
    lines += [
        f"{name}: {lexer.definition(text)}" for name, text in zip(skips, dict.fromkeys(grammar.skips), strict=True)
    ]
    lines += [f"%ignore {name}" for name in skips]
    close = _close_skips(grammar, lexer)
    for symbol in used:
        definition = lexer.definition(symbol.name)
        if symbol.is_separated:
            definition = f"({definition}) ({' | '.join(skips)})"
        elif close and replace(symbol, is_separated=True) in used:
            definition = f"({definition}) ({' | '.join(close)})?"
        lines.append(f"{_lexeme_name(symbol, lexer)}: {definition}")
    return "\n".join(lines)


def _close_skips(grammar: YaccGrammar, lexer: Lexer) -> list[str]:
    """Names of the skipped texts that begin as no terminal does.

    The library's lexer takes the longest lexeme: where a terminal may be with and without a skipped text behind it,
    both forms must reach equally far. Otherwise ``struct {`` is refused where ``struct point`` is expected too.
    """
    first = frozenset[int]().union(*(lexer.first_bytes(text) for text in set(grammar.terminals) - set(grammar.skips)))
    skips = dict.fromkeys(grammar.skips)
    return [f"S{number}" for number, text in enumerate(skips) if not lexer.first_bytes(text) & first]


def _lexeme_name(symbol: Symbol, lexer: Lexer) -> str:
    return lexer.name_of(symbol.name) + ("S" if symbol.is_separated else "")
