"""`examples/python/` with the default model."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples.conftest import EXAMPLES, RUN_S, Run
from tests.serving import ROOT


def test_python_api(run: Run) -> None:
    out = run("python/python_api.py")
    assert out.startswith("The capital of France is Paris")
    assert "completion_tokens=" in out.splitlines()[1]


def test_async(run: Run) -> None:
    out = run("python/async.py")
    assert len(out.splitlines()) >= 8
    assert "The capital of Japan is Tokyo." in out


def test_tools(run: Run) -> None:
    called, result, *_ = run("python/tools.py").splitlines()
    name, arguments = called.split(" ", 1)
    assert name == "current_time"
    assert json.loads(arguments).keys() == {"zone"}
    assert re.search(r"'content': '\d\d:\d\d'", result)


def test_structured(run: Run) -> None:
    person, is_science = run("python/structured.py").strip().rsplit("\n", 1)
    assert re.search(r" was born in .* in \d{4}\.$", person, re.DOTALL)
    assert is_science in ("yes", "no")


RUN_NOTEBOOK = """
import json, sys
import nbformat
from nbclient import NotebookClient

book = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(book, timeout=100, kernel_name="python3", resources={"metadata": {"path": sys.argv[2]}}).execute()
print(json.dumps([cell.outputs for cell in book.cells if cell.cell_type == "code"]))
"""


def test_the_cookbook(clone: Path, tmp_path: Path) -> None:
    pytest.importorskip("nbclient")
    folder = clone / "examples" / "python"
    folder.mkdir(parents=True)
    book = Path(shutil.copy(EXAMPLES / "python" / "cookbook.ipynb", folder))
    assert not any(cell.get("outputs") for cell in json.loads(book.read_text(encoding="utf-8"))["cells"])
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run(
        [sys.executable, "-c", RUN_NOTEBOOK, str(book), str(folder)],
        env={**os.environ, "PYTHONPATH": path, "IPYTHONDIR": str(tmp_path), "JUPYTER_PLATFORM_DIRS": "1"},
        capture_output=True,
        text=True,
        timeout=RUN_S,
    )
    assert done.returncode == 0, done.stderr
    *outputs, closed = json.loads(done.stdout.splitlines()[-1])
    assert closed == []
    assert all(outputs)
    texts = ["".join(part.get("text") or part["data"]["text/plain"] for part in parts) for parts in outputs]
    assert texts[1].startswith("The capital of France is Paris.")
    assert any(re.fullmatch(r"'\d{4}-\d\d-\d\d'", text) for text in texts)
    assert any(text.startswith("City(name=") for text in texts)
