"""A file that has a temporary name until it is complete."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from mistralrs.errors import LoadError

Put = Callable[[memoryview], None]
"""Writes bytes of format "B". Raises ``LoadError`` when they cannot be written."""


@contextmanager
def new_file(path: Path, size: int) -> Iterator[Put]:
    """Writes ``path``, replacing an existing file, if the block ends without error; otherwise leaves nothing behind.

    Raises ``LoadError`` when the disk has no room for ``size`` bytes, which is checked before anything is written, or
    the file cannot be written.
    """
    _check_room(path, size)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with explaining(path):
        file = partial.open("xb", buffering=0)
    try:
        with file:
            yield lambda data: _put(path, file, data)
            with explaining(path):
                os.fsync(file.fileno())  # some file systems report only now that they are full
        with explaining(path):
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def explaining(path: Path) -> Iterator[None]:
    """Replaces OSErrors by LoadErrors for the user."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else error.strerror
        hint = "make room, or write to another disk" if full else "check the folder and its permissions"
        raise LoadError(f"{path} cannot be written: {reason}", hint=hint) from error


def _put(path: Path, file: FileIO, data: memoryview) -> None:
    """Writes all of ``data``, although one write of the system may take only a part."""
    with explaining(path):
        while data:
            data = data[file.write(data) :]


def _check_room(path: Path, needed: int) -> None:
    with explaining(path):
        free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise LoadError(
            f"{path} will have {needed / 1e9:.1f} GB, and its disk has {free / 1e9:.1f} GB of room",
            hint="make room, or write to another disk",
        )
