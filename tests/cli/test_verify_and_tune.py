"""``mistralrs verify`` and ``mistralrs tune``: files that are whole, and what fits into the memory."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mistralrs_cli.arguments.command_line import parse
from tests.architectures import Variant, write_folder
from tests.cli.in_process import InProcess, running
from tests.tiny import write_tiny


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[InProcess]:
    with running(tmp_path, capsys, monkeypatch) as command:
        yield command


def verified(run: InProcess, *words: str) -> Any:
    code, out, err = run("verify", *words, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def refused(run: InProcess, code: int, said: str, *words: str) -> None:
    found, out, err = run("verify", *words)
    assert (found, out) == (code, "")
    assert said in err
    assert "\nhint: " in err


def test_a_sound_file(run: InProcess) -> None:
    path = write_tiny(run.home / "tiny.gguf").path
    found = verified(run, str(path))
    assert (found["container"], found["types"][0][0]) == ("GGUF version 3", "F32")
    assert found["parts"] == [{"path": str(path), "nbytes": path.stat().st_size, "checksum": None}]
    code, out, _ = run("verify", str(path))
    assert code == 0
    assert f"{path}: GGUF version 3, sound\n" in out
    assert "no checksum is known" in out


def test_a_folder_of_safetensors(run: InProcess) -> None:
    folder = write_folder(run.home / "llama", Variant("llama", {"rms_norm_eps": 1e-5}))
    found = verified(run, str(folder))
    assert (found["container"], len(found["parts"])) == ("safetensors", 1)
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1])
    refused(run, 3, str(weights), str(folder))


def test_a_checksum_of_the_caller_or_beside_the_file(run: InProcess) -> None:
    path = write_tiny(run.home / "tiny.gguf").path
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    wrong = "0" * 64
    assert verified(run, str(path), "--sha256", right.upper())["parts"][0]["checksum"]["digest"] == right
    refused(run, 3, f"its sha256 is {right}, and {wrong} is that of the caller", str(path), "--sha256", wrong)
    refused(run, 2, "--sha256 takes 64 hexadecimal digits", str(path), "--sha256", "0x1")
    sums = run.home / "SHA256SUMS"
    sums.write_text(f"{wrong}  other.gguf\n{right} *tiny.gguf\n", encoding="utf-8")
    assert verified(run, str(path))["parts"][0]["checksum"]["source"] == str(sums)
    beside = run.home / "tiny.gguf.sha256"
    beside.write_text(f"{wrong}\n", encoding="utf-8")
    refused(run, 3, f"is that of {beside}", str(path))
    beside.write_text("hello\n", encoding="utf-8")
    refused(run, 3, f"{beside} is no list of checksums", str(path))


@pytest.mark.parametrize("kind", ["sha256", "git-sha1"])
def test_the_hubs_cache_names_files_by_their_checksum(run: InProcess, kind: str) -> None:
    data = write_tiny(run.home / "tiny.gguf").path.read_bytes()
    name = hashlib.sha256(data) if kind == "sha256" else hashlib.sha1(b"blob %d\0" % len(data) + data)
    blob = run.home / "blobs" / name.hexdigest()
    blob.parent.mkdir()
    blob.write_bytes(data)
    link = run.home / "model.gguf"
    link.symlink_to(blob)
    found = verified(run, str(link))["parts"][0]["checksum"]
    assert (found["algorithm"], found["source"]) == (kind, "the hub's cache")
    blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    refused(run, 3, f"its {kind} is ", str(link))


def test_broken_files(run: InProcess) -> None:
    path = write_tiny(run.home / "tiny.gguf").path
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    refused(run, 3, "past the end of the file", str(path))
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    refused(run, 3, str(path), str(path))
    path.write_bytes(b"hello")
    refused(run, 3, str(path), str(path))
    refused(run, 3, "cannot be read: No such file", str(run.home / "absent.gguf"))


def tuned(run: InProcess, *words: str) -> tuple[int, Any]:
    code, out, err = run("tune", *words, "--json")
    assert err == ""
    return code, json.loads(out)


def test_what_fits_and_its_command_lines(run: InProcess) -> None:
    path = write_tiny(run.home / "a tiny.gguf").path
    code, found = tuned(run, str(path), "--memory", "1G")
    assert code == 0
    assert found["kv_memory"] == (found["memory"] - found["weights"]) // 2
    last = found["fits"][-1]
    assert last["sequences"] == found["kv_memory"] // last["kv_bytes"]
    chat, serve = found["commands"]
    for command in (chat, serve):
        parsed = parse(shlex.split(command)[1:])
        assert parsed is not None
        assert parsed.selection is not None
        assert parsed.flags["max_model_len"] == last["context"]
    assert chat.endswith(f" -i auto {shlex.quote(str(path))}")
    assert "--port 1234" in serve
    code, out, _ = run("--kv-cache-dtype", "bf16", "tune", str(path))
    assert code == 0
    assert out.count(" --kv-cache-dtype bf16 ") == 2
    assert "KV's memory" in out
    assert "sequences that fit" in out


def test_the_longest_context_for_little_memory(run: InProcess) -> None:
    path = write_tiny(run.home / "tiny.gguf").path
    whole = tuned(run, str(path))[1]
    memory = whole["weights"] + 2 * whole["fits"][-1]["kv_bytes"]
    code, found = tuned(run, str(path), "--memory", str(memory))
    assert (code, len(found["commands"])) == (0, 1), "one sequence fits, sixteen do not"
    code, found = tuned(run, str(path), "--memory", "1K")
    assert (code, found["commands"], found["kv_memory"]) == (1, [], 0)
    code, out, _ = run("tune", str(path), "--memory", "1K")
    assert (code, "the model does not fit" in out) == (1, True)
    code, out, err = run("tune", str(path), "--memory", "much")
    assert (code, out) == (2, "")
    assert "--memory much: not a size" in err
