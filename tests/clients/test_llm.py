"""The command `llm` with a model of `extra-openai-models.yaml`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.clients.conftest import ANSWER, HEADERS, KEY, QUESTION
from tests.serving import RunningServer

pytestmark = pytest.mark.skipif(find_spec("llm") is None, reason="llm is not installed; make clients installs it")


@pytest.fixture
def home(server: RunningServer, model: str, tmp_path: Path) -> Path:
    """A home whose settings name the server twice: for chats, and for texts to be continued."""
    models = "\n".join(
        f"""\
- model_id: {name}
  model_name: {model}
  api_base: {server.base_url}
  api_key_name: mistralrs
  {extra}"""
        for name, extra in (("chat", "vision: false"), ("text", "completion: true"))
    )
    (tmp_path / "extra-openai-models.yaml").write_text(models)
    (tmp_path / "keys.json").write_text(f'{{"mistralrs": "{KEY}"}}')
    return tmp_path


def llm(home: Path, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "llm", *arguments],
        env={**os.environ, "LLM_USER_PATH": str(home), "HOME": str(home)},
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("how", [(), ("--no-stream",), ("--async",)])
def test_chat(home: Path, how: tuple[str, ...]) -> None:
    done = llm(home, "-m", "chat", "-o", "temperature", "0", "--usage", *how, QUESTION)
    assert (done.returncode, done.stdout.strip()) == (0, ANSWER), done.stderr
    assert "8 output" in done.stderr


def test_options(home: Path) -> None:
    done = llm(home, "-m", "chat", "-o", "temperature", "0", "-o", "stop", " Paris", "-s", "Answer.", QUESTION)
    assert (done.returncode, " Paris" in done.stdout) == (0, False), done.stderr
    drawn = [llm(home, "-m", "chat", "-o", "seed", "7", "-o", "max_tokens", "12", "Invent a name.") for _ in range(2)]
    assert drawn[0].stdout == drawn[1].stdout != ""


def test_conversation(home: Path) -> None:
    first = llm(home, "-m", "chat", "-o", "temperature", "0", "--usage", QUESTION)
    again = llm(home, "-c", "-o", "temperature", "0", "--usage", "And of Italy?")
    assert (first.returncode, again.returncode) == (0, 0)
    known, now = (int(re.findall(r"(\d+) input", done.stderr)[0]) for done in (first, again))
    assert now > known + 8  # the question, its answer and the second question


def test_text_completion(home: Path) -> None:
    done = llm(home, "-m", "text", "-o", "temperature", "0", "-o", "max_tokens", "5", "The capital of France is")
    assert (done.returncode, "Paris" in done.stdout) == (0, True), done.stderr


def test_errors(home: Path) -> None:
    long = llm(home, "-m", "chat", text="word " * 9000)
    assert long.returncode != 0
    assert "maximum context length is 8192 tokens" in long.stderr
    refused = llm(home, "-m", "chat", "--key", "sk-wrong", QUESTION)
    assert refused.returncode != 0
    assert "Incorrect API key" in refused.stderr


def test_cancel(home: Path, server: RunningServer) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "llm", "-m", "chat", "-o", "max_tokens", "4000", "Write a very long story."],
        env={**os.environ, "LLM_USER_PATH": str(home), "HOME": str(home)},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    with process:
        assert process.stdout.read(20)
        assert server.ask("GET", "/v1/requests", headers=HEADERS)[1]["data"]
        process.kill()
    assert server.until_quiet(15, headers=HEADERS)
