"""The command with the scripted model, as a process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.cli.terminal import ROOT, environment


class Program:
    """Runs the command with the scripted model; stdin is empty unless given."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def command(self, *arguments: str, module: str = "tests.cli.fake_main") -> list[str]:
        return [sys.executable, "-m", module, *arguments]

    def start(
        self, *arguments: str, module: str = "tests.cli.fake_main", stdin: int = subprocess.DEVNULL, **extra: str
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.command(*arguments, module=module),
            env=environment(self.home, **extra),
            cwd=ROOT,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def __call__(
        self,
        *arguments: str,
        stdin: bytes | None = None,
        module: str = "tests.cli.fake_main",
        variables: Mapping[str, str] | None = None,
    ) -> tuple[int, str, str]:
        """Returns exit code, stdout, stderr."""
        pipe = subprocess.DEVNULL if stdin is None else subprocess.PIPE
        with self.start(*arguments, module=module, stdin=pipe, **(variables or {})) as process:
            out, err = process.communicate(stdin, timeout=60)
        return process.returncode, out.decode(errors="surrogateescape"), err.decode()
