"""The GGUF writer: we and `gguf` read its files, and a failed write leaves nothing behind."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import stat
from pathlib import Path
from typing import NamedTuple

import gguf
import pytest

from mistralrs.errors import LoadError
from mistralrs.loading.gguf_file import GgufFile
from mistralrs.loading.gguf_writer import TensorInfo, Value, new_gguf
from mistralrs.quant.types import TYPES

METADATA: dict[str, Value] = {
    "general.architecture": "llama",
    "a.flag": True,
    "a.count": 2**32 - 1,
    "a.number": 0.1,
    "a.text": "ä\nb",
    "a.texts": ["", "x", "ö"],
    "a.kinds": [1, -2, 3],
    "a.flags": [True, False],
    "a.scores": [0.0, -1.5],
}
TENSORS = (
    TensorInfo("vector", TYPES["F32"], (3,)),
    TensorInfo("matrix", TYPES["Q8_0"], (5, 64)),
    TensorInfo("stack", TYPES["F16"], (2, 3, 1)),
)


def data_of(info: TensorInfo) -> bytes:
    return bytes(i % 251 for i in range(info.nbytes))


def write(path: Path, tensors: tuple[TensorInfo, ...] = TENSORS) -> Path:
    with new_gguf(path, METADATA, tensors) as writer:
        for info in tensors:
            data = memoryview(data_of(info))
            writer.write(info.name, (data[start : start + 7] for start in range(0, len(data), 7)))
    return path


def test_we_read_what_was_written(tmp_path: Path) -> None:
    with GgufFile.open(write(tmp_path / "out.gguf")) as file:
        assert file.version == 3
        assert {**file.metadata, "a.number": 0.1} == METADATA
        assert file.metadata["a.number"] == pytest.approx(0.1)
        assert [(each.name, each.type, each.shape) for each in file.tensors.values()] == [
            (info.name, info.type, info.shape) for info in TENSORS
        ]
        for info in TENSORS:
            assert bytes(file.tensor(info.name).data) == data_of(info)


def test_gguf_reads_what_was_written(tmp_path: Path) -> None:
    reader = gguf.GGUFReader(write(tmp_path / "out.gguf"))
    kinds = gguf.GGUFValueType
    types = {key: reader.fields[key].types for key in METADATA}
    assert types == {
        "general.architecture": [kinds.STRING],
        "a.flag": [kinds.BOOL],
        "a.count": [kinds.UINT32],
        "a.number": [kinds.FLOAT32],
        "a.text": [kinds.STRING],
        "a.texts": [kinds.ARRAY, kinds.STRING],
        "a.kinds": [kinds.ARRAY, kinds.INT32],
        "a.flags": [kinds.ARRAY, kinds.BOOL],
        "a.scores": [kinds.ARRAY, kinds.FLOAT32],
    }
    assert {key: reader.fields[key].contents() for key in METADATA} == {**METADATA, "a.number": pytest.approx(0.1)}
    for tensor, info in zip(reader.tensors, TENSORS, strict=True):
        assert (tensor.name, tensor.tensor_type.name) == (info.name, info.type.name)
        assert tuple(reversed(tensor.shape.tolist())) == info.shape
        assert tensor.data.tobytes() == data_of(info)


def test_an_older_file_is_replaced_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    path.write_text("older")
    with new_gguf(path, METADATA, ()):
        assert path.read_text() == "older"
    assert path.read_bytes()[:4] == b"GGUF"
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_a_write_that_ends_early_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "out.gguf"
    path.write_text("older")

    def begin() -> None:
        with new_gguf(path, METADATA, TENSORS) as writer:
            writer.write("vector", [memoryview(data_of(TENSORS[0]))])
            raise error

    with pytest.raises(error):
        begin()
    assert [file.name for file in tmp_path.iterdir()] == ["out.gguf"]
    assert path.read_text() == "older"


class Mistake(NamedTuple):
    writes: list[tuple[str, int]]
    message: str


@pytest.mark.parametrize(
    "mistake",
    [
        Mistake([("matrix", 340)], "vector comes before matrix"),
        Mistake([("vector", 8)], "vector has 8 bytes, 12 were announced"),
        Mistake([("vector", 12)], "matrix was not written"),
    ],
)
def test_tensors_must_match_the_header(tmp_path: Path, mistake: Mistake) -> None:
    def make() -> None:
        with new_gguf(tmp_path / "out.gguf", METADATA, TENSORS) as writer:
            for name, size in mistake.writes:
                writer.write(name, [memoryview(bytes(size))])

    with pytest.raises(ValueError, match=mistake.message):
        make()
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_is_noticed_before(tmp_path: Path) -> None:
    size = 2 * shutil.disk_usage(tmp_path).free
    huge = TensorInfo("huge", TYPES["F32"], (size // 4096, 1024))
    with pytest.raises(LoadError, match=r"out.gguf will have .* GB, and its disk has .* GB of room") as refused:
        write(tmp_path / "out.gguf", (huge,))
    assert refused.value.hint
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """The system's limit for file sizes ends the write in the middle."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(LoadError, match=r"out.gguf cannot be written: File too large"):
            write(tmp_path / "out.gguf", (TensorInfo("large", TYPES["F32"], (1 << 16,)),))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LoadError, match=r"out.gguf cannot be written: the disk is full") as refused:
        write(tmp_path / "out.gguf")
    assert refused.value.hint == "make room, or write to another disk"
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"out.gguf cannot be written: No such file or directory"):
        write(tmp_path / "absent" / "out.gguf")
