"""The blocks of the README and of the guides: each runs in a test, or is marked and parsed."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mistralrs_cli.arguments.command_line import parse
from mistralrs_cli.arguments.invocation import resolve
from tests.architectures import VARIANTS, write_folder
from tests.examples.fenced_blocks import DOCUMENTS, Block, blocks_of
from tests.examples.shell_commands import ShellCommands
from tests.serving import ROOT, RunningServer

BLOCKS = [block for path in DOCUMENTS for block in blocks_of(path) if block.language in ("sh", "python", "py")]
ELSEWHERE = {
    ("README.md", "python"): "tests/api/test_runner.py",
    ("docs/adapters.md", "sh"): "tests/cli/test_adapters_guide.py",
    ("docs/adapters.md", "python"): "tests/cli/test_adapters_guide.py",
    ("docs/chat-guide.md", "sh"): "tests/cli/test_chat_guide.py",
    ("docs/python.md", "python"): "tests/api/test_runner.py",
    ("docs/server.md", "python"): "tests/clients/test_guide.py",
    ("examples/http.md", "sh"): "tests/examples/test_server_examples.py",
}
"""Tests that run all blocks of a language in a document."""
OF_THE_README = ("git log -5 |", "--choice yes --choice no\nmistralrs", "words.jsonl", "--connect")
"""Parts of the README's blocks that `test_readme.py` runs."""


def is_elsewhere(block: Block) -> bool:
    is_of_the_readme = block.document == "README.md" and any(text in block.text for text in OF_THE_README)
    return is_of_the_readme or (block.document, block.language) in ELSEWHERE


RUN = [block for block in BLOCKS if not block.mark and not is_elsewhere(block)]
SCRIPTS = [block for block in RUN if block.language == "sh"]
PROGRAMS = [block for block in RUN if block.language == "python"]
PARSED = [block for block in BLOCKS if block.mark]
SERVES = "it serves until it is stopped"
SERVER = "http://127.0.0.1:1234"
[TEN] = [block for block in SCRIPTS if block.document == "docs/scripting.md" and block.text.count("| mistralrs ") > 5]


def test_each_block_is_run_somewhere() -> None:
    assert len(BLOCKS) > 80
    for (document, language), test in ELSEWHERE.items():
        text = (ROOT / test).read_text(encoding="utf-8")
        assert Path(document).name in text, test
        assert f"```{language}" in text, test
        assert any((block.document, block.language) == (document, language) for block in BLOCKS)
    for text in OF_THE_README:
        assert sum(text in block.text for block in BLOCKS if block.document == "README.md") == 1, text
    assert [str(block) for block in RUN if block not in SCRIPTS + PROGRAMS] == []


def test_a_mark_gives_its_reason() -> None:
    assert all(block.mark and len(block.mark.split()) > 1 for block in PARSED)
    assert len(PARSED) < len(BLOCKS) // 4


@pytest.mark.parametrize("block", PARSED, ids=str)
def test_a_marked_block_is_parsed(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MISTRALRS_DEFAULT_MODEL", str(tmp_path / "model.gguf"))
    for name in ("model.gguf", "keys.txt"):
        (tmp_path / name).write_text("key\n")
    if block.language != "sh":
        compile(block.text, str(block), "exec")
    for words in block.commands() if block.language == "sh" else []:
        parsed = parse(words)
        assert parsed is not None, words
        assert not words or resolve(parsed), words  # alone it asks


SERVERS = sorted({" ".join(words) for block in PARSED if block.mark == SERVES for words in block.commands()})


@pytest.mark.native
@pytest.mark.parametrize("line", [line for line in SERVERS if "mistral-gguf" not in line])  # which would be fetched
def test_a_server_of_the_guides_serves_until_it_is_stopped(line: str, tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").symlink_to(tiny_llama)
    (tmp_path / "keys.txt").write_text("key\n")
    words = line.replace("--port 1234", "--port 0").replace("0.0.0.0", "127.0.0.1").split()
    environment = {**os.environ, "HOME": str(tmp_path), "MISTRALRS_DEFAULT_MODEL": str(tiny_llama)}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *sys.path])
    command = [sys.executable, "-m", "mistralrs_cli", *words]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        killer = threading.Timer(120, server.kill)  # so that one that never serves ends
        killer.start()
        seen = list(itertools.takewhile(lambda said: not said.startswith("Serving "), server.stderr))
        server.terminate()
        server.stderr.read()
        assert server.wait() == 0, seen
        killer.cancel()


