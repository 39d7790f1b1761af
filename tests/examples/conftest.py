"""The default model where the programs look for it, and one server for all that speak to one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import DEFAULT_MODEL
from tests.serving import ROOT, RunningServer

EXAMPLES = ROOT / "examples"
RUN_S = 300


@pytest.fixture(scope="session")
def clone(default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the default model in `.models/`, as a clone has it after `make model`."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / ".models").mkdir()
    (folder / ".models" / DEFAULT_MODEL.name).symlink_to(default_model.resolve())
    return folder


@pytest.fixture(scope="session")
def served(default_model: Path) -> Iterator[RunningServer]:
    with RunningServer(environment={"MISTRALRS_DEFAULT_MODEL": str(default_model)}) as server:
        yield server
        assert server.until_quiet(20)
        assert server.stop() == 0


Run = Callable[..., str]


@pytest.fixture
def run(clone: Path) -> Run:
    """Runs a program of `examples/` in the clone and returns its output; it must not fail or warn."""

    def runs(name: str, *arguments: str, stdin: str = "", **environment: str) -> str:
        path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), str(ROOT / "integrations")])
        done = subprocess.run(
            [sys.executable, "-W", "error::ResourceWarning", str(EXAMPLES / name), *arguments],
            input=stdin,
            env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", **environment},
            cwd=clone,
            capture_output=True,
            text=True,
            timeout=RUN_S,
        )
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr
        return done.stdout

    return runs
