"""The cost of a start: a command line is resolved before anything heavy is imported."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer

import mistralrs
from mistralrs_cli.arguments.command_line import command_tree, row_command
from mistralrs_cli.arguments.plain_values import plain_value
from tests.cli.terminal import ROOT, environment

HEAVY = (
    "torch", "numpy", "tokenizers", "gguf", "huggingface_hub", "jinja2", "prompt_toolkit", "rich", "asyncio", "fastapi",
    "uvicorn",
)  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["gguf", "--help"],
        ["bench", "--help"],
        [],
        ["-i", "mistral-ggf"],
        ["-i", "--prompt", "x"],
        ["--prompt", "x", "--top-p", "7"],
        ["-i", "gguf", "-f", "/absent.gguf"],
        ["--port", "1234", "--isolate-keys"],
        ["--port", "1234", "gguf", "-f", "/absent.gguf"],
    ],
    ids=" ".join,
)
def test_nothing_heavy_is_imported(tmp_path: Path, arguments: list[str]) -> None:
    code = f"import sys; from mistralrs_cli.app import main; main({arguments!r}); "
    code += f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment(tmp_path), cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.stderr.splitlines()[-1] == "[]"


def test_plain_values_are_read_without_pydantic(tmp_path: Path) -> None:
    words = ["--prompt", "x", "--max-tokens", "5", "--temperature", "0.5", "--stop", "y", "gguf", "-m", "a", "-f", "b"]
    code = f"import sys; from mistralrs_cli.arguments.command_line import parse; print(parse({words!r}).flags, "
    code += "'pydantic' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment(tmp_path), cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.stdout == "{'prompt': 'x', 'temperature': 0.5, 'max_tokens': 5, 'stop': ('y',)} False\n"


VALUES = (
    None,
    "",
    "x",
    "0",
    "1",
    "-3",
    "+1",
    " 1",
    "007",
    "0.5",
    "-0.0",
    ".5",
    "1e3",
    "1_0",
    "\u0663",
    "9" * 16,
    "nan",
)


@pytest.mark.parametrize("name", [None, "gguf", "x-lora-mistral", "auto"])
def test_a_plain_value_is_what_validation_makes_of_it(name: str | None) -> None:
    command = command_tree() if name is None else row_command(name)
    context = typer.Context(command)
    compared = 0
    for param in command.get_params(context):
        if not isinstance(param.process_value, functools.partial) or param.callback is not None:
            continue
        _, descriptor, validate = param.process_value.args
        for text in VALUES:
            value = [text, "x"] if param.multiple and text is not None else text
            found = plain_value(value, descriptor.annotation, descriptor.parameter_info, many=param.multiple)
            if found is None:
                continue
            validated = validate(context, value)
            assert (found[0], type(found[0])) == (validated, type(validated)), (param.name, value)
            compared += 1
    assert compared > 20


def test_importing_the_library_is_light() -> None:
    modules = "mistralrs, mistralrs.api.local_model, mistralrs.api.selectors.model_selector"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ}, capture_output=True, text=True, timeout=60
    )
    assert result.stdout == "False\n"


def test_version_is_the_project_s() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert mistralrs.__version__ == project["version"]


def test_public_names_are_there() -> None:
    assert all(hasattr(mistralrs, name) for name in mistralrs.__all__)


@pytest.mark.parametrize("module", ["mistralrs_cli.app", "mistralrs_cli.arguments.command_line"])
def test_ctrl_c_while_it_is_imported_ends_it_quietly(tmp_path: Path, module: str) -> None:
    code = f"""
import os, signal, sys, time

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)

sys.meta_path.insert(0, Interrupting())
from mistralrs_cli.start import start
start()
"""
    result = subprocess.run(
        [sys.executable, "-c", code, "--help"], env=environment(tmp_path), cwd=ROOT, capture_output=True, timeout=60
    )
    assert (result.returncode, result.stdout, result.stderr) == (130, b"", b"")
