"""Keeps terminals apart that a Yacc lexer would read together.

In ``struct point``, the lexer of Yacc reads ``structpoint`` as one name, even where no name is expected. llguidance
would read two terminals there. Such a terminal is followed by a skipped text, or by something that begins otherwise.
"""

from __future__ import annotations

from dataclasses import replace

from mistralrs.grammar.library_limits import MAX_RULES
from mistralrs.grammar.lr_automaton import END, LrAutomaton
from mistralrs.grammar.translation import grammar_error
from mistralrs.grammar.yacc_lexemes import Lexer
from mistralrs.grammar.yacc_reader import Production, Symbol, YaccGrammar

RULE, TERMINAL = "r:", "t:"
"""Prefixes of names in the automaton, where a rule and a terminal may have the same name."""
_MAX_PRODUCTIONS = 5 * MAX_RULES


def separated(grammar: YaccGrammar, lexer: Lexer, automaton: LrAutomaton) -> list[Production]:
    """The productions, with terminals that a skipped text must follow, and with rules that begin otherwise.

    Raises RequestError if terminals cannot be kept apart, for example because nothing may be skipped.
    """
    found = _Separation(grammar, lexer, automaton)
    return found.productions()


class _Separation:
    def __init__(self, grammar: YaccGrammar, lexer: Lexer, automaton: LrAutomaton) -> None:
        self._grammar = grammar
        self._lexer = lexer
        self._automaton = automaton
        self._not_before = {text: bad for text in self._used() if (bad := self._bad_neighbours(text))}
        self._added: dict[str, list[Production]] = {}

    def productions(self) -> list[Production]:
        """All productions."""
        if not self._not_before:
            return self._grammar.productions
        found = [replace(each, symbols=tuple(self._symbols(each.symbols, each))) for each in self._grammar.productions]
        return [*found, *(production for added in self._added.values() for production in added)]

    def _used(self) -> list[str]:
        return sorted({s.name for each in self._grammar.productions for s in each.symbols if s.is_terminal})

    def _bad_neighbours(self, text: str) -> frozenset[str]:
        """The terminals that must not stand directly behind this one."""
        skips = self._grammar.skips
        name = TERMINAL + text
        following = {each.removeprefix(TERMINAL) for each in self._automaton.follow.get(name, set()) if each != END}
        expected = {each.removeprefix(TERMINAL) for each in self._expected_with(name)} | set(skips)
        bad_bytes = self._lexer.bytes_read_together(text, following | set(skips), expected)
        bad = frozenset(each for each in following if self._lexer.first_bytes(each) & bad_bytes)
        with_skips = [each for each in skips if self._lexer.first_bytes(each) & bad_bytes]
        if with_skips or (bad and not skips):
            second = (with_skips or sorted(bad))[0]
            raise grammar_error(
                f"{text} and {second} behind it would be read together as the start of another terminal",
                hint="add a rule SKIP for whitespace, or change one of the terminals",
                place=self._grammar.terminals[text],
            )
        return bad

    def _expected_with(self, name: str) -> set[str]:
        """The terminals that are expected wherever this one is, itself among them."""
        states = [self._automaton.shifts(state) for state in range(len(self._automaton.gotos))]
        return set.intersection(*(shifts for shifts in states if name in shifts)) if states else set()

    def _symbols(self, symbols: tuple[Symbol, ...], production: Production) -> list[Symbol]:
        """The symbols of a production, each terminal kept apart from what may follow."""
        found: list[Symbol] = []
        index = 0
        while index < len(symbols):
            symbol = symbols[index]
            bad = self._not_before.get(symbol.name, frozenset()) if symbol.is_terminal else frozenset[str]()
            rest = symbols[index + 1 :]
            if bad and rest and not rest[0].is_terminal and (other := self._beginning_otherwise(rest[0].name, bad)):
                found.append(self._pair(symbol, rest[0], other, production))
                index += 1
            elif bad & self._following(rest, production.rule):
                found.append(replace(symbol, is_separated=True))
            elif not symbol.is_terminal and rest and (close := self._ending_close(symbol.name, rest[0])):
                found.append(Symbol(close, is_terminal=False))
            else:
                found.append(symbol)
            index += 1
        return found

    def _pair(self, symbol: Symbol, behind: Symbol, other: str, production: Production) -> Symbol:
        """A rule for a terminal and the rule behind it."""
        name = f"{symbol.name}%{behind.name}"
        if name not in self._added:
            apart = (replace(symbol, is_separated=True), behind)
            close = (symbol, Symbol(other, is_terminal=False))
            self._add(name, [apart, close], production)
        return Symbol(name, is_terminal=False)

    def _beginning_otherwise(self, rule: str, bad: frozenset[str]) -> str | None:
        """The name of a rule for the texts of ``rule`` that begin with none of these terminals.

        None if there is no need of one, or if the rule or one at its beginning may be empty.
        """
        first = self._first(Symbol(rule, is_terminal=False))
        if not first & bad or first <= bad:
            return None
        rules = self._rules_at(rule, 0)
        if any(RULE + each in self._automaton.nullable for each in rules):
            return None
        names = {each: f"{each}%without%{'%'.join(sorted(bad))}" for each in rules}
        for each in rules:
            if names[each] in self._added:
                continue
            self._added[names[each]] = []
            for production in self._grammar.productions:
                if production.rule == each and not self._first(production.symbols[0]) <= bad:
                    symbols = self._symbols(production.symbols, production)
                    if not production.symbols[0].is_terminal:
                        symbols[0] = Symbol(names[production.symbols[0].name], is_terminal=False)
                    self._add(names[each], [tuple(symbols)], production)
        return names[rule]

    def _ending_close(self, rule: str, behind: Symbol) -> str | None:
        """The name of a rule for the same texts, behind whose last terminal nothing need be skipped before ``behind``.

        None if there is no need of one, or if a skipped text may be needed.
        """
        rules = self._rules_at(rule, -1)
        last = [each.symbols[-1] for each in self._grammar.productions if each.rule in rules and each.symbols]
        bad = frozenset[str]().union(*(self._not_before.get(each.name, ()) for each in last if each.is_terminal))
        nullable = self._automaton.nullable
        if not bad or bad & self._first(behind) or any(RULE + each in nullable for each in (*rules, behind.name)):
            return None
        names = {each: f"{each}%close" for each in rules}
        for each in rules:
            if names[each] in self._added:
                continue
            self._added[names[each]] = []
            for production in self._grammar.productions:
                if production.rule == each:
                    symbols = self._symbols(production.symbols, production)
                    if symbols[-1].is_terminal:
                        symbols[-1] = replace(symbols[-1], is_separated=False)
                    elif symbols[-1].name in names:
                        symbols[-1] = Symbol(names[symbols[-1].name], is_terminal=False)
                    self._add(names[each], [tuple(symbols)], production)
        return names[rule]

    def _first(self, symbol: Symbol) -> set[str]:
        """The terminals with which a symbol may begin."""
        if symbol.is_terminal:
            return {symbol.name}
        return {each.removeprefix(TERMINAL) for each in self._automaton.first[RULE + symbol.name]}

    def _rules_at(self, rule: str, index: int) -> list[str]:
        """The rules with which a rule may begin, if ``index`` is 0, or end, if it is -1; itself first."""
        found = [rule]
        for each in found:  # grows meanwhile
            for production in self._grammar.productions:
                if production.rule == each and production.symbols and not production.symbols[index].is_terminal:
                    name = production.symbols[index].name
                    found += [name] if name not in found else []
        return found

    def _add(self, name: str, alternatives: list[tuple[Symbol, ...]], production: Production) -> None:
        self._added.setdefault(name, []).extend(
            Production(name, symbols, None, production.place) for symbols in alternatives
        )
        if sum(map(len, self._added.values())) > _MAX_PRODUCTIONS:
            raise grammar_error("too many of its terminals may be read together", hint="simplify it")

    def _following(self, rest: tuple[Symbol, ...], rule: str) -> set[str]:
        """The terminals that may stand at the beginning of what follows in a production of ``rule``."""
        found: set[str] = set()
        for symbol in rest:
            found |= self._first(symbol)
            if symbol.is_terminal or RULE + symbol.name not in self._automaton.nullable:
                return found
        return found | {each.removeprefix(TERMINAL) for each in self._automaton.follow[RULE + rule] if each != END}
