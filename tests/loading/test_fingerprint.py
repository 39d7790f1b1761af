"""The fingerprint of a model's KV: the whole content of its files, and all else that decides results."""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3

from mistralrs.errors import LoadError
from mistralrs.loading import digest_cache, fingerprint
from mistralrs.loading.digest_cache import DigestCache, FileIdentity
from mistralrs.loading.fingerprint import ContentHashing
from mistralrs.loading.gguf_file import GgufFile
from mistralrs.loading.pipeline import LoadPlan, load
from mistralrs.ops.backend import resolve
from tests.architectures import VARIANTS, write_folder
from tests.ops.harness import ISAS
from tests.tiny import TinyConfig, write_tiny


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return tmp_path / "caches" / "mistralrs" / "digests.json"


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file whose matrices are some hundred thousand bytes long."""
    return write_tiny(tmp_path / "tiny.gguf", TinyConfig(hidden=256, head_dim=64, feed_forward=256, tied=False)).path


def name_of(path: Path, *, isa: str | None = "torch", precision: str = "default", **settings: object) -> str:
    plan = LoadPlan(max_seqs=1, max_batch_tokens=16, precision=precision, keeps_kv=True, **settings)  # type: ignore[arg-type]
    name = load(path, resolve("cpu", threads=1, isa=isa).backend, plan).fingerprint
    assert name is not None
    return name


@pytest.fixture
def stable_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as old at once: their change times cannot be set."""
    monkeypatch.setattr(digest_cache, "STABLE_NS", -(10**18))


# Content of the fingerprint


