"""One answer as text, as its code, and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistralrs_cli.printing.answer_record import json_line
from mistralrs_cli.printing.code_block import FirstCodeBlock
from tests.cli.program import Program


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


def code_in(*pieces: str) -> str | None:
    block = FirstCodeBlock()
    code = "".join(map(block.feed, pieces)) + block.finish()
    assert block.found or not code
    return code if block.found else None


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("no code", None),
        ("", None),
        ("```", ""),
        ("```\n```", ""),
        ("```py\nx = 1\n```\n", "x = 1\n"),
        ("Sure:\n\n~~~\nx\n~~~~\n```\ny\n```", "x\n"),
        ("````\n```\ninner\n```\n````\n", "```\ninner\n```\n"),
        ("```\n~~~\n```", "~~~\n"),
        ("```not a fence``` `x`\n```\nx\n```", "x\n"),
        ("1. so:\n   ```sh\n   ls\n     -l\n\n   ```\n", "ls\n  -l\n\n"),
        ("```py\ncut off", "cut off"),
        ("```py\ncut off\n", "cut off\n"),
        ("```\r\nx\r\n```\r\n", "x\r\n"),
        ("```\n``` not closed\n```  \n", "``` not closed\n"),
        ("text ```\nx\n```\ny\n", "y\n"),
    ],
)
def test_the_first_block(text: str, code: str | None) -> None:
    assert code_in(text) == code


@settings(deadline=None)
@given(st.text("`~ \nx", max_size=60), st.data())
def test_pieces_make_no_difference(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert code_in(*pieces) == code_in(text)


def test_json_is_one_object(program: Program) -> None:
    code, out, err = program("--prompt", "escape", "--json", "--seed", "7")
    assert (code, err, out.count("\n")) == (0, "", 1)
    assert json.loads(out) == {
        "text": "a\x1b]0;title\x07b\x1b[31mc\x9b2Jd\te\r\n\x1b",
        "finish_reason": "stop",
        "usage": {
            "prompt_tokens": 2000,
            "completion_tokens": 4,
            "total_tokens": 2004,
            "prompt_tokens_details": {"cached_tokens": 1812},
        },
        "timings": {"prompt_s": 0.5, "completion_s": 0.25, "first_token_s": 0.6},
        "seed": 7,
        "model": "Fake\x1b[31m-1B",
    }
    assert json.loads(program("--prompt", "long", "--json")[1])["finish_reason"] == "length"


def test_json_says_every_character_in_any_encoding(program: Program) -> None:
    for encoding in ("utf-8", "latin-1"):
        with program.start("--prompt", "x ä€😀", "--json", PYTHONUTF8="0", PYTHONIOENCODING=encoding) as process:
            assert process.stdout is not None
            out = process.stdout.read()
        assert json.loads(out.decode(encoding))["text"] == "you said: x ä€😀"
        assert ("😀".encode() in out) == (encoding == "utf-8")
    assert json.loads(json_line({"text": "half \ud83d"})) == {"text": "half \ud83d"}
    assert json_line({"text": "half \ud83d"}).isascii()


def test_jsonl_has_an_object_for_each_copy(program: Program) -> None:
    words = ["--jsonl", "--prompt-concurrency", "3", "--seed", "5"]
    code, out, _ = program("--prompt", "x", *words)
    assert (code, [json.loads(line)["seed"] for line in out.splitlines()]) == (0, [5, 6, 7])
    code, out, err = program("--prompt", "fail", *words)
    failed = {"text": "half an ", "error": {"message": "the engine broke", "hint": "try again"}}
    assert (code, [json.loads(line) for line in out.splitlines()]) == (1, [failed] * 3)
    assert err.count("error: the engine broke") == 3


@pytest.mark.parametrize(
    ("words", "code", "out", "err"),
    [
        (["--prompt", "x\n```\ny\n```\nz"], 0, "y\n", ""),
        (["--prompt", "code"], 0, "print(1)\n", ""),  # and does not wait for the rest
        (["--prompt", "code", "--prompt-concurrency", "2"], 0, f"print(1)\n{'=' * 23}\nprint(1)\n", ""),
        (
            ["--prompt", "x"],
            1,
            "",
            "error: the answer has no code block\nhint: without --extract-code the whole answer is shown\n",
        ),
        (["--prompt", "fail"], 1, "", "error: the engine broke\nhint: try again\n"),
    ],
)
def test_code_alone(program: Program, words: list[str], code: int, out: str, err: str) -> None:
    assert program("--extract-code", *words) == (code, out, err)


def test_code_in_json(program: Program) -> None:
    code, out, _ = program("--json", "--extract-code", "--prompt", "x\n```\ny\n```\nz")
    answer = json.loads(out)
    assert (code, answer["code"], answer["text"]) == (0, "y\n", "you said: x\n```\ny\n```\nz")
    code, out, _ = program("--json", "--extract-code", "--prompt", "x")
    answer = json.loads(out)
    assert (code, answer["code"], answer["error"]["message"]) == (1, None, "the answer has no code block")


def test_a_cut_answer_fails_where_that_is_asked_for(program: Program) -> None:
    code, out, _ = program("--prompt", "long", "--fail-on-length")
    assert (code, out) == (5, "cut here\n")
    assert program("--prompt", "long")[0] == 0
    assert program("--prompt", "x", "--fail-on-length")[0] == 0
    assert program("-i", "--fail-on-length")[0] == 2
