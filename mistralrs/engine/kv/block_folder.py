"""The files of KV blocks: one folder for each fingerprint in a folder that several processes may share.

Files are private to the user. Only regular files with the name of a block count: links are not followed, and devices,
folders and foreign files are ignored.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SUFFIX = ".kv"
STALE_SECONDS = 60.0
"""Age in seconds beyond which a half-written file has no living writer."""

_FOLDER = re.compile(r"[0-9a-f]{32}")
_BLOCK = re.compile(rf"([0-9a-f]{{32}}){re.escape(SUFFIX)}")
_PART = re.compile(r"[0-9a-f]{32}\.[0-9a-f]+\.part")
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class BlockName(NamedTuple):
    """The name of a block's file: its folder, and the block hash (16 bytes) that its own name spells in hex."""

    folder: str
    block_hash: bytes


class FoundBlock(NamedTuple):
    """A block's file as ``scan`` found it."""

    used: float
    """Time at which it was last read or written, in seconds since the epoch."""
    name: BlockName
    size: int


class BlockFolder:
    """Reads and writes the blocks of one fingerprint, and lists and removes those of all."""

    def __init__(self, folder: Path, name: str) -> None:
        """``folder`` holds the folders of all fingerprints, ``name`` (32 hex digits) is this one's. Raises OSError."""
        self.name = name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._all = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._all)
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=self._all)
        self._own = os.open(name, _OPEN_FOLDER, dir_fd=self._all)
        weakref.finalize(self, os.close, self._own)
        status = os.fstat(self._own)
        if status.st_uid == os.geteuid() and status.st_mode & 0o077:  # made by a version that let other users in
            os.fchmod(self._own, 0o700)

    def scan(self) -> list[FoundBlock]:
        """The blocks of all fingerprints, the least recently used first. Removes stale half-written files.

        Files that vanish meanwhile or may not be read are left out. Raises OSError when this fingerprint's own folder
        cannot be read.
        """
        found = list(_blocks(self._own, self.name))
        with os.scandir(self._all) as entries:
            others = [entry.name for entry in entries if _FOLDER.fullmatch(entry.name) and entry.name != self.name]
        for other in others:
            with contextlib.suppress(OSError), self._opened(other) as descriptor:
                found += _blocks(descriptor, other)
        return sorted(found)

    def read(self, block_hash: bytes, *, limit: int) -> bytes | None:
        """The bytes of a block's file, which is then marked as used; None if it cannot be read or exceeds ``limit``."""
        try:
            descriptor = os.open(_file_name(block_hash), _READ, dir_fd=self._own)
        except OSError:
            return None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
                return None
            with open(descriptor, "rb", closefd=False) as file:
                data = file.read(limit)
            with contextlib.suppress(OSError):  # a read-only folder: the block is valid nevertheless
                os.utime(descriptor)
            return data
        except OSError:
            return None
        finally:
            os.close(descriptor)

    def write(self, block_hash: bytes, data: bytes) -> None:
        """Writes a block's file atomically and replaces any other. Raises OSError, and then leaves no file behind."""
        part = f"{block_hash.hex()}.{secrets.token_hex(8)}.part"
        descriptor = os.open(part, _CREATE, 0o600, dir_fd=self._own)
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
            os.replace(part, _file_name(block_hash), src_dir_fd=self._own, dst_dir_fd=self._own)
        except OSError:
            with contextlib.suppress(OSError):  # the first error is the one to report
                os.unlink(part, dir_fd=self._own)
            raise

    def remove(self, name: BlockName) -> None:
        """Removes a block's file if it exists. Raises OSError."""
        with contextlib.suppress(FileNotFoundError), self._opened(name.folder) as descriptor:
            os.unlink(_file_name(name.block_hash), dir_fd=descriptor)

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        """A descriptor of one of the folders; links are not followed."""
        if name == self.name:
            yield self._own
            return
        descriptor = os.open(name, _OPEN_FOLDER, dir_fd=self._all)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def _blocks(descriptor: int, folder: str) -> Iterator[FoundBlock]:
    with os.scandir(descriptor) as entries:
        for entry in entries:
            try:
                status = os.stat(entry.name, dir_fd=descriptor, follow_symlinks=False)
                if not stat.S_ISREG(status.st_mode):
                    continue
                if _PART.fullmatch(entry.name) and status.st_mtime < time.time() - STALE_SECONDS:
                    os.unlink(entry.name, dir_fd=descriptor)
            except OSError:  # it is gone, or not ours to read
                continue
            if match := _BLOCK.fullmatch(entry.name):
                yield FoundBlock(status.st_mtime, BlockName(folder, bytes.fromhex(match[1])), status.st_size)


def _file_name(block_hash: bytes) -> str:
    return block_hash.hex() + SUFFIX
