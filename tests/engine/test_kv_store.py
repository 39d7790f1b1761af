"""The folder of KV blocks: found again, bounded, and never wrong, whatever happened to its files."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from threading import Lock

import pytest

from mistralrs.engine import kv_store
from mistralrs.engine.kv_store import KvStore
from mistralrs.errors import UsageError


def digest(number: int) -> bytes:
    return number.to_bytes(16, "big")


def block(number: int, size: int = 1000) -> bytes:
    return Random(number).randbytes(size)


def store(folder: Path, limit: int = 1 << 30, fingerprint: str = "model") -> KvStore:
    return KvStore(folder, limit=limit, fingerprint=fingerprint)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.kv"))


def test_found_again_by_the_next_one(tmp_path: Path) -> None:
    first = store(tmp_path)
    first.put(digest(1), block(1))
    assert first.get(digest(1)) == block(1)  # written or still waiting
    first.close()
    again = store(tmp_path)
    assert digest(1) in again
    assert again.get(digest(1)) == block(1)
    assert digest(2) not in again
    assert again.get(digest(2)) is None
    again.close()


def test_another_fingerprint_finds_nothing(tmp_path: Path) -> None:
    first = store(tmp_path)
    first.put(digest(1), block(1))
    first.close()
    other = store(tmp_path, fingerprint="another model")
    assert other.get(digest(1)) is None
    other.close()


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "renamed", "gone", "longer"])
def test_a_damaged_block_is_missing(tmp_path: Path, damage: str) -> None:
    first = store(tmp_path)
    first.put(digest(1), block(1))
    first.close()
    [path] = files(tmp_path)
    data = bytearray(path.read_bytes())
    again = store(tmp_path)
    wanted = digest(1)
    if damage == "cut":
        path.write_bytes(data[:-1])
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "longer":
        path.write_bytes(bytes(data) + b"x")
    elif damage == "gone":
        path.unlink()
    else:
        again.close()
        wanted = digest(2)
        path.rename(path.with_name(wanted.hex() + ".kv"))
        again = store(tmp_path)
    assert again.get(wanted) is None
    assert wanted not in again
    assert not files(tmp_path)
    again.put(wanted, block(3))
    again.close()
    last = store(tmp_path)
    assert last.get(wanted) == block(3)
    last.close()


def test_bounded_and_the_least_recently_used_go(tmp_path: Path) -> None:
    size = 1000 + 48
    first = store(tmp_path)
    for number in range(10):
        first.put(digest(number), block(number))
    first.close()
    assert len(files(tmp_path)) == 10
    for number, path in enumerate(files(tmp_path)):
        os.utime(path, (number, number))
    second = store(tmp_path, limit=5 * size)
    assert len(files(tmp_path)) == 5
    assert second.get(digest(5)) == block(5)  # the oldest of those left is now the youngest
    second.put(digest(20), block(20))
    second.close()
    assert [path.stem for path in files(tmp_path)] == [digest(number).hex() for number in (5, 7, 8, 9, 20)]


def test_a_full_disk_is_survived_and_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, data: bytes) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    kept = store(tmp_path)
    monkeypatch.setattr(Path, "write_bytes", full)
    with caplog.at_level(logging.WARNING, "mistralrs"):
        for number in range(3):
            kept.put(digest(number), block(number))
        kept.close()
    assert kept.num_lost == 3
    assert [record.message for record in caplog.records] == [
        f"KV blocks are not kept in {tmp_path}: No space left on device"
    ]
    assert not list(tmp_path.glob("*/*"))


def test_what_comes_too_fast_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_store, "PENDING_BYTES", 2500)
    kept = store(tmp_path)
    gate = Lock()
    write = KvStore._write

    def slow(self: KvStore, digest: bytes, payload: bytes) -> int:
        with gate:
            return write(self, digest, payload)

    monkeypatch.setattr(KvStore, "_write", slow)
    with gate:
        for number in range(4):
            kept.put(digest(number), block(number))
    assert kept.num_lost == 2
    kept.close()
    assert len(files(tmp_path)) == 2


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot hold KV blocks"):
        store(tmp_path / "file")


def test_stale_parts_are_removed(tmp_path: Path) -> None:
    first = store(tmp_path)
    first.put(digest(1), block(1))
    first.close()
    [path] = files(tmp_path)
    old, new = path.with_name("a.1.part"), path.with_name("b.2.part")
    for part in (old, new):
        part.write_bytes(b"half")
    os.utime(old, (time.time() - 3600,) * 2)
    store(tmp_path).close()
    assert not old.exists()
    assert new.exists()


WRITER = """
import sys
from pathlib import Path
from random import Random
from threading import Lock
from mistralrs.engine.kv_store import KvStore
store = KvStore(Path(sys.argv[1]), limit=1 << 30, fingerprint="model")
print("ready", flush=True)
number = int(sys.argv[2])
while True:
    number += 1
    store.put(number.to_bytes(16, "big"), Random(number).randbytes(200_000))
"""


def kill_while_writing(folder: Path, *, start: int, after: float) -> None:
    """A process that writes blocks from ``start`` on is killed in the middle of it."""
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder), str(start)], stdout=subprocess.PIPE)
    with writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        time.sleep(after)
        writer.send_signal(signal.SIGKILL)


def check_blocks(folder: Path) -> int:
    """Every block that the next one has is right; returns how many there are."""
    found = store(folder)
    names = [path.stem for path in files(folder)]
    for name in names:
        number = int(name, 16)
        assert found.get(digest(number)) in (block(number, 200_000), None)
    found.close()
    return len(names)


def test_killed_while_writing(tmp_path: Path) -> None:
    random = Random(5)
    for start in range(2):
        kill_while_writing(tmp_path, start=start * 1000, after=random.uniform(0.02, 0.1))
        assert check_blocks(tmp_path) > 0
