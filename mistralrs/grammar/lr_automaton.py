"""The automaton of a context-free grammar as Yacc builds it: LR(0) states, and the lookaheads of LALR(1)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from mistralrs.grammar.translation import grammar_error

MAX_STATES = 3_000
END = "$end"
"""The terminal behind the text, which no grammar can name."""
_START = "$start"
_Item = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Conflict:
    """A state in which the grammar allows to reduce by ``production``, and to do something else, at ``terminal``."""

    production: int
    terminal: str
    other: int | None
    """The other production that could be reduced, behind all others if it is the end of the text; None for a shift."""


class LrAutomaton:
    """The automaton of productions (rule, symbols). A symbol is a rule if a production has its name."""

    def __init__(self, productions: Sequence[tuple[str, Sequence[str]]], start: str) -> None:
        self._productions = [*productions, (_START, (start,))]
        self._of_rule: dict[str, list[int]] = defaultdict(list)
        for number, (rule, _) in enumerate(self._productions):
            self._of_rule[rule].append(number)
        self.gotos: list[dict[str, int]] = []
        self._kernels: list[tuple[_Item, ...]] = []
        self._build()

    def is_rule(self, symbol: str) -> bool:
        """Whether a production has this name."""
        return symbol in self._of_rule

    def shifts(self, state: int) -> set[str]:
        """The terminals that the state reads."""
        return {symbol for symbol in self.gotos[state] if not self.is_rule(symbol)}

    @cached_property
    def nullable(self) -> set[str]:
        """The rules that derive the empty text."""
        found: set[str] = set()
        size = -1
        while len(found) != size:
            size = len(found)
            found |= {rule for rule, symbols in self._productions if all(each in found for each in symbols)}
        return found

    @cached_property
    def first(self) -> dict[str, set[str]]:
        """The terminals with which each rule may begin."""
        return self._edges(step=1)

    @cached_property
    def follow(self) -> dict[str, set[str]]:
        """The terminals that may stand directly behind each symbol, ``END`` among them."""
        found: dict[str, set[str]] = defaultdict(set)
        found[_START].add(END)
        includes: set[tuple[str, str]] = set()
        for rule, symbols in self._productions:
            for index, symbol in enumerate(symbols):
                for behind in symbols[index + 1 :]:
                    found[symbol] |= self.first[behind] if self.is_rule(behind) else {behind}
                    if behind not in self.nullable:
                        break
                else:
                    includes.add((symbol, rule))
        _propagate(found, includes)
        return found

    def conflicts(self) -> list[Conflict]:
        """All conflicts of the LALR(1) tables, whatever precedences say."""
        found = []
        lookaheads = self._lookaheads()
        accepting = self.gotos[0][self._productions[-1][1][0]]
        by_state: dict[int, list[int]] = defaultdict(list)
        for state, production in lookaheads:
            by_state[state].append(production)
        for state, reductions in by_state.items():
            shifts = self.shifts(state)
            for index, production in enumerate(sorted(reductions)):
                at = lookaheads[state, production]
                if state == accepting and END in at:
                    found.append(Conflict(production, END, len(self._productions) - 1))
                found += [Conflict(production, terminal, None) for terminal in sorted(at & shifts)]
                for other in sorted(reductions)[index + 1 :]:
                    both = at & lookaheads[state, other]
                    found += [Conflict(production, terminal, other) for terminal in sorted(both)]
        return found

    def _build(self) -> None:
        start: tuple[_Item, ...] = ((len(self._productions) - 1, 0),)
        numbers = {start: 0}
        self._kernels.append(start)
        for kernel in self._kernels:  # grows meanwhile
            following: dict[str, list[_Item]] = defaultdict(list)
            for production, dot in self._closure(kernel):
                symbols = self._productions[production][1]
                if dot < len(symbols):
                    following[symbols[dot]].append((production, dot + 1))
            gotos = {}
            for symbol, items in following.items():
                key = tuple(sorted(items))
                if key not in numbers:
                    numbers[key] = len(self._kernels)
                    self._kernels.append(key)
                    if len(numbers) > MAX_STATES:
                        raise grammar_error(f"its automaton has more than {MAX_STATES} states")
                gotos[symbol] = numbers[key]
            self.gotos.append(gotos)

    def _closure(self, kernel: Sequence[_Item]) -> list[_Item]:
        items = list(kernel)
        seen: set[str] = set()
        for production, dot in items:  # grows meanwhile
            symbols = self._productions[production][1]
            if dot < len(symbols) and self.is_rule(symbols[dot]) and symbols[dot] not in seen:
                seen.add(symbols[dot])
                items += [(number, 0) for number in self._of_rule[symbols[dot]]]
        return items

    def _edges(self, *, step: int) -> dict[str, set[str]]:
        found: dict[str, set[str]] = defaultdict(set)
        includes: set[tuple[str, str]] = set()
        for rule, symbols in self._productions:
            for symbol in symbols[::step]:
                if self.is_rule(symbol):
                    includes.add((rule, symbol))
                else:
                    found[rule].add(symbol)
                if symbol not in self.nullable:
                    break
        _propagate(found, includes)
        return found

    def _lookaheads(self) -> dict[tuple[int, int], set[str]]:
        """The lookaheads at which each state reduces by each production, by DeRemer's and Pennello's relations."""
        follow: dict[tuple[int, str], set[str]] = {}
        includes: set[tuple[tuple[int, str], tuple[int, str]]] = set()
        for state, gotos in enumerate(self.gotos):
            for symbol, target in gotos.items():
                if self.is_rule(symbol):
                    ends = {END} if state == 0 and symbol == self._productions[-1][1][0] else set()
                    follow[state, symbol] = self.shifts(target) | ends
                    for behind in self.gotos[target]:
                        if behind in self.nullable:
                            includes.add(((state, symbol), (target, behind)))
        lookbacks: dict[tuple[int, int], list[tuple[int, str]]] = defaultdict(list)
        for state, rule in list(follow):
            for number in self._of_rule[rule]:
                self._follow_path(state, number, includes, lookbacks)
        _propagate(follow, includes)
        return {place: set().union(*(follow[each] for each in sources)) for place, sources in lookbacks.items()}

    def _follow_path(
        self,
        state: int,
        production: int,
        includes: set[tuple[tuple[int, str], tuple[int, str]]],
        lookbacks: dict[tuple[int, int], list[tuple[int, str]]],
    ) -> None:
        rule, symbols = self._productions[production]
        place = state
        for index, symbol in enumerate(symbols):
            if self.is_rule(symbol) and all(behind in self.nullable for behind in symbols[index + 1 :]):
                includes.add(((place, symbol), (state, rule)))
            place = self.gotos[place][symbol]
        lookbacks[place, production].append((state, rule))


def _propagate(sets: dict, includes: set) -> None:  # type: ignore[type-arg]
    """Adds to the set of each first member of a pair that of the second, until nothing changes."""
    users = defaultdict(list)
    for user, source in includes:
        users[source].append(user)
    waiting = list(users)
    while waiting:
        source = waiting.pop()
        values = sets.get(source, set())
        for user in users[source]:
            if not values <= sets.setdefault(user, set()):
                sets[user] |= values
                if user in users:
                    waiting.append(user)
