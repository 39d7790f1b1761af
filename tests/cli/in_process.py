"""The command in this process, whose settings and log are put back afterwards."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mistralrs_cli.app import main

_SETTINGS = ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "RUST_LOG")


class InProcess:
    """Runs the command with ``home`` as the user's folder and no settings."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.home = home
        self._capsys = capsys

    def __call__(self, *words: str) -> tuple[int, str, str]:
        """Returns exit code, stdout, stderr."""
        self._capsys.readouterr()
        code = main(words)
        return code, *self._capsys.readouterr()

    def configure(self, text: str) -> Path:
        """Writes the user's config file; returns its path."""
        path = self.home / ".config" / "mistralrs" / "config.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path


@contextmanager
def running(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[InProcess]:
    for name in (*_SETTINGS, *(name for name in os.environ if name.startswith("MISTRALRS_"))):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    logger = logging.getLogger("mistralrs")
    before = logger.handlers, logger.propagate, logger.level
    handler = signal.getsignal(signal.SIGTERM)
    yield InProcess(home, capsys)
    signal.signal(signal.SIGTERM, handler)
    logger.handlers, logger.propagate = before[:2]
    logger.setLevel(before[2])
