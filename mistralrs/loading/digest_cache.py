"""A cache of files' digests, so that a large file is read for its digest only once.

A file is identified by its device, inode, size and times, one of which changes when the file does.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import stat
import time
from pathlib import Path
from typing import NamedTuple

from mistralrs.parsing import parse_nested
from mistralrs.user_dirs import user_folder

NAME = "digests.json"
MAX_ENTRIES = 1024
"""Files in the cache, at most; the oldest entries are removed first."""
MAX_BYTES = 1 << 20
"""Bytes of a cache file, at most; this module writes no larger one."""
STABLE_NS = 2_000_000_000
"""Nanoseconds within which two changes may have the same time; no file system's clock is coarser."""

_VERSION = 1
_KEY = re.compile(r"\d+(:\d+){4}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class FileIdentity(NamedTuple):
    """Identifies a file and its state."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileIdentity:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def key(self) -> str:
        return ":".join(map(str, self))

    def is_stable(self) -> bool:
        """Returns whether any later change would change the times."""
        return max(self.mtime_ns, self.ctime_ns) < time.time_ns() - STABLE_NS


def default_folder() -> Path | None:
    """The user's folder for caches of this program (XDG base directories); None if there is no home folder."""
    return user_folder("XDG_CACHE_HOME", ".cache")


class DigestCache:
    """A small JSON file in ``folder``. Several processes may use it: the last one to write wins, which loses entries
    but never makes one wrong.

    A file that is damaged, or that other users may write, counts as empty and is replaced.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME

    def get(self, file: FileIdentity) -> str | None:
        """The digest of a file in this state (64 hex digits); None if it is not in the cache."""
        return self._read().get(file.key())

    def put(self, file: FileIdentity, digest: str) -> None:
        """Stores a digest. Raises OSError if the file cannot be written."""
        entries = self._read()
        entries.pop(file.key(), None)
        entries[file.key()] = digest
        kept = dict(list(entries.items())[-MAX_ENTRIES:])
        self._write(json.dumps({"version": _VERSION, "digests": kept}, indent=0).encode())

    def _read(self) -> dict[str, str]:
        try:
            content = parse_nested(json.loads, _own_file(self.path))
            entries = content["digests"] if content["version"] == _VERSION else {}
            valid = all(_KEY.fullmatch(key) and _DIGEST.fullmatch(digest) for key, digest in entries.items())
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return {}  # the file is missing, or this module did not write it
        return dict(entries) if valid else {}

    def _write(self, data: bytes) -> None:
        """Replaces the file atomically."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = self.path.with_name(f"{NAME}.{secrets.token_hex(8)}.part")
        with open(part, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            try:
                file.write(data)
                file.flush()
                os.replace(part, self.path)
            except OSError:
                with contextlib.suppress(OSError):  # the first error is the one to report
                    part.unlink()
                raise


def _own_file(path: Path) -> bytes:
    """The bytes of a regular file that only this user may write. Raises OSError for other files."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise OSError(f"{path} is not a file of this user alone")
        if status.st_size > MAX_BYTES:
            raise OSError(f"{path} has {status.st_size} bytes")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(MAX_BYTES)
    finally:
        os.close(descriptor)
