"""The fenced blocks of the documents, and the marks of those that do not run in a test."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.serving import ROOT

_FENCE = re.compile(
    r"(?:^<!-- parsed only: (?P<mark>[^\n]*?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
DOCUMENTS = [
    ROOT / "README.md",
    *(path for path in sorted((ROOT / "docs").glob("*.md")) if path.name not in ("cli.md", "log.md")),
    ROOT / "chat_templates" / "README.md",
    ROOT / "orderings" / "README.md",
    ROOT / "examples" / "http.md",
]
"""The README and the guides."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    document: str
    """The path within the project."""
    line: int
    """The number of the line of its fence."""
    language: str
    text: str
    mark: str | None
    """The reason why it is parsed only, from the comment ``<!-- parsed only: REASON -->`` above it; None: it runs."""

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"

    def commands(self) -> list[list[str]]:
        """Returns the words of each `mistralrs` command, without what a shell does with its streams."""
        lines = re.sub(r"\\\n *", " ", self.text).splitlines()
        return [
            shlex.split(found[1], comments=True)
            for line in lines
            if (found := re.match(r"(?:.*?[|(] *|[A-Z_]+=\S+ +)?(?:\./)?mistralrs(?:-server)?((?: [^|&<>]*)?)", line))
        ]


def blocks_of(path: Path) -> list[Block]:
    text = path.read_text(encoding="utf-8")
    return [
        Block(
            str(path.relative_to(ROOT)),
            text.count("\n", 0, found.start("language")) + 1,
            found["language"],
            found["text"],
            found["mark"],
        )
        for found in _FENCE.finditer(text)
    ]
