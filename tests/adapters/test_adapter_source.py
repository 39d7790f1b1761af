"""An adapter is found by what a user calls it: a folder, a file, a place in either, or the same on the hub."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mistralrs.adapters.adapter_source import AdapterReader, find_adapter
from mistralrs.errors import LoadError, UsageError
from tests.adapters.adapter_folders import AdapterFolders, adapter_folders
from tests.adapters.gguf_lora_of import write_gguf_lora_of
from tests.adapters.merging import spec_of
from tests.hub import Hub, Repository, serving

__all__ = ["adapter_folders"]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def no_token() -> None:
    return None


@pytest.fixture(scope="module")
def gguf_file(adapter_folders: AdapterFolders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "a.gguf"
    return write_gguf_lora_of(path, adapter_folders.adapters["a"], adapter_folders.base)


@pytest.fixture
def reader(adapter_folders: AdapterFolders) -> AdapterReader:
    return AdapterReader(*spec_of(adapter_folders.base), token=no_token)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def repositories(adapter_folders: AdapterFolders, gguf_file: Path) -> dict[str, Repository]:
    plain = files(adapter_folders.adapters["a"])
    nested = {f"{name}/{file}": data for name in "ab" for file, data in files(adapter_folders.adapters[name]).items()}
    both = {"x.gguf": gguf_file.read_bytes(), "y.gguf": gguf_file.read_bytes()}
    return {
        "owner/plain": Repository({**plain, "optimizer.pt": b"large"}, revisions=("main", "v1")),
        "owner/several": Repository({**nested, "README.md": b""}),
        "owner/xlora": Repository({**nested, "xlora_config.json": b"{}"}),
        "owner/gguf": Repository({"README.md": b"", "style.gguf": gguf_file.read_bytes()}),
        "owner/ggufs": Repository(both),
        "owner/model": Repository({"config.json": b"{}", "model.safetensors": b""}),
        "owner/pickled": Repository({CONFIG: plain[CONFIG], "adapter_model.bin": b"x"}),
    }


@pytest.fixture
def hub(
    adapter_folders: AdapterFolders, gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Hub]:
    with serving(repositories(adapter_folders, gguf_file), monkeypatch, tmp_path / "hub") as hub:
        yield hub


def test_local_places(adapter_folders: AdapterFolders, gguf_file: Path, reader: AdapterReader) -> None:
    a = adapter_folders.adapters["a"]
    plain = reader.read("n", reader.find(str(a)))
    assert (plain.name, plain.source, plain.rank) == ("n", str(a), 4)
    nested = reader.find(str(adapter_folders.root), "a")
    assert nested.source == str(a)
    assert reader.read("n", nested).digest == reader.read_source("other", nested.source).digest == plain.digest
    for place in (gguf_file, gguf_file.parent):
        found = reader.find(str(place))
        assert (found.kind, found.source) == ("gguf", str(gguf_file))
        assert reader.read("n", found).source == str(gguf_file)


def test_a_relative_place_is_found_again_from_another_folder(
    adapter_folders: AdapterFolders, reader: AdapterReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(adapter_folders.root)
    found = reader.find("a")
    monkeypatch.chdir(tmp_path)
    assert reader.read_source("n", found.source).rank == 4


@pytest.mark.parametrize(
    ("source", "subfolder", "place", "fetched"),
    [
        ("owner/plain", None, "owner/plain", {CONFIG, WEIGHTS}),
        ("owner/plain@v1", None, "owner/plain@v1", {CONFIG, WEIGHTS}),
        ("owner/several", "b", "owner/several/b", {f"b/{CONFIG}", f"b/{WEIGHTS}"}),
        ("owner/several/b", None, "owner/several/b", {f"b/{CONFIG}", f"b/{WEIGHTS}"}),
        ("owner/gguf", None, "owner/gguf/style.gguf", {"style.gguf"}),
        ("owner/ggufs/y.gguf", None, "owner/ggufs/y.gguf", {"y.gguf"}),
        ("owner/ggufs", "y.gguf", "owner/ggufs/y.gguf", {"y.gguf"}),
    ],
)
def test_places_on_the_hub(
    hub: Hub, reader: AdapterReader, source: str, subfolder: str | None, place: str, fetched: set[str]
) -> None:
    found = reader.find(source, subfolder)
    assert found.source == place
    assert {asked.path.split("/", 5)[-1] for asked in hub.downloads()} == fetched
    again = reader.read_source("n", place)
    assert again.digest == reader.read("n", found).digest
    assert again.source == place


@pytest.mark.parametrize(
    ("source", "message", "hint"),
    [
        ("owner/several", "has several adapters: a, b", "owner/several/a"),
        ("owner/xlora", "has several adapters: a, b", "--xlora"),
        ("owner/ggufs", "has several adapters: x.gguf, y.gguf", "owner/ggufs/x.gguf"),
        ("owner/model", "has no adapter", "a folder as peft saves it"),
        ("owner/pickled", "adapter_model.safetensors", ""),
        ("owner/nothing", "no repository owner/nothing", ""),
        ("owner/plain@v9", "no revision 'v9'", ""),
        ("nothing", "there is no such folder or file", "a folder as peft saves it"),
        ("./owner/plain", "there is no such folder or file", ""),
        ("owner/x.gguf", "there is no such folder or file", ""),
        ("owner/several/../x", "cannot be the name of a file", ""),
    ],
)
def test_what_is_not_there(hub: Hub, source: str, message: str, hint: str) -> None:
    with pytest.raises((LoadError, UsageError), match=message) as refusal:
        find_adapter(source, token=no_token)
    assert hint in (refusal.value.hint or "")


def test_one_of_the_two_files_is_not_the_adapter(adapter_folders: AdapterFolders) -> None:
    for name in (CONFIG, WEIGHTS):
        with pytest.raises(LoadError, match="one of an adapter's two files") as refusal:
            find_adapter(str(adapter_folders.adapters["a"] / name), token=no_token)
        assert str(adapter_folders.adapters["a"]) in (refusal.value.hint or "")


def test_an_alora_is_known_by_its_config(adapter_folders: AdapterFolders, tmp_path: Path) -> None:
    shutil.copytree(adapter_folders.adapters["a"], tmp_path / "late")
    found = find_adapter(str(tmp_path / "late"), token=no_token)
    assert not found.is_alora
    config = tmp_path / "late" / CONFIG
    config.write_text(
        config.read_text().replace('"alora_invocation_tokens": null', '"alora_invocation_tokens": [5, 6]')
    )
    assert found.is_alora
