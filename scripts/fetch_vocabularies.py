"""Fetches other projects' vocabularies, test vectors and templates: `python scripts/fetch_vocabularies.py FOLDER`.

llama.cpp's are in the source distribution of llama-cpp-python, Mistral's in the wheel of mistral-common. pip downloads
both from its configured index; nothing of them is built or installed. An interrupted run can be repeated.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

PACKAGES = {
    "llama-cpp-python==0.3.36": (
        "vendor/llama.cpp/models/ggml-vocab-*.gguf*",
        "vendor/llama.cpp/models/templates/*.jinja",
    ),
    "mistral-common==1.13.1": ("mistral_common/data/tokenizer.model.v1", "mistral_common/data/*_240323.model.v3"),
}
"""The files to extract from each archive."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the files go")
    folder: Path = parser.parse_args().folder
    if any(folder.glob("*.gguf")) and any(folder.glob("*.model.v1")):
        print(f"{folder} is filled already")
        return 0
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        unpacked = Path(scratch) / "unpacked"
        unpacked.mkdir()
        for package, members in PACKAGES.items():
            archive = download(package, Path(scratch))
            if archive is None:
                return 1
            if not unpack(archive, unpacked, members):
                print(f"{archive.name} holds none of {', '.join(members)}", file=sys.stderr)
                return 1
        if folder.exists():
            shutil.rmtree(folder)
        unpacked.rename(folder)
    print(f"{folder} is filled")
    return 0


def download(package: str, folder: Path) -> Path | None:
    """Returns the downloaded archive; prints the reason and returns None when pip fails, as without a network."""
    name, version = package.split("==")
    # The wheels of llama-cpp-python lack the files, which mistral-common, all Python, has in its wheel.
    kind = "--no-binary" if name == "llama-cpp-python" else "--only-binary"
    options = ["--quiet", "--no-deps", kind, name, "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, package]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        print(f"pip could not download {package}: {reason}", file=sys.stderr)
        return None
    return next(folder.glob(f"{name.replace('-', '_')}-{version}[-.]*"))


def unpack(archive: Path, folder: Path, members: tuple[str, ...]) -> bool:
    """Writes these files of the archive into ``folder``; returns False when there are none."""
    found = False
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                if any(map(PurePosixPath(name).match, members)):
                    (folder / PurePosixPath(name).name).write_bytes(wheel.read(name))
                    found = True
        return found
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            content = tar.extractfile(member) if any(map(path.match, members)) else None
            if content is not None:
                with (folder / path.name).open("wb") as file:
                    shutil.copyfileobj(content, file)
                found = True
    return found


if __name__ == "__main__":
    sys.exit(main())