def test_one_byte_in_the_middle_of_a_tensor_makes_another_model(large: Path, tmp_path: Path) -> None:
    other = shutil.copy(large, tmp_path / "other.gguf")
    assert name_of(large) == name_of(other)
    with GgufFile.open(other) as file:
        _, start = file.place("blk.1.attn_k.weight")
        size = len(file.tensors["blk.1.attn_k.weight"].data)
    assert size > 100_000
    with other.open("r+b") as data:
        data.seek(start + size // 2)
        data.write(b"\x01")
    assert name_of(large) != name_of(other)


def test_settings_and_code_make_another_name(large: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "llama", VARIANTS["llama"])
    names = [name_of(large), name_of(large, precision="high"), name_of(folder)]
    names += [
        name_of(large, kv_cache_dtype="bf16"),
        name_of(folder, dtype="bf16"),
        name_of(folder, isq="q8_0"),
        name_of(folder, isq="q4_0"),
    ]
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"rope_theta": 10000.0', '"rope_theta": 20000.0'))
    names.append(name_of(folder))
    monkeypatch.setattr(fingerprint, "code_digest", lambda: "other sources")
    names += [name_of(large), name_of(folder)]
    assert len(set(names)) == len(names)


@pytest.mark.native
def test_kernels_make_another_name(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of other processors, and other builds of one version."""
    from mistralrs_kernels import cpu

    names = [name_of(large, isa=isa) for isa in ("torch", *ISAS)]
    monkeypatch.setattr(cpu, "digest", lambda: "another build")
    names += [name_of(large, isa=isa) for isa in ISAS]
    assert len(set(names)) == len(names)


def test_every_file_of_a_model_counts(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "llama", VARIANTS["llama"])
    before = name_of(folder)
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    assert name_of(folder) != before


def test_nothing_is_hashed_unless_kv_is_kept(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: ContentHashing, file: object) -> str:
        raise AssertionError

    monkeypatch.setattr(ContentHashing, "_hash", fail)
    plan = LoadPlan(max_seqs=1, max_batch_tokens=16)
    assert load(large, resolve("cpu", threads=1, isa="torch").backend, plan).fingerprint is None


def test_digests_are_those_of_whole_files(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces, of which the last is shorter."""
    monkeypatch.setattr(fingerprint, "AT_ONCE", 64 * 1024)
    with GgufFile.open(large) as file, ContentHashing(file.files) as hashing:
        assert hashing.result() == (blake3(large.read_bytes()).hexdigest(),)


def change_size(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def change_bytes(path: Path) -> None:
    """Changes a file and restores the times that a program can set."""
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    with path.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(b"x")
    os.utime(path, ns=times)


def replace_file(path: Path) -> None:
    other = path.with_name("other")
    shutil.copy(path, other)
    other.replace(path)


@pytest.mark.parametrize("change", [change_size, change_bytes, replace_file, Path.unlink])
def test_a_file_that_changes_while_it_is_loaded_is_refused(change: Callable[[Path], None], large: Path) -> None:
    changed = []

    def progress(what: str, done: int, total: int) -> None:
        if not changed:
            changed.append(what)
            change(large)

    plan = LoadPlan(max_seqs=1, max_batch_tokens=16, keeps_kv=True)
    with pytest.raises(LoadError, match=r"tiny\.gguf changed while it was loaded"):
        load(large, resolve("cpu", threads=1, isa="torch").backend, plan, progress=progress)


def test_hashing_ends_with_a_load_that_fails(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "AT_ONCE", 4096)
    with GgufFile.open(large) as file:
        hashing = ContentHashing(file.files)
        with pytest.raises(LoadError), hashing:
            raise LoadError("no memory")
    assert not hashing._thread.is_alive()


def test_an_error_of_the_hashing_thread_is_raised_where_it_is_awaited(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: ContentHashing, file: object) -> str:
        raise MemoryError("no memory")

    monkeypatch.setattr(ContentHashing, "_hash", fail)
    with pytest.raises(MemoryError):
        name_of(large)


# The cache of digests


@pytest.mark.usefixtures("stable_at_once")
def test_a_file_is_hashed_once(large: Path, caches: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = name_of(large)
    assert stat.S_IMODE(caches.stat().st_mode) == 0o600
    assert stat.S_IMODE(caches.parent.stat().st_mode) == 0o700
    hashed = []
    hash_file = ContentHashing._hash
    monkeypatch.setattr(ContentHashing, "_hash", lambda self, file: hashed.append(file.path) or hash_file(self, file))
    assert name_of(large) == before
    assert hashed == []
    change_bytes(large)
    assert name_of(large) != before
    replace_file(large)
    name_of(large)
    assert hashed == [large, large]


def test_the_digest_of_a_file_just_written_is_not_cached(large: Path, caches: Path) -> None:
    """It may be written again in the same tick of the file system's clock."""
    name_of(large)
    assert not caches.exists()


@pytest.mark.usefixtures("stable_at_once")
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"version": 1}',
        b'{"version": 2, "digests": {}}',
        b'{"version": 1, "digests": []}',
        b'{"version": 1, "digests": {"1:2:3:4:5": 6}}',
        b'{"version": 1, "digests": {"1:2:3:4:5": "short"}}',
        b"\xff\xfe",
        b"[" * 100_000,
        b" " * (digest_cache.MAX_BYTES + 1),
    ],
)
def test_a_damaged_cache_is_replaced(content: bytes, large: Path, caches: Path) -> None:
    name = name_of(large)
    good = json.loads(caches.read_bytes())
    caches.write_bytes(content)
    assert name_of(large) == name
    assert json.loads(caches.read_bytes()) == good


@pytest.mark.usefixtures("stable_at_once")
@pytest.mark.parametrize("kind", ["writable by others", "a link", "a FIFO", "a folder"])
def test_a_cache_that_others_may_have_written_is_ignored(
    kind: str, large: Path, caches: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = name_of(large)
    forged = caches.read_bytes().replace(blake3(large.read_bytes()).hexdigest().encode(), b"0" * 64)
    caches.unlink()
    if kind == "a folder":
        caches.mkdir()
    elif kind == "a FIFO":
        os.mkfifo(caches)
    else:
        target = caches.with_name("forged")
        target.write_bytes(forged)
        target.chmod(0o666 if kind == "writable by others" else 0o600)
        caches.symlink_to(target) if kind == "a link" else target.rename(caches)
    assert name_of(large) == name
    assert ("computed anew at each start" in caplog.text) == (kind == "a folder")


def test_the_oldest_entries_are_removed(tmp_path: Path) -> None:
    cache = DigestCache(tmp_path)
    files = [FileIdentity(1, number, 3, 4, 5) for number in range(digest_cache.MAX_ENTRIES + 2)]
    entries = {file.key(): "a" * 64 for file in files[:-2]}
    cache.path.write_text(json.dumps({"version": 1, "digests": entries}))
    cache.path.chmod(0o600)
    cache.put(files[-2], "b" * 64)
    cache.put(files[-1], "c" * 64)
    assert [cache.get(file) for file in (files[0], files[1], files[2])] == [None, None, "a" * 64]
    assert cache.get(files[-1]) == "c" * 64
    assert cache.path.stat().st_size <= digest_cache.MAX_BYTES


@pytest.mark.usefixtures("stable_at_once")
def test_without_a_home_files_are_hashed_each_time(
    large: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the specification says to ignore it
    monkeypatch.setattr(Path, "home", none)
    with caplog.at_level(logging.WARNING, "mistralrs"):
        assert name_of(large) == name_of(large)
    assert "tiny.gguf is computed anew at each start: there is no home folder" in caplog.text


@pytest.mark.usefixtures("stable_at_once")
def test_a_cache_that_cannot_be_written_is_reported(
    large: Path, caches: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caches.parent.parent.mkdir()
    caches.parent.write_bytes(b"a file where the folder should be")
    name_of(large)
    assert "tiny.gguf is computed anew at each start: File exists" in caplog.text