@pytest.fixture(scope="module")
def here(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the blocks name; the models are tiny."""
    folder = tmp_path_factory.mktemp("here")
    (folder / "model.gguf").symlink_to(tiny_llama)
    write_folder(folder / "model", VARIANTS["llama"])
    for name in ("LICENSE", "Makefile", "README.md", "chat_templates/chatml.json"):
        shutil.copy(ROOT / name, folder)
    for name in ("Makefile", "README.md"):  # a tiny context holds only the beginning
        (folder / name).write_text((ROOT / name).read_text(encoding="utf-8")[:250], encoding="utf-8")
    (folder / "chatml.json").rename(folder / "template.json")
    (folder / "template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    (folder / "examples").symlink_to(ROOT / "examples")
    return folder


@pytest.fixture(scope="module")
def shell(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShellCommands]:
    git = subprocess.run(["git", "rev-parse", "--absolute-git-dir"], cwd=ROOT, capture_output=True, text=True)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("MISTRALRS_", "XDG_"))},
        "HOME": str(tmp_path_factory.mktemp("home")),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]),
        "GIT_DIR": git.stdout.strip(),
        "HF_HUB_OFFLINE": "1",
        "MISTRALRS_DEFAULT_MODEL": str(tiny_llama),
    }
    with ShellCommands(environment) as shell:
        yield shell


@pytest.mark.parametrize("block", [block for block in SCRIPTS if block is not TEN], ids=str)
def test_a_block_of_the_shell(block: Block, shell: ShellCommands, here: Path, request: pytest.FixtureRequest) -> None:
    script = block.text
    if "git " in script and not (ROOT / ".git").exists():
        pytest.skip("this is no clone")
    if SERVER in script:
        server: RunningServer = request.getfixturevalue("served")
        script = script.replace(SERVER, server.root)
    if "git " in script:  # more than a tiny context holds
        script = f"export MISTRALRS_TRUNCATE_SEQUENCE=1\n{script}"
    if "person.json" in script:  # an object that ends
        script = f"export MISTRALRS_DEFAULT_MODEL={request.getfixturevalue('default_model').resolve()}\n{script}"
    done, codes = shell.run(script, here)
    assert done.returncode == 0, done.stderr
    failing = script.count("|| test $? = ") + script.count("|| echo")
    assert sum(code > 0 for code in codes) == failing, done.stderr
    assert codes or "mistralrs " not in script.replace("<(mistralrs ", "")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("line", TEN.text.splitlines())
def test_a_pipe(line: str, default_model: Path, shell: ShellCommands, here: Path) -> None:
    if "git " in line and not (ROOT / ".git").exists():
        pytest.skip("this is no clone")
    done, codes = shell.run(f"export MISTRALRS_DEFAULT_MODEL={default_model.resolve()}\n{line}", here)
    assert done.returncode == 0, done.stderr
    assert codes in ([0], [141] if "| head" in line else [0])  # head may have gone
    assert done.stdout.strip() or "> even.py" in line
    assert "2" in done.stdout or "wc -l" not in line
    assert re.fullmatch(r"\d{4}\n", done.stdout) or "--regex" not in line


def test_there_are_ten_pipes() -> None:
    assert len(TEN.text.splitlines()) == 10
    assert all(" | " in line and "mistralrs " in line for line in TEN.text.splitlines())


@pytest.mark.parametrize("block", PROGRAMS, ids=str)
def test_a_program(
    block: Block, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(here)
    exec(compile(block.text, str(block), "exec", dont_inherit=True), {"__name__": "program"})
    assert capsys.readouterr().out.strip()
