"""Fetches the public JSON Schema Test Suite: `python scripts/fetch_schema_suite.py FOLDER`.

The suite of draft 2020-12 is in the source distribution of jsonschema, which pip downloads from its configured index.
Nothing of it is built or installed. An interrupted run can be repeated.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

from source_distribution import download

PACKAGE = "jsonschema==4.26.0"
SUITE = "json/tests/draft2020-12"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the files go")
    folder: Path = parser.parse_args().folder
    if any(folder.glob("*.json")):
        print(f"{folder} is filled already")
        return 0
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        archive = download(PACKAGE, Path(scratch))
        if archive is None:
            return 1
        unpacked = Path(scratch) / "unpacked"
        if not unpack(archive, unpacked):
            print(f"{archive.name} holds no {SUITE}", file=sys.stderr)
            return 1
        if folder.exists():
            shutil.rmtree(folder)
        unpacked.rename(folder)
    print(f"{folder} is filled")
    return 0


def unpack(archive: Path, folder: Path) -> bool:
    """Writes the suite's files into ``folder``, those of optional parts into folders below; False if there are none."""
    found = False
    with tarfile.open(archive) as tar:
        for member in tar:
            _, _, inner = member.name.partition(f"/{SUITE}/")
            path = PurePosixPath(inner)
            if not inner.endswith(".json") or ".." in path.parts:
                continue
            content = tar.extractfile(member)
            if content is not None:
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as file:
                    shutil.copyfileobj(content, file)
                found = True
    return found


if __name__ == "__main__":
    sys.exit(main())
