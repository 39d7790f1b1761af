"""The server's guide: what it tells its readers to run does run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.clients.conftest import CLIENTS, KEY
from tests.serving import ROOT, RunningServer

GUIDE = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
PROGRAMS = [block for block in BLOCKS if "LOGITS_PROCESSORS" not in block]
"""Those of clients; the other is a plugin, which ``tests/server/test_plugin.py`` runs."""


def module_of(program: str) -> str:
    found = re.search(r"^(?:from|import) (?!pydantic )([\w.]+)", program, re.MULTILINE)
    assert found is not None
    return found[1]


def python_with(module: str) -> str | None:
    """An interpreter that has it."""
    apart = CLIENTS / module.partition(".")[0].replace("_", "-") / "bin" / "python"
    if apart.exists():
        return str(apart)
    return sys.executable if find_spec(module.partition(".")[0]) else None


def test_every_python_client_is_in_it() -> None:
    assert [module_of(program) for program in PROGRAMS] == [
        "openai",
        "langchain_openai",
        "llama_index.llms.openai_like",
        "litellm",
        "instructor",
        "pydantic_ai",
        "openai",
        "anthropic",
    ]


@pytest.mark.parametrize("program", PROGRAMS, ids=module_of)
def test_the_programs_run(program: str, server: RunningServer, tmp_path: Path) -> None:
    python = python_with(module_of(program))
    if python is None:
        pytest.skip(f"{module_of(program)} is not installed; make clients installs it")
    told = program.replace("http://127.0.0.1:1234", server.root).replace('"none"', repr(KEY))
    assert told.count(server.root) == told.count(KEY) == 1
    done = subprocess.run(
        [python, "-c", told],
        env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
