"""Source distributions of Python packages, from which fixtures are taken. Nothing of them is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def download(requirement: str, folder: Path) -> Path | None:
    """Returns the archive of a package at one version (``name==version``), which pip downloads from its configured
    index into ``folder``. None: pip could not, and the reason is on stderr.
    """
    name = requirement.partition("==")[0]
    options = ["--quiet", "--no-deps", "--no-binary", name, "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, requirement]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    archive = next(folder.glob("*.tar.gz"), None)
    if archive is None:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        print(f"pip could not download {requirement}: {reason}", file=sys.stderr)
    return archive
