"""Texts that go with a message: files, folders and pages that it names with ``@``, and others that wait for it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mistralrs.errors import LoadError, MistralrsError, UsageError
from mistralrs.files import read_text
from mistralrs.user_dirs import expand_user
from mistralrs_cli.terminal.output import byte_size, clean_line, grouped

FILE_BYTES = 16 << 20
"""Bytes of one file, at most."""
MAX_FILES = 500
"""Files of a folder, at most."""
SHOWN_FILES = 20
"""Attachments that have a line of their own."""
_REFERENCE = re.compile(r"(?:(?<=\s)|^)(\\?)@(?:\"([^\"\n]+)\"|([^\s\"]+))")
_PATH_LIKE = re.compile(r"(?:~|\.{0,2}/).*|.*/|.*\.[A-Za-z]\w{0,7}")
_ENDING_MARKS = ".,;:!?)]}'"
_AS_TEXT = "write \\@ to send it as text"


@dataclass(frozen=True, slots=True)
class Attachment:
    """A text with the name that the model is told."""

    name: str
    text: str

    @property
    def block(self) -> str:
        """Returns the text as a part of a message: its name and a fenced block."""
        longest = max(map(len, re.findall("`+", self.text)), default=0)
        fence = "`" * max(3, longest + 1)
        ending = "" if self.text.endswith("\n") else "\n"
        return f"{clean_line(self.name)}:\n{fence}\n{self.text}{ending}{fence}"


@dataclass(frozen=True, slots=True)
class Found:
    """The text of a message without its escapes, and the texts that it names."""

    text: str
    attachments: tuple[Attachment, ...]
    left_out: tuple[str, ...] = ()
    """Files of folders that are not text."""


def find_references(text: str, fetch: Callable[[str], Attachment], *, pasted: Sequence[str] = ()) -> Found:
    """Returns the message with what its words ``@FILE``, ``@FOLDER/`` and ``@https://...`` name.

    ``fetch`` returns a page or refuses it. ``pasted``: parts of the text whose words name nothing, because somebody
    else may have written them. A word that names no file is text, unless it looks like a path. Raises ``UsageError``
    and ``LoadError``.
    """
    spans = [span for part in pasted if part for span in _places(text, part)]
    pieces, end = list[str](), 0
    attachments, left_out = list[Attachment](), list[str]()
    for match in _REFERENCE.finditer(text):
        if any(start <= match.start() < stop for start, stop in spans):
            continue
        if match[1]:
            pieces.append(text[end : match.start()])
            end = match.start() + 1
            continue
        word = match[2] or match[3]
        if re.match("https?://", word):
            attachments.append(fetch(word.rstrip(_ENDING_MARKS)))
            continue
        path = _path_of(word, is_quoted=match[2] is not None)
        if path is not None:
            found, others = read_path(path)
            attachments += found
            left_out += others
    return Found("".join(pieces) + text[end:], tuple(attachments), tuple(left_out))


def as_draft(message: str) -> str:
    """Returns the line that sends just this message: what it would attach, run or command is escaped."""
    line = _REFERENCE.sub(lambda match: f"\\{match[0]}", message)
    return line[0] + line if line.startswith(("/", "!")) else line


def read_path(path: Path) -> tuple[list[Attachment], list[str]]:
    """Returns a file, or the text files of a folder with the names of its other files. Raises ``LoadError``, and
    ``UsageError`` for a folder with none."""
    if not path.is_dir():
        return [Attachment(str(path), read_text(path, limit=FILE_BYTES, hint="name a text file"))], []
    attachments, left_out = list[Attachment](), list[str]()
    for number, each in enumerate(_files_of(path)):
        if number == MAX_FILES:
            raise UsageError(f"{path} has more than {MAX_FILES} files", hint="name a smaller folder, or single files")
        try:
            attachments.append(Attachment(str(each), read_text(each, limit=FILE_BYTES, hint="")))
        except LoadError:
            left_out.append(str(each))
    if not attachments:
        raise UsageError(f"{path} has no text file", hint="name a file, or another folder")
    return attachments, left_out


def refuse_page(address: str) -> Attachment:
    """Raises ``UsageError``: the network was not allowed."""
    raise UsageError(
        f"@{clean_line(address)} is not fetched: the chat does not use the network",
        hint="--allow-net lets it; write \\@ to send it as text",
    )


def fetch_page(address: str) -> Attachment:
    """Returns the text of a page. Raises ``LoadError`` where it cannot be had."""
    from mistralrs_cli.chat_input.web_page import fetch  # costs what only pages need

    return fetch(address)


def with_blocks(text: str, attachments: Iterable[Attachment]) -> str:
    """Returns a message with its attachments after it."""
    return "\n\n".join([text, *(each.block for each in attachments)])


def describe(attachments: Sequence[Attachment], count: Callable[[str], int | None], *, limit: int) -> list[str]:
    """Returns a line for each attachment with its tokens, or its size where ``count`` knows no tokens, and one for all.

    ``limit``: tokens of the context; 0: not known. Raises ``UsageError`` for more than fit.
    """
    counts = [count(each.text) for each in attachments]
    total = sum(filter(None, counts))
    if limit and total > limit:
        raise UsageError(
            f"{' and '.join(clean_line(each.name) for each in attachments[:3])}"
            f"{' and others' if len(attachments) > 3 else ''}: {grouped(total)} tokens, and the context has "
            f"{grouped(limit)}",
            hint="attach less",
        )
    lines = [
        f"attached: {clean_line(each.name)}, {_size(each.text, tokens)}"
        for each, tokens in list(zip(attachments, counts, strict=True))[:SHOWN_FILES]
    ]
    if len(attachments) > SHOWN_FILES:
        lines.append(f"attached: and {len(attachments) - SHOWN_FILES} more")
    if len(attachments) > 1 and None not in counts:
        lines.append(f"attached: {len(attachments)} texts, {grouped(total)} tokens in all")
    return lines


def _size(text: str, tokens: int | None) -> str:
    return byte_size(len(text.encode())) if tokens is None else f"{grouped(tokens)} token{'' if tokens == 1 else 's'}"


def _path_of(word: str, *, is_quoted: bool) -> Path | None:
    """Returns the path that a word names; None: the word is text. Raises ``UsageError`` for one that only looks like a
    path."""
    for candidate in dict.fromkeys((word, word.rstrip(_ENDING_MARKS))):
        try:
            path = expand_user(candidate)
            if candidate and path.exists():
                return path
        except (MistralrsError, OSError, ValueError):
            continue
    if is_quoted or _PATH_LIKE.fullmatch(word.rstrip(_ENDING_MARKS)):
        raise UsageError(f"@{clean_line(word)}: there is no such file", hint=_AS_TEXT)
    return None


def _files_of(folder: Path) -> Iterable[Path]:
    """Yields the files of a folder and of the folders in it, sorted, without hidden ones and links."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place, name)
            if not name.startswith(".") and not path.is_symlink() and path.is_file():
                yield path


def _places(text: str, part: str) -> Iterable[tuple[int, int]]:
    start = text.find(part)
    while start >= 0:
        yield start, start + len(part)
        start = text.find(part, start + len(part))
