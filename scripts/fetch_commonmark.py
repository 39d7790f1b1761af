"""Fetches the examples of the CommonMark specification: `python scripts/fetch_commonmark.py FOLDER`.

They are in the source distribution of markdown-it-py, which pip downloads from its configured index. Nothing of it is
installed. An interrupted run can be repeated.
"""

from __future__ import annotations

import argparse
import json
import sys
import tarfile
import tempfile
from pathlib import Path

from source_distribution import download

PACKAGE = "markdown-it-py==4.3.0"
EXAMPLES = "tests/test_cmark_spec/commonmark.json"
COUNT = 652


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the file goes")
    target: Path = parser.parse_args().folder / "commonmark.json"
    if target.exists():
        print(f"{target.parent} is filled already")
        return 0
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        archive = download(PACKAGE, Path(scratch))
        if archive is None:
            return 1
        examples = read(archive)
        if len(examples) != COUNT:
            print(f"{archive.name} holds {len(examples)} examples instead of {COUNT}", file=sys.stderr)
            return 1
        written = Path(scratch) / target.name
        written.write_text(json.dumps(examples, indent=1), encoding="utf-8")
        written.rename(target)
    print(f"{target.parent} is filled")
    return 0


def read(archive: Path) -> list[dict[str, object]]:
    """Returns the examples in the archive; empty if it holds none."""
    with tarfile.open(archive) as tar:
        for member in tar:
            content = tar.extractfile(member) if member.name.endswith(f"/{EXAMPLES}") else None
            if content is not None:
                found: list[dict[str, object]] = json.load(content)
                return found
    return []


if __name__ == "__main__":
    sys.exit(main())
