"""The KV cache's disk tier: blocks are found again, bounded in size, and never wrong after damage to files."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from threading import Event, Lock, Thread

import pytest

from mistralrs.engine.kv import kv_disk_tier
from mistralrs.engine.kv.block_folder import BlockFolder
from mistralrs.engine.kv.kv_connector import DiskKvConnector
from mistralrs.engine.kv.kv_disk_tier import KvDiskTier
from mistralrs.errors import UsageError


def block_hash(number: int) -> bytes:
    return number.to_bytes(16, "big")


def block(number: int, size: int = 1000) -> bytes:
    return Random(number).randbytes(size)


def store(folder: Path, limit: int = 1 << 30, fingerprint: str = "model") -> KvDiskTier:
    return KvDiskTier(folder, limit=limit, fingerprint=fingerprint)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.kv"))


def test_found_again_by_the_next_one(tmp_path: Path) -> None:
    first = store(tmp_path)
    first.put(block_hash(1), block(1))
    assert first.get(block_hash(1)) == block(1)  # written or still waiting
    first.close()
    again = store(tmp_path)
    assert block_hash(1) in again
    assert again.get(block_hash(1)) == block(1)
    assert block_hash(2) not in again
    assert again.get(block_hash(2)) is None
    again.close()


def test_another_fingerprint_finds_nothing(tmp_path: Path) -> None:
    first = store(tmp_path)
    first.put(block_hash(1), block(1))
    first.close()
    other = store(tmp_path, fingerprint="another model")
    assert other.get(block_hash(1)) is None
    assert block_hash(1) not in other
    other.close()


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "renamed", "gone", "longer"])
def test_a_damaged_block_is_missing(tmp_path: Path, damage: str) -> None:
    first = store(tmp_path)
    first.put(block_hash(1), block(1))
    first.close()
    [path] = files(tmp_path)
    data = bytearray(path.read_bytes())
    again = store(tmp_path)
    target = block_hash(1)
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
        target = block_hash(2)
        path.rename(path.with_name(target.hex() + ".kv"))
        again = store(tmp_path)
    assert again.get(target) is None
    assert target not in again
    assert not files(tmp_path)
    again.put(target, block(3))
    again.close()
    last = store(tmp_path)
    assert last.get(target) == block(3)
    last.close()


def test_bounded_and_the_least_recently_used_go(tmp_path: Path) -> None:
    size = 1000 + 48
    first = store(tmp_path)
    for number in range(10):
        first.put(block_hash(number), block(number))
    first.close()
    assert len(files(tmp_path)) == 10
    for number, path in enumerate(files(tmp_path)):
        os.utime(path, (number, number))
    second = store(tmp_path, limit=5 * size)
    assert len(files(tmp_path)) == 5
    assert second.get(block_hash(5)) == block(5)  # the oldest of those left is now the youngest
    second.put(block_hash(20), block(20))
    second.close()
    assert [path.stem for path in files(tmp_path)] == [block_hash(number).hex() for number in (5, 7, 8, 9, 20)]


def test_a_full_disk_is_survived_and_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*names: object, **folders: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    kept = store(tmp_path)
    monkeypatch.setattr(os, "replace", full)
    with caplog.at_level(logging.WARNING, "mistralrs"):
        for number in range(3):
            kept.put(block_hash(number), block(number))
        kept.close()
    assert kept.num_lost == 3
    assert [record.message for record in caplog.records] == [
        f"KV blocks are not kept in {tmp_path}: No space left on device"
    ]
    assert not list(tmp_path.glob("*/*"))


def test_blocks_that_come_too_fast_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_disk_tier, "PENDING_BYTES", 2500)
    kept = store(tmp_path)
    gate = Lock()
    write = BlockFolder.write

    def slow(self: BlockFolder, block_hash: bytes, data: bytes) -> None:
        with gate:
            write(self, block_hash, data)

    monkeypatch.setattr(BlockFolder, "write", slow)
    with gate:
        for number in range(4):
            kept.put(block_hash(number), block(number))
    assert kept.num_lost == 2
    kept.close()
    assert len(files(tmp_path)) == 2


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot hold KV blocks"):
        store(tmp_path / "file")


def test_stale_parts_are_removed(tmp_path: Path) -> None:
    first = store(tmp_path)
    first.put(block_hash(1), block(1))
    first.close()
    [path] = files(tmp_path)
    old, new, foreign = (path.with_name(name) for name in ("a" * 32 + ".1.part", "b" * 32 + ".2.part", "film.part"))
    for part in (old, new, foreign):
        part.write_bytes(b"half")
    for part in (old, foreign):
        os.utime(part, (time.time() - 3600,) * 2)
    store(tmp_path).close()
    assert not old.exists()
    assert new.exists()
    assert foreign.exists()


# A folder that others use


def test_files_are_private(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    kept = store(folder)
    kept.put(block_hash(1), block(1))
    kept.close()
    [path] = files(folder)
    modes = [stat.S_IMODE(place.stat().st_mode) for place in (folder, path.parent, path)]
    assert [f"{mode:o}" for mode in modes] == ["700", "700", "600"]
    path.parent.chmod(0o755)  # as older versions made it
    store(folder).close()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def odd_entries(folder: Path, elsewhere: Path) -> None:
    """Creates entries that are not blocks, under names of blocks and others."""
    names = (format(number, "x") * 32 + ".kv" for number in range(1, 16))
    (folder / ("z" * 32 + ".kv")).write_bytes(b"no hex digits")
    (folder / ("A" * 32 + ".kv")).write_bytes(b"capitals")
    (folder / "x.part").mkdir()
    (folder / ("0" * 32 + ".1.part")).mkdir()
    (folder / "notes.txt").write_bytes(b"mine")
    (folder / next(names)).mkdir()
    (folder / next(names)).symlink_to(elsewhere / "nowhere")
    (folder / next(names)).symlink_to(elsewhere / "victim")
    os.mkfifo(folder / next(names))
    with (folder / next(names)).open("wb") as huge:
        huge.truncate(1 << 40)
    os.utime(folder / "x.part", (1, 1))


def test_files_that_are_not_blocks_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(kv_disk_tier._wrap(bytes.fromhex("3" * 32), b"from elsewhere"))
    first = store(tmp_path / "kv")
    first.put(block_hash(1), block(1))
    first.close()
    [path] = files(tmp_path / "kv")
    odd_entries(path.parent, tmp_path)
    before = sorted(path.parent.iterdir())
    again = store(tmp_path / "kv", limit=1 << 50)
    assert again.get(block_hash(1)) == block(1)
    for number in range(1, 16):
        assert again.get(bytes.fromhex(format(number, "x") * 32)) is None
    again.close()
    assert sorted(path.parent.iterdir()) == before
    assert (tmp_path / "victim").read_bytes().endswith(b"from elsewhere")


def test_a_block_replaced_by_something_else_is_missing(tmp_path: Path) -> None:
    """Replaced behind the store's back; neither waited for nor followed."""
    (tmp_path / "victim").write_bytes(kv_disk_tier._wrap(block_hash(1), block(1)))
    kept = store(tmp_path / "kv")
    for number in range(4):
        kept.put(block_hash(number), block(number))
    kept.close()
    paths = files(tmp_path / "kv")
    again = store(tmp_path / "kv")
    for path in paths:
        path.unlink()
    os.mkfifo(paths[0])
    paths[1].symlink_to(tmp_path / "victim")
    paths[2].mkdir()
    assert [again.get(block_hash(number)) for number in range(4)] == [None] * 4
    for number in (0, 1):  # written anew, in place of the odd ones
        again.put(block_hash(number), block(number + 10))
    again.close()
    assert [again.get(block_hash(number)) for number in (0, 1)] == [block(10), block(11)]
    assert (tmp_path / "victim").read_bytes().endswith(block(1))


