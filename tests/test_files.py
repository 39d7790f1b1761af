"""Kinds of files by their first bytes, and texts that are decoded by byte-order marks and limited in size."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import os
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from mistralrs.errors import LoadError
from mistralrs.files import MAX_CONTAINERS, file_kind, read_bytes, read_json, read_text
from tests.tiny import write_tiny

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 4967215360\n"
)
PAGE = b"<!DOCTYPE html>\n<html class='x'><head><title>model.gguf</title></head></html>"


def saved(**options: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": torch.zeros(3)}, buffer, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model.gguf", b"GGUF")
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.gguf"))
    return buffer.getvalue()


KINDS: dict[str, tuple[bytes, str, str, str]] = {
    "git-lfs": (POINTER, "pointer", "a git-lfs pointer to a file of 4967215360 bytes", "git lfs pull"),
    "cut pointer": (POINTER[:60], "pointer", "a git-lfs pointer", "git lfs pull"),
    "page": (PAGE, "page", "a web page", "/resolve/"),
    "page behind a comment": (b"\n<!-- saved -->\n<HTML>", "page", "a web page", "/resolve/"),
    "XML of a store": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "page", "a web page", ""),
    "zip": (zipped(), "archive", "a zip archive", "unpack"),
    "empty zip": (b"PK\5\6" + bytes(18), "archive", "a zip archive", "unpack"),
    "gzip": (gzip.compress(b"GGUF"), "archive", "a gzip archive", "unpack"),
    "bzip2": (bz2.compress(b"GGUF"), "archive", "a bzip2 archive", "unpack"),
    "xz": (lzma.compress(b"GGUF"), "archive", "a xz archive", "unpack"),
    "tar": (tarred(), "archive", "a tar archive", "unpack"),
    "torch": (saved(), "pickle", "a pickled PyTorch checkpoint", "safetensors"),
    "old torch": (saved(_use_new_zipfile_serialization=False), "pickle", "a pickled PyTorch checkpoint", "safetensors"),
    "safetensors": (save({"a": torch.zeros(2)}), "safetensors", "a safetensors file", "config.json"),
    "GGUF": (b"GGUF\3\0\0\0", "gguf", "a GGUF file", "-f FILE"),
    "GGML": (b"tjgg\3\0\0\0", "ggml", "a legacy GGML file", "llama-ggml"),
    "JSON": (b'{"error":"Repository not found"}', "json", "a JSON text that begins with", "download"),
    "text": (b"Entry not found", "text", "a text that begins with 'Entry not found'", "download"),
    "UTF-16": ("Entry not found".encode("utf-16"), "text", "a text that begins with 'Entry", "download"),
    "cut character": ("Größe".encode() * 900, "text", "a text", "download"),
    "zeros": (bytes(5000), "zeros", "nothing but zeros", "download"),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_file_is_recognized_by_its_first_bytes(name: str) -> None:
    data, kind, description, hint = KINDS[name]
    found = file_kind(data[:4096])
    assert found is not None
    assert (found.kind, description in found.description, hint in found.hint) == (kind, True, True), found


@pytest.mark.parametrize("data", [b"", b"abc", b"\n\x0e\n\x05<unk>\x15\0\0\0\0", bytes(range(256)), b"\x93NUMPY\1\0"])
def test_unknown_files_are_left_to_their_reader(data: bytes) -> None:
    assert file_kind(data) is None


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8"])
def test_a_text_is_decoded_by_its_mark(encoding: str, tmp_path: Path) -> None:
    text, path = '{"größe": "🙂"}\n', tmp_path / "a.json"
    marks = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}
    path.write_bytes(marks.get(encoding, b"") + text.replace("\n", "\r\n").encode(encoding))
    assert read_text(path, limit=1000, hint="") == text
    assert read_json(path, hint="") == json.loads(text)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("{}".encode("utf-16-le"), "has NUL characters: it is UTF-16 without a byte-order mark"),
        ("größe".encode("utf-16-be") + b"\xff", "is UTF-16 without a byte-order mark, or no text"),
        ("größe".encode("latin-1"), "is not UTF-8: byte 2"),
        (codecs.BOM_UTF16_LE + b"a", "is not UTF-16-LE: byte 2"),
        (POINTER, "is a git-lfs pointer"),
    ],
)
def test_files_that_are_not_text_are_refused_by_name(data: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jinja"
    path.write_bytes(data)
    with pytest.raises(LoadError, match=reason) as refused:
        read_text(path, limit=1000, hint="repair it")
    assert str(path) in refused.value.message
    assert refused.value.hint


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("[1, 2]", "is not a JSON object"),
        ("{", "is not JSON"),
        ('{"a":' * 100_000, "is not JSON"),
        ("[" * (MAX_CONTAINERS + 1), "objects and lists"),
        ('{"a": 1, "a": 2}', "has the key 'a' twice"),
        ("Entry not found", "is a text that begins with 'Entry not found'"),
        ('{"a": ' + "9" * 5000 + "}", "is not JSON"),
    ],
)
def test_broken_json_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(LoadError, match=reason):
        read_json(tmp_path / "a.json", hint="repair it", unique=True)


def test_nothing_is_read_without_end(tmp_path: Path) -> None:
    """Refuses devices, pipes and files that are too long; a pipe that a user names is read to its end."""
    fifo, long, zero = tmp_path / "fifo", tmp_path / "long", tmp_path / "zero"
    os.mkfifo(fifo)
    zero.symlink_to("/dev/zero")
    with long.open("wb") as file:
        file.truncate(1 << 40)
    started = time.monotonic()
    for path in (fifo, zero, tmp_path):
        with pytest.raises(LoadError, match="is not a regular file"):
            read_json(path, hint="fetch it again")
    with pytest.raises(LoadError, match="has more than 5000 bytes"):
        read_bytes(long, limit=5000, hint="")
    with pytest.raises(LoadError, match="is not a regular file"):
        read_bytes(zero, limit=5000, hint="", pipe=True)
    with pytest.raises(LoadError, match="absent cannot be read: No such file"):
        read_bytes(tmp_path / "absent", limit=1, hint="")
    assert time.monotonic() - started < 10
    reader, writer = os.pipe()
    os.write(writer, b"\xef\xbb\xbfkey\n")
    os.close(writer)
    assert read_text(Path(f"/dev/fd/{reader}"), limit=100, hint="", pipe=True) == "key\n"
    os.close(reader)


def test_a_model_is_not_taken_for_something_else(tmp_path: Path) -> None:
    tiny = write_tiny(tmp_path / "tiny.gguf")
    found = file_kind(tiny.path.read_bytes()[:4096])
    assert found is not None
    assert found.kind == "gguf"
