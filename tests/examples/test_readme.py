"""The README's commands that need no more than the default model, run as printed."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving import ROOT, RunningServer

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
FORMS, BATCH, CONNECT = (
    next(block for block in BLOCKS if option in block) for option in ("--choice", "words.jsonl", "--connect")
)
USES = next(block for block in BLOCKS if "git log" in block).splitlines()
PIPES = [line for line in USES if " bench " not in line and not re.match(r"mistralrs +#", line)]
"""Those that answer in a pipe; ``mistralrs`` alone asks in a terminal which model to take."""


@pytest.fixture(scope="module")
def clone(default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with the files that the commands name."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copy(ROOT / "LICENSE", folder)
    (folder / "README.md").write_text(README[:3000], encoding="utf-8")  # the whole would take a while to read
    (folder / "examples").symlink_to(ROOT / "examples")
    return folder


def run(command: str, clone: Path, default_model: Path) -> str:
    """Runs a command of a shell, which must not fail, and returns its output."""
    git = subprocess.run(["git", "rev-parse", "--absolute-git-dir"], cwd=ROOT, capture_output=True, text=True)
    if "git log" in command and git.returncode:
        pytest.skip("this is no clone")
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run(
        ["bash", "-ec", f'mistralrs() {{ {shlex.quote(sys.executable)} -m mistralrs_cli "$@"; }}\n{command}'],
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("MISTRALRS_")},
            "PYTHONPATH": path,
            "GIT_DIR": git.stdout.strip(),
            "MISTRALRS_DEFAULT_MODEL": str(default_model),
            "XDG_CONFIG_HOME": str(clone / "config"),
        },
        stdin=subprocess.DEVNULL,
        cwd=clone,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_pipes_are_there() -> None:
    assert len(PIPES) > 7
    assert all(re.search(r"mistralrs (-i|--prompt)", line) for line in PIPES)


@pytest.mark.parametrize("line", PIPES, ids=lambda line: line.partition("  ")[0])
def test_a_pipe(line: str, clone: Path, default_model: Path) -> None:
    out = run(line, clone, default_model)
    if "capital" in line:
        assert out == "The capital of France is Paris.\n"
    elif "--json" in line:
        assert json.loads(out)["finish_reason"] in ("stop", "length")
    elif "--out" in line:
        assert [json.loads(each)["line"] for each in (clone / "answers.jsonl").read_text().splitlines()] == [1, 2]
    elif "concurrency" in line:
        assert out.count("=" * 23) >= 3
    elif not line.startswith("mistralrs -i"):
        assert out.strip()


def test_answers_of_one_form(clone: Path, default_model: Path) -> None:
    choice, date, rest = run(FORMS, clone, default_model).split("\n", 2)
    assert choice in ("yes", "no")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", date)
    place, end = json.JSONDecoder().raw_decode(rest)
    assert isinstance(place["city"], str)
    assert rest[end:].strip()  # a program, perhaps cut


def test_many_prompts(clone: Path, default_model: Path) -> None:
    run(BATCH, clone, default_model)
    answers = [json.loads(line) for line in (clone / "french.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [answer["line"] for answer in answers] == [1, 2]
    assert all(answer["text"] for answer in answers)


def test_a_running_server(served: RunningServer, clone: Path, default_model: Path) -> None:
    assert CONNECT.count("http://127.0.0.1:1234") == 1
    out = run(CONNECT.replace("http://127.0.0.1:1234", served.root), clone, default_model)
    assert out == "The capital of France is Paris.\n"
