"""GGUF models in several files: any part opens all, or the faulty part is named."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from mistralrs.errors import FormatError, LoadError
from mistralrs.loading.gguf_file import GgufFile, part_names
from tests.loading.gguf_bytes import STRING, U16, Bytes
from tests.loading.test_gguf import mapped

B = Bytes()


def entry(key: str, value: int) -> bytes:
    return B.entry(key, U16, struct.pack("<H", value))


def part(
    number: int, count: int, names: tuple[str, ...], *, total: int | None = None, extra: tuple[bytes, ...] = ()
) -> bytes:
    """One file of a split model; each tensor holds 32 times the first letter of its name."""
    entries = [entry("split.no", number), entry("split.count", count), *extra]
    if total is not None:
        entries.append(entry("split.tensors.count", total))
    infos = [B.info(name, (8,), 0, 32 * index) for index, name in enumerate(names)]
    return B.file(entries, infos, data=b"".join(name[:1].encode() * 32 for name in names))


def write(folder: Path, parts: list[bytes], *, stem: str = "model") -> list[Path]:
    paths = [folder / f"{stem}-{number:05}-of-{len(parts):05}.gguf" for number in range(1, len(parts) + 1)]
    for path, data in zip(paths, parts, strict=True):
        path.write_bytes(data)
    return paths


def sound_parts() -> list[bytes]:
    name = B.entry("general.name", STRING, B.text("whole"))
    return [part(0, 3, (), total=3, extra=(name,)), part(1, 3, ("a", "b"), total=3), part(2, 3, ("c",), total=3)]


@pytest.mark.parametrize("opened", [0, 1, 2])
def test_any_part_opens_all(opened: int, tmp_path: Path) -> None:
    paths = write(tmp_path, sound_parts())
    with GgufFile.open(paths[opened]) as file:
        assert file.path == paths[opened]
        assert file.file_bytes == sum(path.stat().st_size for path in paths)
        assert file.require("general.name", str) == "whole"
        assert {name: bytes(tensor.data[:1]) for name, tensor in file.tensors.items()} == {
            "a": b"a",
            "b": b"b",
            "c": b"c",
        }
        for tensor in file.tensors.values():
            file.release(tensor)
        assert [mapped(path) for path in paths] == [False, True, True]  # the first has no tensors
        del tensor
    assert not any(mapped(path) for path in paths)


def test_files_of_the_gguf_package(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama", split_max_tensors=2)
    writer.add_name("tiny")
    rows = {f"t{index}": np.full((2, 4), index, dtype=np.float32) for index in range(5)}
    for name, row in rows.items():
        writer.add_tensor(name, row)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    paths = sorted(tmp_path.iterdir())
    assert len(paths) == 3
    for path in paths:
        with GgufFile.open(path) as file:
            assert file.require("general.name", str) == "tiny"
            assert {name: bytes(tensor.data) for name, tensor in file.tensors.items()} == {
                name: row.tobytes() for name, row in rows.items()
            }


def test_a_count_of_one_is_a_file_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "any.gguf"
    path.write_bytes(part(0, 1, ("a",)))
    with GgufFile.open(path) as file:
        assert list(file.tensors) == ["a"]


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    paths = write(tmp_path, sound_parts())
    paths[0].unlink()
    with pytest.raises(
        LoadError, match=r"one of 3 parts of a model; part model-00001-of-00003\.gguf is missing"
    ) as caught:
        GgufFile.open(paths[1])
    assert caught.value.hint == "put all parts into one folder"
    paths[2].unlink()
    with pytest.raises(LoadError, match=r"2 are missing: model-00001-of-00003\.gguf, \.\.\."):
        GgufFile.open(paths[1])


def test_a_name_that_does_not_say_which_part(tmp_path: Path) -> None:
    for name in ("model.gguf", "model-00001-of-00002.gguf", "model-00004-of-00003.gguf"):
        path = tmp_path / name
        path.write_bytes(sound_parts()[0])
        with pytest.raises(FormatError, match=r"'split\.count': is 3, but the file's name") as caught:
            GgufFile.open(path)
        assert "NAME-00001-of-00003.gguf" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("parts", "place", "reason"),
    [
        ([part(0, 2, ("a",)), part(0, 2, ("b",))], "'split.no'", "is 0, expected 1"),
        ([part(0, 2, ("a",)), part(1, 3, ("b",))], "'split.count'", "is 3, expected 2"),
        ([part(0, 2, ("a",)), B.file([], [B.info("b", (8,), 0, 0)], data=bytes(32))], "'split.no'", "is missing"),
        ([part(0, 2, ("a",)), part(1, 2, ("a",))], "tensor 'a'", "is also in model-00001-of-00002.gguf"),
        ([part(0, 2, ("a",), total=3), part(1, 2, ("b",))], "'split.tensors.count'", "is 3, but the 2 parts have 2"),
    ],
)
def test_parts_that_do_not_fit(parts: list[bytes], place: str, reason: str, tmp_path: Path) -> None:
    path = write(tmp_path, parts)[0]
    with pytest.raises(FormatError) as caught:
        GgufFile.open(path)
    assert place in caught.value.place
    assert reason in caught.value.reason
    assert caught.value.hint


def test_a_count_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(B.file([B.entry("split.count", STRING, B.text("3"))]))
    with pytest.raises(FormatError, match=r"'split\.count': is '3', expected a count"):
        GgufFile.open(path)


def test_a_broken_part_is_the_one_named(tmp_path: Path) -> None:
    paths = write(tmp_path, sound_parts())
    paths[2].write_bytes(paths[2].read_bytes()[:-1])
    with pytest.raises(FormatError, match=r"model-00003-of-00003\.gguf: tensor 'c'"):
        GgufFile.open(paths[0])


def test_part_names() -> None:
    assert part_names("m-00002-of-00002.gguf") == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    for alone in ("m.gguf", "m-00003-of-00002.gguf", "m-00000-of-00002.gguf", "m-00001-of-00002.bin"):
        assert part_names(alone) == [alone]
