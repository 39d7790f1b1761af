"""The commands of the guide to adapters: each of them names what it says."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from mistralrs.api.loaded_adapters.adapter_options import AdapterOptions
from mistralrs_cli.command_line import parse
from mistralrs_cli.invocation import Invocation, resolve
from mistralrs_cli.serve import ServeJob
from tests.adapters.adapter_files import write_adapters, write_json
from tests.cli.terminal import ROOT

GUIDE = (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
COMMANDS = [
    shlex.split(line, comments=True)
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("mistralrs ")
]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the guide's first table names, as far as parsing looks at them."""
    for name in ("base.gguf", "style.gguf"):
        (tmp_path / name).touch()
    (tmp_path / "base").mkdir()
    (tmp_path / "adapters").mkdir()
    write_adapters(tmp_path, {"style": ["q_proj"], "law": ["v_proj"]})
    write_adapters(tmp_path / "family", {"one": ["q_proj"], "two": ["q_proj"]})
    write_json(tmp_path / "order.json", {"order": ["one", "two"]})
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_of_the_guide(words: list[str], files: Path) -> None:
    parsed = parse(words[1:])
    assert parsed is not None
    task = resolve(parsed)
    if isinstance(task, Invocation | ServeJob):
        assert task.load.adapters != AdapterOptions()
    else:
        assert words[1] in ("adapter", "ordering")


def test_the_guide_s_files_are_those_of_the_commands(files: Path) -> None:
    table = GUIDE.partition("| --- | --- |")[2].partition("\n\n")[0]
    named = {name for cell in re.findall(r"^\| (.*?) \|", table, re.MULTILINE) for name in re.findall("`(.*?)`", cell)}
    assert named == {path.name for path in files.iterdir()} - {"adapters"}
    assert len(COMMANDS) > 25


def test_the_bodies_of_requests_are_json() -> None:
    bodies = [body for block in BLOCKS for body in re.findall(r"-d '(.*?)'", block, re.DOTALL)]
    assert len(bodies) == 3
    assert all(isinstance(json.loads(body), dict) for body in bodies)
