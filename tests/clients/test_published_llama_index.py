"""The published package `llama-index-llms-mistral-rs`, which was written for the binding of mistral.rs."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import ANSWER, CLIENTS, QUESTION, RUN_S
from tests.serving import ROOT

PYTHON = CLIENTS / "llama-index-mistral-rs" / "bin" / "python"
PROGRAM = Path(__file__).parent / "programs" / "ask_published_llama_index.py"

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="the package is not installed; make clients installs it")


@pytest.fixture(scope="module")
def seen(default_model: Path) -> dict[str, Any]:
    """Returns the package's view of a model."""
    told = {"QUESTION": QUESTION, "MODEL_FILE": str(default_model)}
    done = subprocess.run(
        [str(PYTHON), str(PROGRAM)],
        env={**os.environ, **told, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])},
        capture_output=True,
        text=True,
        timeout=RUN_S,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_answers(seen: dict[str, Any]) -> None:
    assert seen["complete"]["text"] == "".join(seen["complete"]["tokens"]) == ANSWER
    assert seen["asynchronous"][:2] == [ANSWER, ANSWER]


def test_streams(seen: dict[str, Any]) -> None:
    pieces = seen["stream_complete"]
    assert "".join(delta for delta, _ in pieces) == pieces[-1][1] == ANSWER
    assert len(pieces) > 2
    assert "".join(seen["stream_chat"]) == seen["asynchronous"][2]
    assert "Paris" in seen["asynchronous"][2]


def test_its_own_faults(seen: dict[str, Any]) -> None:
    """The guide names them; when one is mended there, the guide is out of date."""
    assert (seen["unmended"], seen["chat"]) == ("NameError", "ValidationError")
