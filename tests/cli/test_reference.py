"""The generated reference and the help: fresh, and complete."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mistralrs.api.selectors.model_selector import SELECTORS
from mistralrs_cli.arguments.command_line import parse
from tests.cli.terminal import ROOT

SCRIPT = ROOT / "scripts" / "write_cli_reference.py"


def generate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], cwd=ROOT, capture_output=True, text=True)


def test_the_reference_is_fresh() -> None:
    done = generate("--check")
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_stale_is_named_and_mended(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    reference, readme = tmp_path / "docs" / "cli.md", tmp_path / "README.md"
    shutil.copy(ROOT / "docs" / "cli.md", reference)
    (tmp_path / "docs" / "chat-guide.md").write_text("<!-- commands: begin -->\n<!-- commands: end -->\n")
    readme.write_text("before\n<!-- rows: begin -->\nold\n<!-- rows: end -->\nafter\n")
    done = generate("--check", "--root", str(tmp_path))
    assert (done.returncode, str(readme) in done.stderr, str(reference) in done.stderr) == (1, True, False)
    reference.unlink()
    assert generate("--root", str(tmp_path)).returncode == 0
    assert generate("--check", "--root", str(tmp_path)).returncode == 0
    assert reference.read_text() == (ROOT / "docs" / "cli.md").read_text()
    assert readme.read_text().startswith("before\n<!-- rows: begin -->\n| Architecture |")
    assert readme.read_text().endswith("|\n<!-- rows: end -->\nafter\n")
    assert "| `/exit` | " in (tmp_path / "docs" / "chat-guide.md").read_text()


def test_help_lists_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(["--help"]) is None
    listed = {
        line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ") and line.split()
    }
    assert {*SELECTORS, "bench", "inspect", "models", "help"} <= listed


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("x-lora-gemma", ["a folder or a file. [default: (that of the ordering)]", "classifier. Required."]),
        ("lora-mistral", ["(HuggingFaceH4/zephyr-7b-beta)", "(lamm-mit/x-lora)", "--lora NAME=SOURCE"]),
        ("qwen3", ["--lora NAME=SOURCE", "--xlora REPO|FOLDER", "--tgt-non-granular-index N"]),
        ("gguf", ["The file. Required."]),
        ("llama-ggml", ["--gqa N", "llama-2-13b-chat.ggmlv3.q4_K_M.bin"]),
    ],
)
def test_help_of_a_row(row: str, said: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(["help", row]) is None
    out = " ".join(capsys.readouterr().out.split())
    assert [text for text in said if text not in out] == []
