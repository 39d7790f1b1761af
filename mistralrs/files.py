"""Reads the small files that come with a model or that the user names, and recognizes a file by its first bytes.

All reads are limited in size. JSON is the only format that is parsed here. Needs neither torch nor numpy.
"""

from __future__ import annotations

import codecs
import json
import re
import stat
from collections import Counter
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mistralrs.errors import LoadError
from mistralrs.parsing import parse_nested

JSON_BYTES = 32 << 20
"""Bytes of a `config.json` or similar file, at most. Real ones have some KB, an index of 100,000 tensors 10 MB."""
TOKENIZER_BYTES = 128 << 20
"""Bytes of a `tokenizer.json`, at most. The largest in use have 33 MB."""
TEMPLATE_BYTES = 4 << 20
MAX_CONTAINERS = 1 << 19
"""Objects and lists in one JSON text, at most, which bounds the memory for parsing it."""
HEAD_BYTES = 4096
"""Bytes at the beginning of a file that ``file_kind`` needs."""

Kind = Literal[
    "gguf", "ggml", "safetensors", "json", "text", "pointer", "page", "pickle", "archive", "zeros", "adapter", "session"
]

_CHUNK = 1 << 20
_SHORTEST_TEXT = 5
"""Characters from which on a file counts as text; a model file cut off after a few bytes does not."""
_FETCH_AGAIN = "download the file again"
BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16's mark, which is a prefix of it
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
"""Byte-order marks and the encodings that they stand for."""
_POINTER = re.compile(rb"(?:version https?://(?:git-lfs|hawser)\.github\.com/|# xet version )")
_POINTER_SIZE = re.compile(rb"^size (\d{1,18})\s*$", re.MULTILINE)
_PAGE = re.compile(
    rb"\s*(?:<!--.{0,200}?-->\s*)?<(?:!doctype\s+html|html|head|body|\?xml)\b", re.IGNORECASE | re.DOTALL
)
_ARCHIVES = (
    (b"PK\x03\x04", "zip"),
    (b"PK\x05\x06", "zip"),
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\0", "xz"),
    (b"BZh", "bzip2"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"Rar!", "rar"),
)
_PLAIN = frozenset({*range(0x20, 0x7F), *range(0x80, 0x100), 0x09, 0x0A, 0x0C, 0x0D})
"""Bytes that may occur in a text."""


@dataclass(frozen=True, slots=True)
class FileKind:
    """The kind of a file. ``description`` completes "FILE is ..."."""

    kind: Kind
    description: str
    hint: str


def file_kind(head: bytes) -> FileKind | None:
    """The kind of a file with the first ``HEAD_BYTES`` bytes ``head`` (fewer if it is shorter); None if unknown."""
    if _POINTER.match(head):
        size = _POINTER_SIZE.search(head)
        description = f"a git-lfs pointer to a file of {int(size[1])} bytes" if size else "a git-lfs pointer"
        return FileKind(
            "pointer",
            f"{description}, not the file itself",
            "run git lfs pull in its folder, or download the file again",
        )
    if _PAGE.match(head):
        hint = "download the file itself: on the hub its address has /resolve/ where that of its page has /blob/"
        return FileKind("page", "a web page, not the file that it is about", hint)
    return _model_kind(head) or _archive_kind(head) or _plain_kind(head)


def _model_kind(head: bytes) -> FileKind | None:
    if head[:4] == b"GGUF":
        return FileKind("gguf", "a GGUF file", "it runs with: mistralrs -i gguf -f FILE; its name should end in .gguf")
    if head[:4] in (b"lmgg", b"fmgg", b"tjgg"):
        return FileKind("ggml", "a legacy GGML file", "it runs with: mistralrs -i llama-ggml -m '' -f FILE")
    if head[:4] == b"algg":
        return FileKind("adapter", "a LoRA adapter of llama.cpp", "merge it into its model with the tools that made it")
    if head[:4] == b"nsgg":
        return FileKind("session", "a saved session of llama.cpp", "give the path of a model")
    if head[8:10] in (b'{"', b"{}", b"{ ") and int.from_bytes(head[:8], "little") < 1 << 32:
        hint = "give the folder that it is in, with its config.json; its name should end in .safetensors"
        return FileKind("safetensors", "a safetensors file", hint)
    return None


def _archive_kind(head: bytes) -> FileKind | None:
    if (head[:2] == b"PK" and b"data.pkl" in head) or (
        head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5")
    ):
        return FileKind(
            "pickle",
            "a pickled PyTorch checkpoint, which can run any code when it is read; it is not supported",
            "use the model's safetensors or GGUF files; transformers' save_pretrained writes safetensors",
        )
    name = next((name for magic, name in _ARCHIVES if head.startswith(magic)), None)
    if name is None and head[257:262] == b"ustar":
        name = "tar"
    if name is None:
        return None
    return FileKind("archive", f"a {name} archive", "unpack it, and give the path of what was in it")


def _plain_kind(head: bytes) -> FileKind | None:
    if len(head) >= 64 and not any(head):
        return FileKind(
            "zeros", "a file that begins with nothing but zeros, as an unfinished download does", _FETCH_AGAIN
        )
    text = _text_of(head)
    if text is None or len(text.strip()) < _SHORTEST_TEXT:
        return None
    if text.lstrip()[0] in "{[":
        return FileKind("json", f"a JSON text that begins with {_beginning(text)}", _FETCH_AGAIN)
    return FileKind("text", f"a text that begins with {_beginning(text)}", _FETCH_AGAIN)


def _text_of(head: bytes) -> str | None:
    """The text of ``head``; None if it is not text."""
    for bom, encoding in BOMS:
        if head.startswith(bom):
            return head[len(bom) :].decode(encoding, "ignore")
    if not _PLAIN.issuperset(head):
        return None
    try:
        # an incremental decoder, because the last character may be incomplete
        return codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return None


def _beginning(text: str) -> str:
    return ascii(" ".join(text.split())[:60])


def refuse_other_kinds(path: Path, head: bytes, *, expected: Set[Kind]) -> None:
    """Raises LoadError if the file that begins with ``head`` is recognized as a kind that is not ``expected``."""
    found = file_kind(head[:HEAD_BYTES])
    if found is not None and found.kind not in expected:
        raise LoadError(f"{path} is {found.description}", hint=found.hint)


def read_bytes(path: Path, *, limit: int, hint: str, pipe: bool = False) -> bytes:
    """All bytes of a file. ``hint`` is that of errors without a hint of their own; ``pipe`` allows pipes and sockets.

    Raises LoadError if the file is missing, is not a regular file, or has more than ``limit`` bytes.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not (pipe and (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode))):
            raise LoadError(f"{path} is not a regular file", hint=hint)
        data = bytearray()
        with path.open("rb", buffering=0) as file:
            while len(data) <= limit and (chunk := file.read(_CHUNK)):
                data += chunk
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}", hint=hint) from error
    if len(data) > limit:
        raise LoadError(f"{path} has more than {limit} bytes, which is too much for such a file", hint=hint)
    return bytes(data)


def read_text(path: Path, *, limit: int, hint: str, pipe: bool = False) -> str:
    """The text of a file, decoded by its byte-order mark, which is removed, or else as UTF-8. Lines end in a line feed.

    Raises LoadError like ``read_bytes``, and if the file is not text.
    """
    data = read_bytes(path, limit=limit, hint=hint, pipe=pipe)
    refuse_other_kinds(path, data, expected={"json", "text"})
    return _decoded(path, data, hint).replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path, *, limit: int = JSON_BYTES, hint: str, unique: bool = False) -> dict[str, object]:
    """The JSON object in a file. ``unique`` refuses repeated keys, of which otherwise the last one counts.

    Raises LoadError like ``read_text``, and if the file is not a JSON object.
    """
    text = read_json_text(path, limit=limit, hint=hint)
    try:
        return parse_json(text, unique=unique)
    except ValueError as error:
        raise LoadError(f"{path} {error}", hint=hint) from error


def read_json_text(path: Path, *, limit: int, hint: str) -> str:
    """The text of a JSON file, not parsed. Raises LoadError like ``read_text``, and for an empty file."""
    data = read_bytes(path, limit=limit, hint=hint)
    if not data.strip():
        raise LoadError(f"{path} is empty", hint=hint)
    refuse_other_kinds(path, data, expected={"json"})
    return _decoded(path, data, hint)


def parse_json(text: str, *, unique: bool = False) -> dict[str, object]:
    """The JSON object of a text, with ``unique`` as for ``read_json``. Raises ValueError with the reason."""
    if text.count("{") + text.count("[") > MAX_CONTAINERS:  # counting is cheap where parsing is not
        raise ValueError(f"has more than {MAX_CONTAINERS} objects and lists")
    try:
        value = parse_nested(json.loads, text, object_pairs_hook=_unique if unique else None)
    except _RepeatedKeyError as error:
        raise ValueError(f"has the key {str(error.args[0])[:100]!r} twice") from error
    except ValueError as error:
        raise ValueError(f"is not JSON: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise ValueError("is not a JSON object")
    return value


class _RepeatedKeyError(ValueError):
    """A repeated key, which is the argument."""


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise _RepeatedKeyError(Counter(key for key, _ in pairs).most_common(1)[0][0])
    return result


def decode_text(data: bytes) -> str:
    """The text of these bytes, decoded by their byte-order mark, which is removed, or else as UTF-8.

    Raises ValueError with the reason.
    """
    bom, encoding = next(((bom, name) for bom, name in BOMS if data.startswith(bom)), (b"", "utf-8"))
    try:
        text = data[len(bom) :].decode(encoding)
    except UnicodeDecodeError as error:
        if not bom and b"\0" in data:
            raise ValueError("is UTF-16 without a byte-order mark, or no text") from error
        raise ValueError(f"is not {encoding.upper()}: byte {error.start + len(bom)} {error.reason}") from error
    if "\0" in text:
        raise ValueError("has NUL characters: it is UTF-16 without a byte-order mark, or no text")
    return text


def _decoded(path: Path, data: bytes, hint: str) -> str:
    try:
        return decode_text(data)
    except ValueError as error:
        raise LoadError(f"{path} {error}", hint=f"store it as UTF-8; {hint}") from error
