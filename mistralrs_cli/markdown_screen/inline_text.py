"""The inline tokens of a block as styled text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from markdown_it.token import Token
from rich.style import Style

from mistralrs_cli.markdown_screen.latex_text import latex_text
from mistralrs_cli.markdown_screen.theme import Theme
from mistralrs_cli.markdown_screen.word_wrap import PLAIN, Piece
from mistralrs_cli.terminal.output import Sanitizer, escape_reordering

_LINE_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
_WEB = ("http://", "https://", "mailto:")
_LOOKS_LIKE_ADDRESS = re.compile(r"[a-z]+://|www\.|^[\w-]+(\.[\w-]+)+(/|$)", re.IGNORECASE)
_MARKS: dict[str, Style] = {
    "em": Style(italic=True),
    "strong": Style(bold=True),
    "s": Style(strike=True),
}


def safe(text: str) -> str:
    """Returns text without controls: entities such as ``&#27;`` become characters only while Markdown is read."""
    return escape_reordering(Sanitizer().feed(text))


@dataclass(frozen=True, slots=True)
class InlineText:
    """Makes styled text of inline tokens. ``has_links``: the terminal knows links (OSC 8)."""

    theme: Theme
    has_links: bool

    def pieces(self, tokens: Sequence[Token], style: Style = PLAIN) -> list[Piece]:
        """Returns the text of inline tokens, with line feeds where lines break."""
        pieces: list[Piece] = []
        styles, links = [style], [""]
        beginnings = [0]
        for token in tokens:
            kind = token.type
            if kind == "link_open":
                links.append(safe(str(token.attrs.get("href", ""))).replace("\n", ""))
                styles.append(styles[-1] + self.theme.link)
                beginnings.append(len(pieces))
            elif kind == "link_close":
                styles.pop()
                pieces += self._address(links.pop(), pieces[beginnings.pop() :])
            elif token.nesting == 1:
                styles.append(styles[-1] + _MARKS.get(kind.removesuffix("_open"), PLAIN))
            elif token.nesting == -1:
                styles.pop()
            else:
                pieces += self._single(token, styles[-1], self._target(links[-1]))
        return pieces

    def _single(self, token: Token, style: Style, link: str) -> list[Piece]:
        """Returns the text of a token that is not in two parts."""
        text = safe(token.content)
        if token.type in ("softbreak", "hardbreak"):
            return [Piece("\n", style)]
        if token.type == "code_inline":
            return [Piece(text, style + self.theme.code, link)]
        if token.type == "formula":
            plain = latex_text(safe(token.meta["formula"]))
            return [Piece(text, style, link) if plain is None else Piece(plain, style + self.theme.math, link)]
        if token.type == "html_inline" and _LINE_BREAK.fullmatch(text):
            return [Piece("\n", style)]
        if token.type == "image":
            address = safe(str(token.attrs.get("src", ""))).replace("\n", "")
            shown = self.pieces(token.children or [], style + self.theme.link)
            target = link or self._target(address)
            return [
                Piece("image: ", style),
                *(piece._replace(link=target) for piece in shown),
                *self._address(address, shown),
            ]
        if token.type == "text":
            text = text.replace("\n", " ")  # of an entity
        return [Piece(text, style, link)]

    def _target(self, address: str) -> str:
        return address if self.has_links and address.lower().startswith(_WEB) else ""

    def _address(self, address: str, shown: Sequence[Piece]) -> list[Piece]:
        """Returns the address in parentheses where the text cannot lead to it, or looks like another address."""
        text = "".join(piece.text for piece in shown)
        if not address or text in (address, address.removeprefix("mailto:")):
            return []
        if self._target(address) and text.strip() and not _LOOKS_LIKE_ADDRESS.search(text.strip()):
            return []
        return [Piece(f" ({address})", self.theme.faint)]


def drawn(pieces: Sequence[Piece]) -> str:
    """Returns a line with the escape sequences of its styles and links."""
    parts = []
    for piece in pieces:
        text = piece.style.render(piece.text) if piece.style else piece.text
        parts.append(f"\x1b]8;;{piece.link}\x1b\\{text}\x1b]8;;\x1b\\" if piece.link else text)
    return "".join(parts)
