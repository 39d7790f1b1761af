"""Fetches llama.cpp's vocabularies, test vectors and chat templates: `python scripts/fetch_vocabularies.py FOLDER`.

They lie in the source distribution of llama-cpp-python, which pip downloads from wherever it is set up to look; nothing
of it is built or installed. An interrupted run can be repeated.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

PACKAGE = "llama-cpp-python==0.3.36"
MEMBERS = ("vendor/llama.cpp/models/ggml-vocab-*.gguf*", "vendor/llama.cpp/models/templates/*.jinja")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the files go")
    folder: Path = parser.parse_args().folder
    if any(folder.glob("*.gguf")):
        print(f"{folder} is filled already")
        return 0
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        archive = download(Path(scratch))
        if archive is None:
            return 1
        unpacked = Path(scratch) / "unpacked"
        if not unpack(archive, unpacked):
            print(f"{archive.name} holds no vocabularies", file=sys.stderr)
            return 1
        if folder.exists():
            shutil.rmtree(folder)
        unpacked.rename(folder)
    print(f"{folder} is filled")
    return 0


def download(folder: Path) -> Path | None:
    """The downloaded archive. None, and a line that says why, when pip fails: most often there is no network."""
    options = ["--quiet", "--no-deps", "--no-binary", "llama-cpp-python", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, PACKAGE]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        print(f"pip could not download the source of {PACKAGE}: {reason}", file=sys.stderr)
        return None
    return next(folder.glob("*.tar.gz"))


def unpack(archive: Path, folder: Path) -> bool:
    """Writes vocabularies, vectors and templates into the new ``folder``; False when there are none."""
    folder.mkdir()
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            content = tar.extractfile(member) if any(map(path.match, MEMBERS)) else None
            if content is not None:
                with (folder / path.name).open("wb") as file:
                    shutil.copyfileobj(content, file)
    return any(folder.iterdir())


if __name__ == "__main__":
    sys.exit(main())
