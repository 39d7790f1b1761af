"""Reads text from stdin, if there is any, as it comes.

A byte-order mark at the beginning gives the encoding and is no part of the text.
"""

from __future__ import annotations

import codecs
import fcntl
import io
import logging
import os
import select
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

from mistralrs.errors import MistralrsError, RequestError
from mistralrs.files import BOMS
from mistralrs_cli.terminal.output import is_terminal

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

PATIENCE_S = 5.0
"""Seconds without input from a pipe after which the user is told that it is being read."""

_PIECE = 1 << 16
MAX_CHARACTERS = 16 << 20
"""The longest prompt in characters. No context holds as much, therefore the rest is not even read."""
_logger = logging.getLogger("mistralrs.cli")


def holds_text(stdin: TextIO) -> bool:
    """Returns whether stdin has text that need not be typed: in a file, a pipe or a socket.

    Another device than the null device may never come to an end: it is not read, and the user is told.
    """
    descriptor = stdin.fileno()
    if is_terminal(stdin) or fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:  # as under nohup
        return False
    status = os.fstat(descriptor)
    if not stat.S_ISCHR(status.st_mode):
        return True
    if status.st_rdev != os.stat(os.devnull).st_rdev:
        _logger.warning("stdin is a device and is not read; --prompt - reads it, --no-stdin leaves it alone")
    return False


def text_pieces(stdin: TextIO, *, name: str = "stdin") -> Iterator[str]:
    """Yields the text of stdin, or of the file ``name``, in pieces, each as soon as it arrives.

    Every end of a line is a line feed. Without a byte-order mark the encoding is the locale's. Undecodable bytes become
    U+FFFD. Raises ``MistralrsError`` if it cannot be read.
    """
    decoder = io.IncrementalNewlineDecoder(_MarkDecoder(stdin.encoding), translate=True)
    for data in _pieces(stdin.fileno(), name):
        if text := decoder.decode(data):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text


def read_all(stdin: TextIO) -> str:
    """Returns the whole text of stdin.

    Raises like ``text_pieces``, and ``RequestError`` for a text that is longer than a prompt may be.
    """
    pieces: list[str] = []
    length = 0
    for text in text_pieces(stdin):
        length = _checked(length + len(text))
        pieces.append(text)
    return "".join(pieces)


def lines(stdin: TextIO) -> Iterator[str]:
    """Yields the lines of stdin without their line feeds, each as soon as it arrives.

    Raises like ``text_pieces``, and ``RequestError`` for a line that is longer than a prompt may be.
    """
    begun: list[str] = []
    length = 0
    for text in text_pieces(stdin):
        first, *others = text.split("\n")
        begun.append(first)
        if others:
            yield "".join(begun)
            yield from others[:-1]
            begun, length = [others[-1]], 0
        length = _checked(length + len(begun[-1]))
    if rest := "".join(begun):
        yield rest


def warn_of_waiting(stdin: TextIO, *, hint: str = "--no-stdin leaves it alone") -> None:
    """Waits until something can be read; tells the user when that takes long, because a forgotten pipe never ends."""
    if not select.select([stdin], [], [], PATIENCE_S)[0]:
        _logger.warning("waiting for the end of stdin, which belongs to the prompt; %s", hint)


def without_mark(text: str) -> str:
    """Returns ``text`` without a byte-order mark at its beginning, as it comes from a file by way of a shell."""
    return text.removeprefix("\ufeff")


def _checked(length: int) -> int:
    if length > MAX_CHARACTERS:
        raise RequestError(
            f"stdin holds more than {MAX_CHARACTERS} characters, which fit into no model's context",
            hint="send a part of it",
        )
    return length


def _pieces(descriptor: int, name: str) -> Iterator[bytes]:
    while True:
        try:
            data = os.read(descriptor, _PIECE)
        except BlockingIOError:  # a process that shares the pipe has made it non-blocking
            select.select([descriptor], [], [])
            continue
        except OSError as error:
            hint = "--no-stdin leaves it alone" if name == "stdin" else "name another file"
            raise MistralrsError(f"{name} cannot be read: {error.strerror}", hint=hint) from error
        if not data:
            return
        yield data


class _MarkDecoder(codecs.IncrementalDecoder):
    """Decodes bytes in the encoding of their byte-order mark, else in ``encoding``."""

    def __init__(self, encoding: str) -> None:
        super().__init__(errors="replace")
        self._encoding = encoding
        self._start = b""
        self._decoder: codecs.IncrementalDecoder | None = None

    def decode(self, data: ReadableBuffer, final: bool = False) -> str:
        if self._decoder is not None:
            return self._decoder.decode(data, final)
        self._start += bytes(data)
        if not final and any(mark.startswith(self._start) and mark != self._start for mark, _ in BOMS):
            return ""  # it may become a mark
        mark, encoding = next((each for each in BOMS if self._start.startswith(each[0])), (b"", self._encoding))
        self._decoder = codecs.getincrementaldecoder(encoding)(self.errors)
        return self._decoder.decode(self._start[len(mark) :], final)
