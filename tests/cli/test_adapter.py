"""``adapter`` on the command line: what it shows and writes, and refusals before anything is read."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mistralrs.errors import LoadError, UsageError
from mistralrs_cli.app import main
from mistralrs_cli.arguments.command_line import parse
from mistralrs_cli.arguments.invocation import resolve
from tests.adapters.gguf_lora_of import peft_pairs, write_gguf_lora_of
from tests.adapters.peft_adapters import write_adapter
from tests.architectures import VARIANTS, write_folder
from tests.gguf_of import write_gguf
from tests.hub import Repository, serving


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("models") / "tiny-llama-1.0", VARIANTS["llama"], dtype=torch.float32)


@pytest.fixture(scope="module")
def peft(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    settings = {"rank_pattern": {"o_proj": 2}, "target_modules": ["q_proj", "o_proj"], "lora_alpha": 8}
    return write_adapter(tmp_path_factory.mktemp("adapters") / "style", folder, settings=settings)


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory, folder: Path, peft: Path) -> Path:
    path = tmp_path_factory.mktemp("adapters") / "style.gguf"
    base = {"general.base_model.0.repo_url": "https://huggingface.co/owner/base"}
    return write_gguf_lora_of(path, peft, folder, tokens=[7, 3], metadata=base)


def ask(words: list[str]) -> None:
    parsed = parse(words)
    assert parsed is not None
    resolve(parsed)


# inspect


def test_inspect_a_gguf_file(gguf_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adapter", "inspect", str(gguf_file)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = [line.split(maxsplit=1) for line in out.splitlines() if line]
    assert lines[0][1].startswith(f"{gguf_file} (GGUF version 3, ")
    assert lines[1:] == [
        ["kind", "aLoRA"],
        ["base", "owner/base"],
        ["architecture", "llama"],
        ["rank", "2, 4"],
        ["alpha", "8"],
        ["parameters", "3 072  F32 x 16"],
        ["memory", "6.1 kB beside its model"],
        ["invoked", "by      the tokens 7, 3"],
        ["matrices", "8"],
        ["attn_output", "4  rank 2"],
        ["attn_q", "4  rank 4"],
    ]


def test_inspect_a_model_with_adapters(folder: Path, peft: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(folder), "--lora", str(peft), "--lora", f"other={peft}", "--json"]) == 0
    sizes = dict(json.loads(capsys.readouterr().out)["memory"]["adapters"])
    assert list(sizes) == ["style", "other"]
    assert sizes["style"] == sizes["other"] >= 6144
    assert main(["inspect", str(folder), "--lora", str(peft)]) == 0
    assert "adapter       21.5 kB of memory (style)" in capsys.readouterr().out.splitlines()
    assert main(["inspect", str(folder), "--lora", f"a,b={peft}"]) == 2
    assert "a,b" in capsys.readouterr().err


def test_inspect_a_model_with_an_adapter_of_another(
    folder: Path, peft: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_folder(tmp_path / "other", VARIANTS["phi2"])
    assert main(["inspect", str(other), "--lora", str(peft)]) == 3
    assert "base_model_name_or_path" in capsys.readouterr().err


def test_inspect_a_folder_of_peft(folder: Path, peft: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adapter", "inspect", str(peft), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    places = found.pop("places")
    assert found == {
        "path": str(peft),
        "container": "PEFT",
        "kind": "LoRA",
        "base_model": str(folder),
        "architecture": None,
        "ranks": [2, 4],
        "alpha": 8.0,
        "matrices": 8,
        "types": [["F32", 16]],
        "invocation_tokens": [],
        "extras": [],
        "parameters": 3072,
        "file_bytes": (peft / "adapter_model.safetensors").stat().st_size,
        "slot_bytes": 2 * 3072,
    }
    assert sorted((each["name"], each["matrices"], each["ranks"]) for each in places) == [
        ("o_proj", 4, [2]),
        ("q_proj", 4, [4]),
    ]


def test_inspect_says_what_an_adapter_has_besides(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"use_dora": True, "use_rslora": True, "modules_to_save": ["lm_head"], "r": 2}
    path = write_adapter(tmp_path / "dora", folder, settings=settings)
    assert main(["adapter", "inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert "LoRA with DoRA" in out
    assert "beside its model" not in out  # modules_to_save acts only where it is merged
    assert "use_rslora, modules_to_save" in out


def test_inspect_what_is_no_adapter(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_gguf(tmp_path / "model.gguf", folder)
    assert main(["adapter", "inspect", str(model)]) == 3
    assert "is a model, not a LoRA adapter" in capsys.readouterr().err
    assert main(["adapter", "inspect", str(folder)]) == 3
    assert "has no adapter: neither adapter_config.json nor a GGUF file" in capsys.readouterr().err


def test_an_adapter_given_as_a_model(gguf_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(gguf_file)]) == 3
    err = capsys.readouterr().err
    assert "is a LoRA adapter, not a model" in err
    command = err.partition("mistralrs ")[2].partition(" shows it")[0].split()
    assert main(command) == 0


def test_both_files_of_peft_come_from_the_hub(
    peft: Path,
    gguf_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = {path.name: path.read_bytes() for path in peft.iterdir()}
    repositories = {
        "owner/peft": Repository(files),
        "owner/gguf": Repository({"a.gguf": gguf_file.read_bytes()}),
        "owner/both": Repository({"a.gguf": gguf_file.read_bytes(), "b.gguf": b""}),
    }
    with serving(repositories, monkeypatch, tmp_path / "hub"):
        assert main(["adapter", "inspect", "owner/peft"]) == 0
        assert "PEFT" in capsys.readouterr().out
        assert main(["adapter", "inspect", "owner/gguf"]) == 0
        assert "GGUF version 3" in capsys.readouterr().out
        assert main(["adapter", "inspect", "owner/both"]) == 3
        assert "has several adapters: a.gguf, b.gguf" in capsys.readouterr().err
        assert main(["adapter", "inspect", "owner/both", "-f", "a.gguf"]) == 0


# convert


@pytest.mark.parametrize("form", ["folder", "GGUF"])
def test_there_and_back(
    form: str, folder: Path, peft: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = folder if form == "folder" else write_gguf(tmp_path / "tiny-llama-1.0.gguf", folder)
    file, back = tmp_path / "style.gguf", tmp_path / "back"
    assert main(["adapter", "convert", str(peft), "--to", "gguf", "--base", str(base), "--out", str(file)]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"{file}: {file.stat().st_size / 1000:.1f} kB\n"
    words = ["adapter", "convert", str(file), "--to", "peft", "--base", str(base), "--out", str(back)]
    assert main(words) == 0
    assert sorted(path.name for path in back.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    before, after = peft_pairs(peft), peft_pairs(back)
    assert before.keys() == after.keys()
    settings = json.loads((back / "adapter_config.json").read_text(encoding="utf-8"))
    assert settings["base_model_name_or_path"] == "tiny-llama-1.0"
    assert settings["target_modules"] == ["o_proj", "q_proj"]
    for module, (a, b) in before.items():
        assert torch.equal(after[module][0], a)
        rank, alpha = len(a), settings["alpha_pattern"].get(module, settings["lora_alpha"])
        torch.testing.assert_close(after[module][1] * (alpha / rank), b * (8 / rank))
    capsys.readouterr()
    assert main(words) == 2
    assert "--force" in capsys.readouterr().err
    (back / "README.md").touch()
    assert main([*words, "--force"]) == 0
    assert (back / "README.md").exists()
    assert load_file(back / "adapter_model.safetensors").keys() == load_file(peft / "adapter_model.safetensors").keys()


def test_an_adapter_for_another_model(peft: Path, gguf_file: Path, tmp_path: Path) -> None:
    other = write_folder(tmp_path / "gemma", VARIANTS["gemma"])
    for source, to, out in ((peft, "gguf", "a.gguf"), (gguf_file, "peft", "a")):
        words = ["adapter", "convert", str(source), "--to", to, "--base", str(other), "--out", str(tmp_path / out)]
        assert main(words) == 3
        assert not (tmp_path / out).exists()


def test_what_has_the_format_already(folder: Path, peft: Path, gguf_file: Path, tmp_path: Path) -> None:
    for source, to, out in ((gguf_file, "gguf", "a.gguf"), (peft, "peft", "a")):
        words = ["adapter", "convert", str(source), "--to", to, "--base", str(folder), "--out", str(tmp_path / out)]
        assert main(words) == 3
        assert not (tmp_path / out).exists()


def test_an_output_that_stays_whole(folder: Path, peft: Path, tmp_path: Path) -> None:
    """A source that turns out to be damaged leaves what was there."""
    broken, out = tmp_path / "broken", tmp_path / "out.gguf"
    shutil.copytree(peft, broken)
    data = (broken / "adapter_model.safetensors").read_bytes()
    (broken / "adapter_model.safetensors").write_bytes(data[:-1])
    out.write_bytes(b"before")
    words = ["adapter", "convert", str(broken), "--to", "gguf", "--base", str(folder), "--out", str(out), "--force"]
    assert main(words) == 3
    assert out.read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "out.gguf"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["adapter"], "missing command"),
        (["adapter", "show", "x"], "no such command: show"),
        (["adapter", "inspect"], "missing"),
        (["adapter", "inspect", "./absent"], "./absent"),
        (["adapter", "convert", "."], "'--to'"),
        (["adapter", "convert", ".", "--to", "onnx", "--base", ".", "--out", "a"], "'onnx'"),
        (["adapter", "convert", ".", "--to", "gguf", "--base", ".", "--out", "a.bin"], "a.bin is to be a GGUF file"),
        (["adapter", "convert", ".", "--to", "peft", "--base", ".", "--out", "a.gguf"], "a.gguf is to be a folder"),
        (["adapter", "convert", ".", "--to", "gguf", "--base", ".", "--out", "there.gguf"], "is there already"),
        (["adapter", "convert", ".", "--to", "peft", "--base", ".", "--out", "there", "--force"], "there is a file"),
        (["adapter", "convert", ".", "--to", "gguf", "--base", ".", "--out", "absent/a.gguf"], "absent is no folder"),
        (["-i", "adapter", "inspect", "."], "-i and adapter exclude each other"),
        (["--isq", "q4_k", "adapter", "inspect", "."], "--isq needs -i"),
    ],
)
def test_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("there.gguf", "there"):
        (tmp_path / name).touch()
    with pytest.raises((UsageError, LoadError)) as refused:
        ask(words)
    assert said in refused.value.message
    assert refused.value.hint


def test_neither_help_nor_inspecting_imports_what_is_slow(gguf_file: Path, peft: Path) -> None:
    program = "import sys; from mistralrs_cli.app import main; code = main(sys.argv[1:])\n"
    program += "sys.exit(code or 9 * bool({'torch', 'peft', 'transformers'} & sys.modules.keys()))"
    for words in (["adapter", "--help"], ["adapter", "inspect", str(gguf_file)], ["adapter", "inspect", str(peft)]):
        done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