def test_links_are_not_followed_out_of_the_folder(tmp_path: Path) -> None:
    store(tmp_path / "kv").close()
    [own] = (tmp_path / "kv").iterdir()
    own.rename(tmp_path / "elsewhere")
    own.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=r"cannot hold KV blocks: (Not a directory|Too many levels)"):
        store(tmp_path / "kv")
    victim = tmp_path / "elsewhere" / (block_hash(9).hex() + ".kv")
    victim.write_bytes(bytes(1000))
    own.unlink()
    own.with_name("f" * 32).symlink_to(tmp_path / "elsewhere")
    store(tmp_path / "kv", limit=0).close()  # removes all that it can
    assert victim.exists()


def test_an_unreadable_block_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file stays until its block is written anew."""
    kept = store(tmp_path)
    kept.put(block_hash(1), block(1))
    kept.close()
    again = store(tmp_path)
    opened = os.open

    def refuse(path: str, flags: int, *arguments: int, **more: int) -> int:
        if flags & os.O_ACCMODE == os.O_RDONLY and path.endswith(".kv"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, flags, *arguments, **more)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        assert again.get(block_hash(1)) is None
    assert len(files(tmp_path)) == 1
    again.put(block_hash(1), block(2))
    again.close()
    assert again.get(block_hash(1)) == block(2)


def test_a_block_that_cannot_be_marked_as_used_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a read-only folder; such a block was once dropped and removed."""

    def refuse(*arguments: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    kept = store(tmp_path)
    kept.put(block_hash(1), block(1))
    kept.close()
    again = store(tmp_path)
    monkeypatch.setattr(os, "utime", refuse)
    assert again.get(block_hash(1)) == block(1)
    again.close()


def test_started_beside_a_writer_that_replaces_blocks(tmp_path: Path) -> None:
    """Files come and go between the listing and the look at them."""
    kept = store(tmp_path, limit=20 * 1048)
    stop = Event()

    def write() -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            kept.put(block_hash(number % 100), block(number % 100))

    writer = Thread(target=write)
    writer.start()
    try:
        for _ in range(60):
            found = store(tmp_path)
            for number in range(0, 100, 7):
                assert found.get(block_hash(number)) in (block(number), None)
            found.close()
    finally:
        stop.set()
        writer.join()
        kept.close()


def test_two_in_one_process_write_the_same_block(tmp_path: Path) -> None:
    both = [store(tmp_path) for _ in range(2)]
    for number in range(50):
        for each in both:
            each.put(block_hash(number), block(number))
    for each in both:
        each.close()
        assert each.num_lost == 0
    assert len(files(tmp_path)) == 50


class Narrow:
    """A cache whose blocks are 1000 bytes long."""

    def __init__(self) -> None:
        self.held: dict[int, bytes] = {}

    def export_block(self, group: int, block: int) -> bytes:
        return self.held[block]

    def import_block(self, group: int, block: int, data: bytes) -> None:
        if len(data) != 1000:
            raise ValueError(f"a block has 1000 bytes, not {len(data)}")
        self.held[block] = data


def test_a_whole_block_of_another_length_is_missing(tmp_path: Path) -> None:
    """Another program wrote it, with a right checksum; it once ended the engine."""
    cache = Narrow()
    cache.held = {0: block(0, 999), 1: block(1)}
    connector = DiskKvConnector(store(tmp_path), cache)
    for number in (0, 1):
        connector.save(block_hash(number), 0, number)
    connector.close()
    connector = DiskKvConnector(store(tmp_path), cache)
    assert [connector.load(block_hash(number), 0, 2) for number in (0, 1)] == [False, True]
    assert cache.held[2] == block(1)
    connector.close()
    assert not DiskKvConnector(store(tmp_path), cache).has(block_hash(0), 0)


def test_all_fingerprints_share_the_limit(tmp_path: Path) -> None:
    """Blocks of models, settings and versions out of use are removed first."""
    size = 1000 + 48
    old = store(tmp_path, fingerprint="an old version")
    for number in range(6):
        old.put(block_hash(number), block(number))
    old.close()
    for path in files(tmp_path):
        os.utime(path, (1, 1))
    new = store(tmp_path, limit=8 * size)
    for number in range(6):
        new.put(block_hash(number), block(number))
    new.close()
    assert len(files(tmp_path)) == 8
    assert all(new.get(block_hash(number)) == block(number) for number in range(6))
    assert block_hash(5) in store(tmp_path, fingerprint="an old version")


WRITER = """
import sys
from pathlib import Path
from random import Random
from threading import Event, Lock, Thread
from mistralrs.engine.kv.kv_disk_tier import KvDiskTier
store = KvDiskTier(Path(sys.argv[1]), limit=1 << 30, fingerprint="model")
print("ready", flush=True)
number = int(sys.argv[2])
while True:
    number += 1
    store.put(number.to_bytes(16, "big"), Random(number).randbytes(200_000))
"""


def kill_while_writing(folder: Path, *, start: int, after: float) -> None:
    """A process that writes blocks from ``start`` on is killed ``after`` seconds after its first block."""
    known = len(files(folder)) if folder.exists() else 0
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder), str(start)], stdout=subprocess.PIPE)
    with writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        while len(files(folder)) == known:
            assert writer.poll() is None, "the writer ended"
            time.sleep(0.005)
        time.sleep(after)
        writer.send_signal(signal.SIGKILL)


def check_blocks(folder: Path) -> int:
    """Checks that every block that the next tier finds is right; returns their number."""
    found = store(folder)
    names = [path.stem for path in files(folder)]
    for name in names:
        number = int(name, 16)
        assert found.get(block_hash(number)) in (block(number, 200_000), None)
    found.close()
    return len(names)


def test_killed_while_writing(tmp_path: Path) -> None:
    random = Random(5)
    for start in range(2):
        kill_while_writing(tmp_path, start=start * 1000, after=random.uniform(0.02, 0.1))
        assert check_blocks(tmp_path) > 0
