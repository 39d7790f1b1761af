"""An independent check of texts against a Yacc grammar: a lexer of longest matches, and ply's LALR parser."""

from __future__ import annotations

import re
import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import regex
from ply import yacc


@dataclass
class YaccSource:
    """A grammar as data. Terminals are written as in Yacc, within quotes or as a declared name."""

    rules: list[tuple[str, list[list[str]]]]
    skips: list[str] = field(default_factory=list)
    precedences: list[tuple[str, list[str]]] = field(default_factory=list)

    def text(self) -> str:
        """The grammar in the notation that users write."""
        lines = [f"%{kind} {' '.join(names)}" for kind, names in self.precedences]
        lines.append("%%")
        lines += [f"{rule}: {' | '.join(' '.join(parts) or '%empty' for parts in all_)} ;" for rule, all_ in self.rules]
        if self.skips:
            lines.append(f"SKIP: {' | '.join(self.skips)} ;")
        return "\n".join(lines)


class YaccChecker:
    """Parses texts as a Yacc parser with a lexer of longest matches would."""

    def __init__(self, source: YaccSource) -> None:
        rules = {rule for rule, _ in source.rules}
        names = [name for _, all_ in source.rules for parts in all_ for name in parts if name not in rules]
        names += [name for _, listed in source.precedences for name in listed]
        quoted = list(dict.fromkeys(name for name in names if name != "%prec"))
        self._skips = {_unquoted(text) for text in source.skips}
        texts = list(dict.fromkeys([*map(_unquoted, quoted), *self._skips]))
        ordered = sorted(texts, key=lambda text: (_is_expression(text), -len(text)))
        self._patterns = [
            (text, regex.compile(text[1:-1] if _is_expression(text) else regex.escape(text))) for text in ordered
        ]
        self._tokens = {_unquoted(name): f"T{number}" for number, name in enumerate(quoted)}
        self._parser = _ply_parser(source, {name: self._tokens[_unquoted(name)] for name in quoted})

    def accepts(self, answer: bytes) -> bool:
        """Whether the text is a sentence."""
        tokens = self._lexed(answer.decode())
        if tokens is None:
            return False
        try:
            self._parser.parse(lexer=_Tokens(tokens))
        except SyntaxError:
            return False
        return True

    def _lexed(self, text: str) -> list[str] | None:
        found, index = [], 0
        while index < len(text):
            ends = [(self._end(pattern, text, index), -number) for number, (_, pattern) in enumerate(self._patterns)]
            end, number = max(ends)
            if end <= index:
                return None
            terminal = self._patterns[-number][0]
            if terminal not in self._skips:
                found.append(self._tokens[terminal])
            index = end
        return found

    @staticmethod
    def _end(pattern: Any, text: str, index: int) -> int:
        """The end of the longest match, which the expression's own order of alternatives does not decide."""
        longest = (end for end in range(len(text), index, -1) if pattern.fullmatch(text, index, end))
        return next(longest, index)


class _Tokens:
    """ply's interface of a lexer."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = iter(names)
        self.lineno = 0

    def token(self) -> Any:
        name = next(self._names, None)
        return None if name is None else types.SimpleNamespace(type=name, value=name, lineno=0, lexpos=0)


def _ply_parser(source: YaccSource, tokens: dict[str, str]) -> Any:
    module = types.ModuleType("grammar_of_a_test")
    module.__file__ = __file__
    module.tokens = list(tokens.values())  # type: ignore[attr-defined]
    module.start = source.rules[0][0]  # type: ignore[attr-defined]
    module.precedence = [(kind, *(tokens[name] for name in names)) for kind, names in source.precedences]  # type: ignore[attr-defined]
    for number, (rule, all_) in enumerate(source.rules):
        lines = [" ".join(tokens.get(name, name) for name in parts) for parts in all_]

        def action(p: Any) -> None:
            return None

        action.__doc__ = f"{rule} : " + "\n | ".join(lines)
        setattr(module, f"p_{number}", action)

    def p_error(p: Any) -> None:
        raise SyntaxError(str(p))

    module.p_error = p_error  # type: ignore[attr-defined]
    return yacc.yacc(module=module, write_tables=False, debug=False, errorlog=yacc.NullLogger(), check_recursion=False)


def _unquoted(name: str) -> str:
    return name[1:-1] if name[0] in "\"'" else name


def _is_expression(text: str) -> bool:
    return len(text) > 2 and text[0] == "/" == text[-1]


_PIECE = re.compile(r"""/\*.*?\*/|%%|%\w+|'[^'\n]+'|"[^"\n]+"|[A-Za-z_]\w*|[:|;]|\{[^}]*\}|\s+""", re.DOTALL)


def source_of(text: str) -> YaccSource:
    """Returns a grammar file as data; it has a ``%start`` whose rule is the first, and no nested actions."""
    pieces = [piece for piece in _PIECE.findall(text) if not piece.isspace() and piece[0] not in "{/"]
    precedences: list[tuple[str, list[str]]] = []
    body = pieces.index("%%")
    for piece in pieces[:body]:
        if piece in ("%left", "%right", "%nonassoc"):
            precedences.append((piece[1:], []))
        elif precedences:
            precedences[-1][1].append(piece)
    rules: list[tuple[str, list[list[str]]]] = []
    end = pieces.index("%%", body + 1)
    for index in range(body + 1, end):
        piece = pieces[index]
        if pieces[index + 1] == ":" and (pieces[index - 1] in (";", "%%")):
            rules.append((piece, [[]]))
        elif piece == "|":
            rules[-1][1].append([])
        elif piece not in (":", ";", "%empty"):
            rules[-1][1][-1].append(piece)
    skips = [name for rule, all_ in rules if rule == "SKIP" for parts in all_ for name in parts]
    return YaccSource([each for each in rules if each[0] != "SKIP"], skips, precedences)
