"""Fetches a page for a message, where the user allows it, as text."""

from __future__ import annotations

import urllib.error
import urllib.request
from html.parser import HTMLParser

from mistralrs.errors import LoadError
from mistralrs_cli.chat_input.attachments import Attachment
from mistralrs_cli.terminal.output import clean_line

PAGE_BYTES = 4 << 20
TIMEOUT_S = 30.0
_TEXTUAL = ("text/", "application/json", "application/xml", "application/xhtml")
_SKIPPED = ("script", "style", "noscript", "svg", "template")
_BLOCKS = (
    "p", "div", "li", "tr", "br", "h1", "h2", "h3", "h4", "h5", "h6", "pre", "section", "article", "table", "ul", "ol",
    "blockquote", "title",
)  # fmt: skip


def fetch(address: str) -> Attachment:
    """Returns the text of a page. Raises ``LoadError`` for one that cannot be had, is too large, or is no text."""
    request = urllib.request.Request(address, headers={"User-Agent": "mistralrs", "Accept": "text/*, application/json"})
    shown = clean_line(address)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            kind = answer.headers.get_content_type()
            charset = answer.headers.get_content_charset() or "utf-8"
            data = answer.read(PAGE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = f"HTTP {error.code}" if isinstance(error, urllib.error.HTTPError) else str(error)
        raise LoadError(f"{shown} cannot be fetched: {reason}", hint="look at the address") from error
    if not kind.startswith(_TEXTUAL):
        raise LoadError(f"{shown} is {clean_line(kind)}, which is no text", hint="attach a page or a text file")
    if len(data) > PAGE_BYTES:
        raise LoadError(f"{shown} has more than {PAGE_BYTES >> 20} MB", hint="save the part that matters as a file")
    try:
        text = data.decode(charset, "replace")
    except LookupError:
        text = data.decode(errors="replace")
    return Attachment(address, text_of(text) if "html" in kind else text)


def text_of(page: str) -> str:
    """Returns the visible text of a page of HTML, a block a line."""
    reader = _Text()
    reader.feed(page)
    reader.close()
    lines = (" ".join(line.split()) for line in "".join(reader.pieces).split("\n"))
    return "\n".join(line for line in lines if line)


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self._skipped = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._skipped += tag in _SKIPPED
        if tag in _BLOCKS:
            self.pieces.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self._skipped = max(0, self._skipped - (tag in _SKIPPED))
        if tag in _BLOCKS:
            self.pieces.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._skipped:
            self.pieces.append(data)
