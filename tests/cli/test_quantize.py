"""``quantize`` on the command line: its request to the library, its report, and refusals before anything is read."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from mistralrs.errors import UsageError
from mistralrs_cli.app import main
from mistralrs_cli.arguments.command_line import parse
from mistralrs_cli.arguments.invocation import resolve
from mistralrs_cli.terminal.exits import INTERRUPTED
from mistralrs_cli.terminal.output import ProgressLine
from tests.architectures import VARIANTS, write_folder
from tests.tiny import write_tiny


def ask(words: list[str]) -> None:
    parsed = parse(words)
    assert parsed is not None
    resolve(parsed)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, str]]:
    """Records the request to the library, and writes ten bytes."""
    calls: list[tuple[Path, str]] = []

    def quantize_model(source: Path, out: Path, type: str, *, name: str | None, progress: object) -> None:
        assert name is None
        calls.append((source, type))
        out.write_bytes(b"0123456789")

    monkeypatch.setattr("mistralrs_cli.commands.quantize_command.quantize_model", quantize_model)
    return calls


def test_it_asks_the_library(tmp_path: Path, asked: list[tuple[Path, str]], capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.safetensors").touch()
    assert main(["quantize", str(tmp_path), str(tmp_path / "out.gguf"), "--type", "Q4_K"]) == 0
    assert asked == [(tmp_path, "q4_k")]
    assert capsys.readouterr() == ("", f"{tmp_path / 'out.gguf'}: 10 B\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["quantize"], "missing"),
        (["quantize", ".", "out.gguf"], "'--type'"),
        (["quantize", ".", "out.gguf", "--type", "q9"], "'q9'"),
        (["quantize", ".", "out.bin", "--type", "q4_k"], "out.bin is to be a GGUF file"),
        (["quantize", ".", "there.gguf", "--type", "q4_k"], "there.gguf is there already"),
        (["quantize", ".", "absent/out.gguf", "--type", "q4_k"], "absent is no folder"),
        (["--isq", "q4_k", "quantize", ".", "out.gguf", "--type", "q4_k"], "--isq needs -i"),
        (["-i", "quantize", ".", "out.gguf", "--type", "q4_k"], "-i and quantize exclude each other"),
    ],
)
def test_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.gguf").touch()
    with pytest.raises(UsageError) as refused:
        ask(words)
    assert said in refused.value.message
    assert refused.value.hint


# With the library


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("models") / "tiny-llama", VARIANTS["llama"])


def test_it_writes_the_file(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.gguf"
    assert main(["quantize", str(folder), str(out), "--type", "q8_0"]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err.startswith(f"{out}: "), captured.err.count("\n")) == ("", True, 1)
    reader = gguf.GGUFReader(out)
    assert reader.fields["general.name"].contents() == "tiny-llama"
    assert [file.name for file in tmp_path.iterdir()] == ["out.gguf"]


def test_a_model_of_the_hub_is_called_by_its_repository(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mistralrs_cli.commands.quantize_command.locate", lambda source, **_: folder)
    assert main(["quantize", "owner/The-Name@main", str(tmp_path / "out.gguf"), "--type", "q8_0"]) == 0
    assert gguf.GGUFReader(tmp_path / "out.gguf").fields["general.name"].contents() == "The-Name"


def test_interrupted(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(line: ProgressLine, what: str, done: int, total: int) -> None:
        if what == "quantizing":
            raise KeyboardInterrupt

    monkeypatch.setattr(ProgressLine, "__call__", interrupt)
    assert main(["quantize", str(folder), str(tmp_path / "out.gguf"), "--type", "q8_0"]) == INTERRUPTED
    assert not list(tmp_path.iterdir())


def test_a_gguf_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_tiny(tmp_path / "tiny.gguf").path
    assert main(["quantize", str(path), str(tmp_path / "out.gguf"), "--type", "q8_0"]) == 3
    said = "error: {} is a GGUF file already\nhint: name the safetensors that it was made from\n"
    assert capsys.readouterr().err == said.format(path)
