"""Errors for Python callers speak of arguments and calls: no option of the command line is left in any text."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mistralrs import ContextLengthError, Runner, UsageError, Which
from mistralrs.api.selectors.python_errors import in_python

ROOT = Path(__file__).parents[2] / "mistralrs"
ELSEWHERE = (
    *("server", "api/options", "api/engine_client", "adapters/tools"),  # of other programs
    "loading/merged_model.py",  # writes files for the command line
    "api/default_model.py",  # the command line's
    "api/selectors/python_errors.py",
)
MENTIONS = re.compile(r"(?<![\\w-])--[a-z]|mistralrs -i")


def texts() -> Iterator[tuple[str, str]]:
    """Every text in the package that names an option, with its place, but for docstrings."""
    for path in sorted(ROOT.rglob("*.py")):
        name = str(path.relative_to(ROOT))
        if name.startswith(ELSEWHERE):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        joined = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            if id(node) in prose or id(node) in joined:
                continue
            text = None
            if isinstance(node, ast.JoinedStr):
                text = "".join(str(part.value) if isinstance(part, ast.Constant) else "gguf" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            if text is not None and MENTIONS.search(text):
                yield f"{name}:{getattr(node, 'lineno', 0)}", text


TEXTS = dict(texts())


def test_there_are_such_texts() -> None:
    assert len(TEXTS) > 30


@pytest.mark.parametrize("place", TEXTS)
def test_no_option_of_the_command_line_is_left(place: str) -> None:
    assert not MENTIONS.search(in_python(TEXTS[place])), in_python(TEXTS[place])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ask for fewer: --threads", "ask for fewer: threads"),
        ("leave out --dtype, or use bf16", "leave out dtype, or use bf16"),
        ("--isq is for safetensors", "in_situ_quant is for safetensors"),
        ("--tokenizer-json FILE takes another one", "tokenizer_json=FILE takes another one"),
        ("give --gqa 8", "give gqa=8"),
        ("load it with --max-adapters (max_adapters) 1 or more", "load it with max_adapters 1 or more"),
        ("this command works: mistralrs -i gguf -f 'a b.gguf'", "use Which.GGUF(quantized_filename='a b.gguf')"),
        ("this command works: mistralrs -i qwen2 -m a/b", "use Which.Qwen2(model_id='a/b')"),
        (
            "it runs with: mistralrs -i llama-ggml -m '' -f FILE",
            "use Which.LlamaGGML(quantized_model_id='', quantized_filename='FILE')",
        ),
        ("mistralrs -i auto model.gguf", "use Which.Auto(source='model.gguf')"),
        ("a--b, --no-such and pre--dtype stay", "a--b, --no-such and pre--dtype stay"),
        ("`mistralrs adapter merge` makes one", "`mistralrs adapter merge` makes one"),
    ],
)
def test_the_words_for_it(text: str, expected: str) -> None:
    assert in_python(text) == expected


def test_a_too_long_prompt_has_no_option_that_a_runner_lacks() -> None:
    hint = ContextLengthError(9, 8).hint
    assert hint is not None
    assert in_python(hint) == "shorten the prompt"


def test_the_errors_of_a_runner_are_rewritten(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"nothing")
    with pytest.raises(UsageError) as refused:
        Runner(Which.GGUF(quantized_filename=str(tmp_path / "model.gguf")), token_source="elsewhere")
    assert refused.value.message.startswith("token_source: ")
    assert str(refused.value) == refused.value.message
