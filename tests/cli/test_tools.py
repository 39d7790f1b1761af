"""The subcommands that run no model: ``inspect`` and ``models``, as programs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from mistralrs_cli.terminal.output import byte_size
from tests.cli.terminal import ENTER, ROOT, Terminal, environment
from tests.hub import COMMIT
from tests.tiny import DEFAULT, write_tiny


class Run:
    """Runs the command with ``home`` as the user's folder and an empty hub's cache in it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.variables: Mapping[str, str] = {**environment(home), "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1"}

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Returns exit code, stdout, stderr."""
        done = subprocess.run(
            [sys.executable, "-m", "mistralrs_cli", *arguments],
            env={**self.variables},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.returncode, done.stdout, done.stderr

    def cache(self, repo: str, files: Mapping[str, bytes]) -> Path:
        """Puts a repository into the cache as the hub's client would; its folder."""
        folder = self.home / "hf" / "hub" / f"models--{repo.replace('/', '--')}"
        for number, (name, content) in enumerate(files.items()):
            blob = folder / "blobs" / f"{number:064}"
            blob.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(content)
            link = folder / "snapshots" / COMMIT / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(blob)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(COMMIT)
        return folder


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_inspect_as_text(run: Run) -> None:
    path = write_tiny(run.home / "tiny.gguf").path
    code, out, err = run("inspect", str(path))
    assert (code, err) == (0, "")
    assert f"{path} (GGUF version 3" in out
    assert "llama: 2 layers, width 64, feed-forward 96, 4 heads of 16, 2 key heads" in out
    assert "F32 x 8" in out
    assert "1 '<|im_start|>'" in out
    assert "    <|im_start|>user\n    Tell me a joke.<|im_end|>\n    <|im_start|>assistant\n" in out
    assert "of memory for 1 000 tokens" in out
    assert "\nanswers       content\n" in out
    assert out.endswith("\nprecision     default: activations are rounded to 8 bits, to 15 where they stand out\n")


def test_inspect_as_json(run: Run) -> None:
    path = write_tiny(run.home / "tiny.gguf", replace(DEFAULT, context=96)).path
    code, out, _ = run("inspect", str(path), "--json")
    assert code == 0
    model = json.loads(out)
    assert (model["architecture"], model["context_length"], model["path"]) == ("llama", 96, str(path))
    assert [each["use"] for each in model["tensors"]] == ["embedding", "attention", "feed-forward", "norms"]
    assert model["text"]["answer_parts"] == ["content"]
    assert model["precision"] == "default"
    code, out, _ = run("--precision", "fast", "inspect", str(path), "--json")
    assert (code, json.loads(out)["precision"]) == (0, "fast")
    code, out, _ = run("--kv-cache-dtype", "bf16", "inspect", str(path))
    assert code == 0
    assert "of memory for 1 000 tokens (KV cache in bf16)\n" in out
    assert model["text"]["sample"].endswith("<|im_start|>assistant\n")


def test_inspect_what_is_in_the_cache(run: Run) -> None:
    content = write_tiny(run.home / "tiny.gguf").path.read_bytes()
    run.cache("owner/tiny", {"tiny.gguf": content})
    code, out, _ = run("inspect", "owner/tiny", "-f", "tiny.gguf", "--json")
    assert (code, json.loads(out)["layers"]) == (0, 2)


def test_inspect_shows_no_control_sequence(run: Run) -> None:
    path = write_tiny(run.home / "tiny.gguf").path
    template = b"{% for message in messages %}"
    path.write_bytes(path.read_bytes().replace(template, b"\x1b]0;title\x07".ljust(len(template))))
    code, out, err = run("inspect", str(path))
    assert "\x1b" not in out + err
    assert code == 0 or "template" in err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["inspect"], 2, "missing argument"),
        (["inspect", "absent.gguf"], 3, "absent.gguf does not exist"),
        (["inspect", "owner/absent"], 3, "HF_HUB_OFFLINE"),
        (["-i", "inspect", "x"], 2, "-i and inspect exclude each other"),
        (["--threads", "2", "inspect", "x"], 2, "--threads needs -i or --prompt or --port or bench"),
        (["--isq", "q4_k", "models"], 2, "--isq needs -i or --prompt or --port or bench"),
        (["--token-source", "none", "models"], 2, "--token-source needs -i or --prompt or --port or bench or inspect"),
        (["models", "remove"], 2, "': 'remove' is not one of 'list', 'delete'\n"),
        (["models", "delete"], 2, "needs the name of a model"),
        (["models", "list", "owner/x"], 2, "models list takes no owner/x"),
        (["models", "--yes"], 2, "models list takes no --yes"),
        (["models", "delete", "owner/x", "--json"], 2, "--json is for the list"),
        (["models", "delete", "owner/x", "--yes"], 2, "owner/x is not in the hub's cache"),
    ],
)
def test_refusals(run: Run, words: list[str], code: int, said: str) -> None:
    found, out, err = run(*words)
    assert (found, out) == (code, "")
    assert said in err
    assert "hint: " in err


def test_models_lists_what_is_here(run: Run) -> None:
    code, out, _ = run("models")
    assert code == 0
    assert "default.gguf" in out
    assert "the hub's cache holds no model" in out
    small = {"config.json": b"{}", "tiny.gguf": b"x" * 1000}
    run.cache("owner/small", small)
    folder = run.cache("owner/large", {"config.json": b"{}", "sub/model.safetensors": b"x" * 5_000_000})
    code, out, _ = run("models", "list")
    assert code == 0
    assert out.index("owner/large") < out.index("owner/small")
    assert "5.0 MB" in out
    assert "    tiny.gguf\n" in out
    listed = json.loads(run("models", "--json")[1])
    assert listed["default"]["path"] == str(run.home / "default.gguf")
    large = listed["cached"][0]
    assert (large["repo"], large["path"], large["revisions"]) == ("owner/large", str(folder), ["main"])
    assert large["weights"] == ["sub/model.safetensors"]
    assert large["nbytes"] == 5_000_002


def test_models_deletes_one(run: Run) -> None:
    doomed = run.cache("owner/doomed", {"a.gguf": b"x" * 2000})
    kept = run.cache("owner/kept", {"a.gguf": b"x"})
    code, out, err = run("models", "delete", "owner/doomed")
    assert (code, out) == (2, "")
    assert "add --yes" in err
    assert doomed.exists()
    code, out, err = run("models", "delete", "owner/doomed", "--yes")
    assert (code, out) == (0, "")
    assert "owner/doomed is deleted, 2.0 kB are free" in err
    assert not doomed.exists()
    assert kept.exists()


@pytest.mark.parametrize(("answer", "stays"), [("n", True), ("", True), ("y", False)])
def test_models_asks_on_a_terminal(run: Run, answer: str, stays: bool) -> None:
    folder = run.cache("owner/doomed", {"a.gguf": b"x" * 2000})
    with Terminal(["models", "delete", "owner/doomed"], run.variables) as terminal:
        terminal.wait_for("delete owner/doomed, 2.0 kB? [y/N]")
        terminal.send(answer, ENTER)
        assert terminal.exit_code() == 0
    assert folder.exists() == stays


def test_sizes() -> None:
    assert [byte_size(count) for count in (0, 999, 1000, 98_362_432, 7_365_960_000)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "98.4 MB",
        "7.4 GB",
    ]
