"""The thinking in front of an answer that a grammar holds: texts and control tokens as symbols of a Lark grammar."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mistralrs.grammar.grammar_text import GrammarText

if TYPE_CHECKING:
    from mistralrs.text.tokenizer import Tokenizer

TERMINALS = r"""TEXT: /(?s:.+)/
SPACE: /[ \n]{1,8}/"""
"""Terminals that the rules of ``MarkedGrammar`` use. Without a bound, a model that is lost may write space for ever."""


def grammar_after_thinking(
    schema: str, marks: tuple[str, str], tokenizer: Tokenizer, *, prompt_end: str
) -> GrammarText:
    """Returns the grammar of an answer that may think, and then obeys a JSON schema, which has been checked.

    ``marks``: the texts that open and close a thought. ``prompt_end``: the end of the prompt; a thought that it has
    begun must be closed, and none is opened behind one that it has closed.
    """
    lead, rules = MarkedGrammar(tokenizer).lead(*marks, prompt_end)
    return GrammarText("lark", "\n".join([f"start: {lead} content", *rules, f"content: %json {schema}", TERMINALS]))


class MarkedGrammar:
    """Writes parts of a grammar in llguidance's dialect of Lark for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def lead(self, opening: str, closing: str, prompt_end: str, *, message: str = "") -> tuple[str, list[str]]:
        """Returns the symbols of the thinking in front of the rest, and their rules. ``opening``: empty for none.

        ``message``: begins the message that follows each thought; empty: there is one thought, and no message.
        """
        end = prompt_end.rstrip()
        if not opening or end.endswith(closing.strip()):
            return "", []
        rules = [self.until("thought", closing)]
        if message:
            following = self.written(message)
            rules.append(f"opened: {self.written(opening)} thought {following}")
            return (f"thought {following} opened*" if end.endswith(opening) else "opened*"), rules
        if end.endswith(opening.strip()):
            return "thought SPACE?", rules
        return "opened?", [f"opened: {self.written(opening)} thought SPACE?", *rules]

    def until(self, rule: str, end: str) -> str:
        """Returns the rule of a text up to the first ``end``."""
        if self.controls(end):
            return f"{rule}: TEXT? {self.written(end)}"
        return f"{rule}[lazy]: /(?s:.*)/ {self.written(end)}"

    def written(self, text: str) -> str:
        """Returns a text as symbols of the grammar: literals, and control tokens by number."""
        from mistralrs.grammar.choice_grammar import literal

        symbols, position = [], 0
        for start, end in self.controls(text):
            symbols.append(text[position:start])
            symbols.append(text[start:end])
            position = end
        symbols.append(text[position:])
        written = []
        for place, symbol in enumerate(symbols):
            if place % 2:
                [token] = self._tokenizer.encode(symbol, special=True)
                written.append(f"<[{token}]>")
            elif symbol:
                written.append(literal(symbol))
        return " ".join(written)

    def controls(self, text: str) -> list[tuple[int, int]]:
        """Returns the places of control tokens' names in a text."""
        return list(self._tokenizer.controls.spans(text))
