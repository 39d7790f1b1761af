"""A chat with a program, in JSON lines."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cli.program import Program


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def turns(program: Program, *lines: object, words: tuple[str, ...] = ()) -> tuple[int, list[dict[str, Any]]]:
    stdin = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines).encode()
    code, out, err = program("--chat-jsonl", *words, stdin=stdin)
    assert err == ""
    return code, [json.loads(line) for line in out.splitlines()]


def test_turns_of_a_conversation(program: Program) -> None:
    code, found = turns(
        program,
        user("a"),
        "",
        {"role": "system", "content": "late"},
        user("messages"),
        {"messages": [user("x"), {"role": "assistant", "content": "y"}, user("messages")]},
        user("messages"),
        words=("--system", "be brief", "--seed", "3"),
    )
    assert code == 0
    assert [each["line"] for each in found] == [1, 4, 5, 6]
    assert {(each["role"], each["finish_reason"], each["seed"]) for each in found} == {("assistant", "stop", 3)}
    assert found[0]["content"] == "you said: a"
    assert set(found[0]) == {"line", "role", "content", "finish_reason", "usage", "timings", "seed", "model"}
    contents = [[each["content"] for each in json.loads(turn["content"])] for turn in found[1:]]
    assert contents[0] == ["be brief", "a", "you said: a", "late", "messages"]
    assert contents[1] == ["x", "y", "messages"]
    assert contents[2] == ["x", "y", "messages", found[2]["content"], "messages"]


def test_errors_are_objects_and_leave_the_conversation(program: Program) -> None:
    bad = [
        "no json",
        "[1]",
        {"role": "user"},
        {"content": "x"},
        {"role": "user", "content": 3},
        {"messages": []},
        {"messages": [3]},
        {"messages": [user("x")], "more": 1},
        user("fail"),
        user("too-long"),
        {"messages": [user("fail")]},
    ]
    code, found = turns(program, user("a"), *bad, user("messages"))
    assert code == 0
    assert [each["line"] for each in found] == list(range(1, 14))
    assert all(each["error"]["message"] for each in found[1:-1])
    assert all(each["error"]["hint"] for each in found[1:9])
    assert [each["content"] for each in json.loads(found[-1]["content"])] == ["a", "you said: a", "messages"]


def test_an_answer_comes_before_the_next_line(program: Program) -> None:
    with program.start("--chat-jsonl", stdin=subprocess.PIPE, FAKE_SAYS_BEGUN="1") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        for text in ("a", "b"):
            process.stdin.write(json.dumps(user(text)).encode() + b"\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["content"] == f"you said: {text}"
        process.stdin.write(json.dumps(user("slow")).encode() + b"\n")
        process.stdin.flush()
        assert [process.stderr.readline() for _ in range(4)] == [b"loading\n", *[b"begun\n"] * 3]
        process.send_signal(signal.SIGINT)
        answer = json.loads(process.stdout.readline())
        assert (answer["line"], answer["finish_reason"]) == (3, "cancelled")
        process.stdin.close()
        assert process.wait(60) == 130
