"""The commands that the README of mistral.rs prints, as they stand there: what they load, and how far they get."""

from __future__ import annotations

import importlib
import json
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.loaded_adapters.adapter_options import AdapterOptions, AdapterSource
from mistralrs.api.local_model import locate
from mistralrs.errors import UsageError
from mistralrs_cli.app import main
from mistralrs_cli.arguments.command_line import parse
from mistralrs_cli.arguments.invocation import Invocation, resolve
from mistralrs_cli.commands.serve import ServeJob
from tests.cli.terminal import ROOT
from tests.hub import Repository, serving

ORDER = "orderings/xlora-paper-ordering.json"
ZEPHYR, ZEPHYR_GGUF = "HuggingFaceH4/zephyr-7b-beta", "TheBloke/zephyr-7B-beta-GGUF"
X_LORA = f"./mistralrs-server --port 1234 x-lora-mistral -o {ORDER} -m {ZEPHYR} -x lamm-mit/x-lora"
LORA_GGUF = (
    f"./mistralrs-server --port 1234 lora-mistral-gguf -o {ORDER} -t {ZEPHYR} -m {ZEPHYR_GGUF} "
    "-f zephyr-7b-beta.Q8_0.gguf -a lamm-mit/x-lora"
)
LLAMA = "-t meta-llama/Llama-2-13b-chat-hf -m TheBloke/Llama-2-13B-chat"
COMMANDS: dict[str, ModelSource] = {
    "./mistralrs-server --port 1234 --log output.log mistral": ModelSource(
        "mistral", None, "mistralai/Mistral-7B-Instruct-v0.1", None
    ),
    "./mistralrs-server -i mistral-gguf": ModelSource(
        "mistral", None, "TheBloke/Mistral-7B-Instruct-v0.1-GGUF", "mistral-7b-instruct-v0.1.Q4_K_M.gguf"
    ),
    X_LORA: ModelSource("mistral", None, ZEPHYR, None),
    LORA_GGUF: ModelSource("mistral", None, ZEPHYR_GGUF, "zephyr-7b-beta.Q8_0.gguf"),
    f"./mistralrs-server --port 1234 llama-gguf {LLAMA}-GGUF -f llama-2-13b-chat.Q4_K_M.gguf": ModelSource(
        "llama", None, "TheBloke/Llama-2-13B-chat-GGUF", "llama-2-13b-chat.Q4_K_M.gguf"
    ),
    f"./mistralrs-server --port 1234 llama-ggml {LLAMA}-GGML -f llama-2-13b-chat.ggmlv3.q4_K_M.bin": ModelSource(
        "llama", None, "TheBloke/Llama-2-13B-chat-GGML", "llama-2-13b-chat.ggmlv3.q4_K_M.bin"
    ),
    """./mistralrs-server --prompt "Hello!" mistral-gguf -t mistralai/Mistral-7B-Instruct-v0.1
    -m TheBloke/Mistral-7B-Instruct-v0.1-GGUF -f mistral-7b-instruct-v0.1.Q4_K_M.gguf""": ModelSource(
        "mistral", None, "TheBloke/Mistral-7B-Instruct-v0.1-GGUF", "mistral-7b-instruct-v0.1.Q4_K_M.gguf"
    ),
    f"""./mistralrs-server --port 1234 --log output.txt mistral-gguf -t {ZEPHYR} -m {ZEPHYR_GGUF}
    -f zephyr-7b-beta.Q5_0.gguf""": ModelSource("mistral", None, ZEPHYR_GGUF, "zephyr-7b-beta.Q5_0.gguf"),
}
PAPER = tuple(f"adapter_{number}" for number in range(1, 10))
ADAPTERS = {
    X_LORA: AdapterOptions(xlora="lamm-mit/x-lora", ordering=Path(ORDER)),
    LORA_GGUF: AdapterOptions(
        adapters=tuple(AdapterSource(name, "lamm-mit/x-lora", name) for name in PAPER),
        active=tuple((name, 1.0) for name in PAPER),
        ordering=Path(ORDER),
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_readme(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the shipped orderings are found from anywhere
    parsed = parse(shlex.split(command)[1:])
    assert parsed is not None
    task = resolve(parsed)
    assert isinstance(task, Invocation | ServeJob)
    assert task.source == COMMANDS[command]
    assert task.load.adapters == ADAPTERS.get(command, AdapterOptions())


@pytest.mark.parametrize("command", ADAPTERS)
def test_commands_with_adapters_get_as_far_as_loading(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = []

    def serve(source: ModelSource, load: LoadOptions, settings: object, **rest: object) -> int:
        loaded.append((locate(source, token_source="none"), load.adapters))
        return 0

    monkeypatch.setattr("mistralrs.server.run.serve", serve)
    files = {"config.json": json.dumps({"model_type": "mistral"}).encode(), "model.safetensors": b"w"}
    repositories = {
        ZEPHYR: Repository(files),
        ZEPHYR_GGUF: Repository({"zephyr-7b-beta.Q8_0.gguf": b"w"}),
    }
    with serving(repositories, monkeypatch, tmp_path / "hub"):
        assert main(shlex.split(command)[1:]) == 0
    [(path, adapters)] = loaded
    assert path.exists()
    assert adapters == ADAPTERS[command]


@pytest.mark.parametrize(
    "words", [["--device", "cuda", "-i"], ["--num-device-layers", "10", "-i"], ["-i", "llama", "--features", "metal"]]
)
def test_an_option_for_a_gpu_is_refused_with_its_reason(words: list[str]) -> None:
    with pytest.raises(UsageError, match="no such option") as refused:
        parse(words)
    assert refused.value.hint == "there is no GPU backend yet; without it everything runs on the CPU"


# The names of the programs


def program(name: str) -> Callable[[], int]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, function = project["scripts"][name].partition(":")
    found: Callable[[], int] = getattr(importlib.import_module(module), function)
    return found


def test_the_server_s_name_is_another_one_of_the_command() -> None:
    assert program("mistralrs-server") is program("mistralrs")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--help"], 0, "Measure the speed of a model"),
        (["--version"], 0, "mistralrs "),
        (["-p", "0", "-n", "0", "mistral-gguf"], 2, "-p 0 and -n 0 leave nothing to measure"),
        (["-p", "512", "-n", "128", "-c", "1,x", "-r", "5", "mistral-gguf"], 2, "--concurrency 1,x: not a list"),
        (["bart"], 2, "no such command: bart"),
    ],
)
def test_the_benchmark_s_name(words: list[str], code: int, said: str) -> None:
    entry = program("mistralrs-bench")
    call = f"import sys; from {entry.__module__} import {entry.__name__}; sys.exit({entry.__name__}())"
    done = subprocess.run([sys.executable, "-c", call, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr
