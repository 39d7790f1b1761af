"""The GGUF reader on broken files: each is refused by name, place and reason, at once, and takes no memory."""

from __future__ import annotations

import os
import struct
import time
import tracemalloc
from pathlib import Path

import pytest

from mistralrs.errors import FormatError, LoadError
from mistralrs.loading.gguf_file import GgufFile
from mistralrs.loading.gguf_header import MAX_ARRAY_ELEMENTS
from tests.loading.gguf_bytes import ARRAY, BOOL, F32, STRING, U8, U32, Bytes

B = Bytes()
HUGE = 2**64 - 1
DATA = bytes(256)

REFUSAL_SECONDS = 1.0
REFUSAL_BYTES = 1 << 20
"""More memory than any message and traceback takes, and far less than the files claim."""


def u32(key: str, value: int) -> bytes:
    return B.entry(key, U32, struct.pack("<I", value))


def nested(depth: int) -> bytes:
    value = B.array(U8, 1, b"\1")
    for _ in range(depth - 1):
        value = B.array(ARRAY, 1, value)
    return B.entry("deep", ARRAY, value)


BROKEN: dict[str, tuple[bytes, str, str]] = {
    "wrong magic": (b"GGML" + bytes(100), "header", "starts with b'GGML' instead of b'GGUF'"),
    "three bytes": (b"GGU", "header", "4 bytes at byte 0 run past the end of the file at byte 3"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "header", "is a big-endian file"),
    "version 0": (b"GGUF" + struct.pack("<IQQ", 0, 0, 0), "header", "has version 0"),
    "version 4": (b"GGUF" + struct.pack("<IQQ", 4, 0, 0), "header", "has version 4"),
    "no counts": (b"GGUF" + struct.pack("<IQ", 3, 0), "header", "8 bytes at byte 16 run past the end"),
    "entry count": (B.file(entry_count=HUGE), "header", f"claims {HUGE} metadata entries"),
    "entry count, a little": (B.file([u32("a", 1)], entry_count=5), "header", "claims 5 metadata entries"),
    "tensor count": (B.file(info_count=HUGE), "header", f"claims {HUGE} tensors"),
    "tensor count, old": (Bytes(1).file(info_count=2**32 - 1), "header", "claims 4294967295 tensors"),
    "key length": (B.file([B.text("a", length=HUGE) + bytes(20)]), "metadata entry 0", f"has a name of {HUGE} bytes"),
    "empty key": (B.file([B.entry("", U8, b"\1"), bytes(9)]), "metadata entry 0", "has a name of 0 bytes"),
    "key past the end": (B.file([B.text("a", length=9999) + bytes(20)]), "metadata entry 0", "9999 bytes at byte"),
    "key not UTF-8": (B.file([B.entry(b"\xff\xfe", U8, b"\1"), bytes(9)]), "metadata entry 0", "is not UTF-8"),
    "same key": (B.file([u32("a", 1), u32("a", 2)]), "metadata key 'a'", "appears twice"),
    "value type": (B.file([B.entry("a", 13, bytes(8))]), "metadata key 'a'", "has the unknown value type 13"),
    "array value type": (
        B.file([B.entry("a", ARRAY, B.array(99, 1, bytes(8)))]), "metadata key 'a'", "has the unknown value type 99",
    ),
    "bool": (B.file([B.entry("a", BOOL, b"\2")]), "metadata key 'a'", "has the truth value 2"),
    "value past the end": (
        B.file([B.entry("a", U32, b"\1\2")], alignment=1), "metadata key 'a'", "4 bytes at byte 37 run past the end",
    ),
    "text length": (
        B.file([B.entry("a", STRING, B.text("b", length=HUGE))]), "metadata key 'a'", f"{HUGE} bytes at byte",
    ),
    "text not UTF-8": (
        B.file([B.entry("a", STRING, B.text(b"\xc3("))]), "metadata key 'a'", "text at byte 45 is not UTF-8",
    ),
    "array count": (B.file([B.entry("a", ARRAY, B.array(F32, HUGE, b""))]), "metadata key 'a'", f"claims {HUGE} el"),
    "array past the end": (
        B.file([B.entry("a", ARRAY, B.array(F32, 1000, b""))]), "metadata key 'a'", "4000 bytes at byte",
    ),
    "string count": (
        B.file([B.entry("a", ARRAY, B.array(STRING, 1000, b""))]), "metadata key 'a'", "claims 1000 strings",
    ),
    "string in array": (
        B.file([B.entry("a", ARRAY, B.array(STRING, 2, B.text("b") + B.text("c", length=HUGE)))]),
        "metadata key 'a'", "string 1 of 2 runs past the end of the file",
    ),
    "strings end early": (
        B.file([B.entry("a", ARRAY, B.array(STRING, 3, B.text("b" * 100, length=107)))], alignment=1),
        "metadata key 'a'", "string 0 of 3 runs past the end of the file",
    ),
    "string in array not UTF-8": (
        B.file([B.entry("a", ARRAY, B.array(STRING, 2, B.text("b") + B.text(b"\xff")))]),
        "metadata key 'a'", "string 1 at byte 66 is not UTF-8",
    ),
    "arrays count": (
        B.file([B.entry("a", ARRAY, B.array(ARRAY, 10**6, b""))]), "metadata key 'a'", "claims 1000000 arrays",
    ),
    "arrays too deep": (B.file([nested(5)]), "metadata key 'deep'", "has arrays nested more than 4 deep"),
    "alignment 0": (B.file([u32("general.alignment", 0)]), "metadata key 'general.alignment'", "is 0, expected"),
    "alignment 48": (B.file([u32("general.alignment", 48)]), "metadata key 'general.alignment'", "is 48, expected"),
    "alignment huge": (
        B.file([u32("general.alignment", 2**31)]), "metadata key 'general.alignment'", "is 2147483648, expected",
    ),
    "alignment text": (
        B.file([B.entry("general.alignment", STRING, B.text("32"))]), "metadata key 'general.alignment'", "is '32'",
    ),
    "tensor name length": (
        B.file([], [B.text("", length=2**40) + bytes(40)]), "tensor 0", f"has a name of {2**40} bytes",
    ),
    "tensor name not UTF-8": (B.file([], [B.info(b"\xff", (4,), 0, 0)], data=DATA), "tensor 0", "is not UTF-8"),
    "same tensor": (
        B.file([], [B.info("t", (4,), 0, 0), B.info("t", (4,), 0, 32)], data=DATA), "tensor 't'", "appears twice",
    ),
    "no dimensions": (B.file([], [B.info("t", (), 0, 0)], data=DATA), "tensor 't'", "has 0 dimensions, expected 1 to"),
    "five dimensions": (B.file([], [B.info("t", (1,) * 5, 0, 0)], data=DATA), "tensor 't'", "has 5 dimensions"),
    "dimension 0": (B.file([], [B.info("t", (4, 0), 0, 0)], data=DATA), "tensor 't'", "has a dimension of length 0"),
    "sizes overflow": (
        B.file([], [B.info("t", (2**32, 2**32), 0, 0)], data=DATA), "tensor 't'", "past the end of the file",
    ),
    "sizes overflow to 0": (
        B.file([], [B.info("t", (2**63, 2, 2**63, 2), 0, 0)], data=DATA), "tensor 't'", "past the end of the file",
    ),
    "type Q8_1": (B.file([], [B.info("t", (32,), 9, 0)], data=DATA), "tensor 't'", "stored as Q8_1, which is not"),
    "type Q8_K": (B.file([], [B.info("t", (256,), 15, 0)], data=DATA), "tensor 't'", "stored as Q8_K, which is not"),
    "type NVFP4": (B.file([], [B.info("t", (256,), 40, 0)], data=DATA), "tensor 't'", "stored as NVFP4, which is"),
    "type unknown": (B.file([], [B.info("t", (32,), 77, 0)], data=DATA), "tensor 't'", "has the unknown type 77"),
    "row length": (
        B.file([], [B.info("t", (48, 2), 2, 0)], data=DATA), "tensor 't'", "rows of 48 weights, not a multiple of Q4_0",
    ),
    "misaligned": (
        B.file([], [B.info("t", (4,), 0, 16)], data=DATA), "tensor 't'", "offset 16 is not a multiple of the alignment",
    ),
    "offset past the end": (
        B.file([], [B.info("t", (4,), 0, 512)], data=DATA), "tensor 't'", "past the end of the file at byte",
    ),
    "offset overflows": (
        B.file([], [B.info("t", (8,), 0, 2**64 - 32)], data=DATA), "tensor 't'", "past the end of the file at byte",
    ),
    "overlap": (
        B.file([], [B.info("t", (9,), 0, 0), B.info("u", (4,), 0, 32)], data=DATA), "tensor 'u'", "overlaps that of te",
    ),
    "same offset": (
        B.file([], [B.info("t", (4,), 0, 64), B.info("u", (4,), 0, 64)], data=DATA), "tensor 'u'", "overlaps that of",
    ),
    "truncated data": (
        B.file([], [B.info("t", (64,), 0, 0)], data=DATA)[:-1], "tensor 't'", "its data ends at byte 320, past the end",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file_is_refused(name: str, tmp_path: Path) -> None:
    data, place, reason = BROKEN[name]
    path = tmp_path / "broken.gguf"
    path.write_bytes(data)
    error = refusal(path)
    assert error.path == str(path)
    assert error.place == place
    assert reason in error.reason
    assert error.message == f"{path}: {error.place}: {error.reason}"
    assert error.hint


def refusal(path: Path) -> FormatError:
    """The error with which the file is refused; checks that it was raised at once and without taking memory."""
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(FormatError) as caught:
            GgufFile.open(path)
        assert time.process_time() - start < REFUSAL_SECONDS
        assert tracemalloc.get_traced_memory()[1] < REFUSAL_BYTES
    finally:
        tracemalloc.stop()
    return caught.value


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    entries = [u32("a", 1), B.entry("b", ARRAY, B.array(STRING, 2, B.text("x") + B.text("yz")))]
    whole = B.file(entries, [B.info("t", (64,), 0, 0)], data=DATA)
    path = tmp_path / "truncated.gguf"
    path.write_bytes(whole)
    GgufFile.open(path).close()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(FormatError, match=r"truncated\.gguf"):
            GgufFile.open(path)


def test_arrays_may_not_sum_up_to_more_than_the_limit(tmp_path: Path) -> None:
    half = MAX_ARRAY_ELEMENTS // 2
    value = B.array(U8, half + 1, bytes(half + 1))
    path = tmp_path / "arrays.gguf"
    path.write_bytes(B.file([B.entry("a", ARRAY, value)]))
    GgufFile.open(path).close()
    path.write_bytes(B.file([B.entry("a", ARRAY, value), B.entry("b", ARRAY, value)]))
    with pytest.raises(FormatError, match=f"'b': claims {half + 1} elements"):
        GgufFile.open(path)


def test_arrays_in_arrays_count_for_more(tmp_path: Path) -> None:
    count = MAX_ARRAY_ELEMENTS // 64 + 1
    path = tmp_path / "arrays.gguf"
    path.write_bytes(B.file([B.entry("a", ARRAY, B.array(ARRAY, count, B.array(U8, 0, b"") * count))]))
    assert f"claims {count} elements" in refusal(path).reason


def test_a_header_may_not_be_longer_than_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "header.gguf"
    with path.open("wb") as file:
        file.write(B.file([B.entry("a", STRING, B.text("", length=2**30))]))
        file.truncate(2**31)  # sparse
    assert "run past byte 134217728, where a header ends at the latest" in refusal(path).reason


def test_messages_stay_short_and_printable(tmp_path: Path) -> None:
    path = tmp_path / "long.gguf"
    key = "\x1b[31m" + "k" * 60000
    path.write_bytes(B.file([B.entry(key, 13, bytes(8))]))
    message = refusal(path).message
    assert len(message) < len(str(path)) + 200
    assert message.isprintable()


def test_a_refused_file_is_not_kept_mapped(tmp_path: Path) -> None:
    path = tmp_path / "refused.gguf"
    path.write_bytes(B.file(entry_count=HUGE))
    with pytest.raises(FormatError):
        GgufFile.open(path)
    assert str(path) not in Path("/proc/self/maps").read_text()


def test_an_unreadable_file_is_a_load_error(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"none\.gguf cannot be read: No such file") as caught:
        GgufFile.open(tmp_path / "none.gguf")
    assert not isinstance(caught.value, FormatError)
    with pytest.raises(LoadError, match="is not a file"):
        GgufFile.open(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(LoadError, match="cannot be read: Not a directory"):
        GgufFile.open(tmp_path / "file" / "model.gguf")
    pipe = tmp_path / "pipe.gguf"
    os.mkfifo(pipe)
    with pytest.raises(LoadError, match="is not a file"):
        GgufFile.open(pipe)
    empty = tmp_path / "empty.gguf"
    empty.touch()
    with pytest.raises(FormatError, match="the file is empty"):
        GgufFile.open(empty)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_a_load_error(tiny_llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "secret.gguf"
    path.write_bytes(tiny_llama.read_bytes())
    path.chmod(0)
    with pytest.raises(LoadError, match="cannot be read: Permission denied"):
        GgufFile.open(path)
