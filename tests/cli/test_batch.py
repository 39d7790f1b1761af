"""Many prompts from a file: their templates, their order, and the file of answers that a later run continues."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shlex
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mistralrs.errors import RequestError, UsageError
from mistralrs_cli.arguments.command_line import parse
from mistralrs_cli.arguments.invocation import resolve
from mistralrs_cli.prompt_batch.prompt_lines import prompt_lines
from mistralrs_cli.prompt_batch.prompt_template import PromptTemplate
from mistralrs_cli.prompt_batch.result_file import ResultFile
from mistralrs_cli.terminal.stdin_text import MAX_CHARACTERS
from tests.cli.program import Program
from tests.cli.terminal import CTRL_C, ROOT, Terminal, environment
from tests.cli.test_streams import wait_for

SEPARATOR = "=" * 23 + "\n"
LINES = b"a\n\ntoo-long x\nfail\nb\n"


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "answers.jsonl"


def records(text: str | bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("template", "line", "prompt"),
    [
        ("{line}", "any text {x}", "any text {x}"),
        ("Say {line}!", "x", "Say x!"),
        ("Translate {text} to {lang}, {{so}}: {text}", '{"text": "hi", "lang": "fr"}', "Translate hi to fr, {so}: hi"),
        ("{n} {list} {none}", '{"n": 1.5, "list": ["ä", 2], "none": null}', '1.5 ["ä", 2] null'),
        ("{line} {x}", '{"x": 1}', '{"x": 1} 1'),
        ("{line} {x}", '{"x": 1, "line": "y"}', "y 1"),
        ("{two words}", '{"two words": "x"}', "x"),
    ],
)
def test_templates(template: str, line: str, prompt: str) -> None:
    parsed = PromptTemplate.parse(template)
    assert parsed.prompt(line) == prompt
    assert PromptTemplate.parse(str(parsed)) == parsed


@pytest.mark.parametrize("template", ["", "x", "{{line}}", "{", "}", "{}", "{0}", "{a.b}", "{a[0]}", "{a!r}", "{a:>9}"])
def test_templates_that_are_none(template: str) -> None:
    with pytest.raises(UsageError) as refused:
        PromptTemplate.parse(template)
    assert refused.value.hint


@pytest.mark.parametrize(
    ("template", "line", "said"),
    [
        ("{x}", "text", "is not JSON"),
        ("{x}", "[1]", "is not a JSON object"),
        ("{x}", '{"y": 1}', "has no field 'x'"),
        ("{x}", '{"x": " "}', "the prompt is empty"),
    ],
)
def test_lines_without_a_prompt(template: str, line: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        PromptTemplate.parse(template).prompt(line)


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"\n \n", []),
        (b"a", [(1, "a")]),
        (b"\na\r\nb\n\nc", [(2, "a"), (3, "b"), (5, "c")]),
        ("\ufeffä\nb\n".encode("utf-16-le"), [(1, "ä"), (2, "b")]),
        (b"bad \xff\n", [(1, "bad \ufffd")]),
    ],
)
def test_lines_of_a_file(tmp_path: Path, data: bytes, lines: list[tuple[int, str]]) -> None:
    path = tmp_path / "lines"
    path.write_bytes(data)
    with path.open(encoding="utf-8") as file:
        found = list(prompt_lines(file, PromptTemplate.parse("{line}"), name="lines"))
    assert [(each.number, each.prompt) for each in found] == lines
    assert all(each.error is None for each in found)


def test_a_line_that_no_model_can_read_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"a\n" + b"x" * (MAX_CHARACTERS + 1) + b"\n" + b"y" * MAX_CHARACTERS + b"\nb\n")
    with path.open(encoding="utf-8") as file:
        found = list(prompt_lines(file, PromptTemplate.parse("{line}"), name="lines"))
    assert [(each.number, each.error is None, len(each.prompt)) for each in found] == [
        (1, True, 1),
        (2, False, MAX_CHARACTERS),
        (3, True, MAX_CHARACTERS),
        (4, True, 1),
    ]


def test_answers_in_order_on_stdout(program: Program, tmp_path: Path) -> None:
    code, out, err = program("--prompt-file", "-", stdin=LINES)
    assert (code, out) == (1, SEPARATOR.join(["you said: a\n", "", "half an \n", "you said: b\n"]))
    assert err.splitlines()[0].startswith("error: line 3: This model's maximum context")
    assert "error: line 4: the engine broke" in err
    assert err.splitlines()[-1] == "2 of 4 lines failed"
    (tmp_path / "lines").write_bytes(b"x\ny\n")
    assert program("--prompt-file", str(tmp_path / "lines")) == (0, f"you said: x\n{SEPARATOR}you said: y\n", "")
    assert program("--prompt-file", "-", stdin=b"") == (0, "", "")


def test_records_on_stdout(program: Program) -> None:
    words = ["--prompt-file", "-", "--jsonl", "--seed", "7", "--system", "be brief"]
    code, out, err = program(*words, stdin=LINES)
    found = records(out)
    assert (code, err) == (1, "2 of 4 lines failed\n")
    assert [(each["line"], each.get("text"), "error" in each) for each in found] == [
        (1, "you said: a", False),
        (3, None, True),
        (4, "half an ", True),
        (5, "you said: b", False),
    ]
    assert {each["seed"] for each in found} == {7}
    assert len({each["digest"] for each in found}) == 4
    assert found[0]["finish_reason"] == "stop"
    template = ["--template", "sampling {x}"]
    found = records(program(*words, *template, stdin=b'{"x": 1}\n{"y": 1}\n')[1])
    assert json.loads(found[0]["text"])["seed"] == 7
    assert found[1]["error"] == {"message": "the line has no field 'x'", "hint": "it has 'y'"}


def test_code_of_each_line(program: Program) -> None:
    words = ["--prompt-file", "-", "--extract-code", "--template", "x\n{code}"]
    code, out, err = program(*words, stdin=b'{"code": "```\\ny\\n```"}\n{"code": ""}\n{"code": "```\\nz"}\n')
    assert (code, out) == (1, f"y\n{SEPARATOR}{SEPARATOR}z\n")
    assert "error: line 2: the answer has no code block" in err


def test_a_grammar_holds_for_every_line(program: Program) -> None:
    words = ["--prompt-file", "-", "--jsonl", "--regex", "[ab]", "--seed", "1"]
    found = records(program(*words, stdin=b"grammar\n")[1])
    assert json.loads(found[0]["text"]) == {"kind": "regex", "text": "[ab]"}
    other = records(program(*words[:3], "--choice", "a", "--seed", "1", stdin=b"grammar\n")[1])
    assert other[0]["options"] != found[0]["options"]
    turn = program("--chat-jsonl", "--regex", "[ab]", stdin=b'{"role": "user", "content": "grammar"}\n')[1]
    assert json.loads(json.loads(turn)["content"]) == {"kind": "regex", "text": "[ab]"}


@pytest.mark.parametrize("words", [["--jsonl"], ["--out", "answers.jsonl"]])
def test_a_slow_pipe_gets_its_answers_at_once(program: Program, tmp_path: Path, words: list[str]) -> None:
    words = [word if word[0] == "-" else str(tmp_path / word) for word in words]
    with program.start("--prompt-file", "-", *words, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for number in (1, 2, 3):
            process.stdin.write(b"x\n")
            process.stdin.flush()
            if words == ["--jsonl"]:
                assert json.loads(process.stdout.readline())["line"] == number
            else:
                while len(records(Path(words[1]).read_bytes() if Path(words[1]).exists() else b"")) < number:
                    assert process.poll() is None
        process.stdin.close()
        assert process.wait(60) == 0


def fill(pipe: int, line: bytes) -> int:
    """Writes lines until the pipe is full; returns the number of bytes."""
    written = 0
    with contextlib.suppress(BlockingIOError):
        while written < 100 * len(line):
            written += os.write(pipe, line)
    return written


def test_an_endless_pipe_is_read_as_far_as_needed(program: Program) -> None:
    with program.start("--prompt-file", "-", "--max-seqs", "2", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        pipe = process.stdin.fileno()
        os.set_blocking(pipe, False)
        line = b"prefill" + b" x" * 4000 + b"\n"
        written = fill(pipe, line)
        assert select.select([], [pipe], [], 60)[1]  # the program reads
        while select.select([], [pipe], [], 1)[1]:
            written += fill(pipe, line)
            assert written < 100 * len(line), "the pipe was read although no answer ends"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, b"", b"stopped after line 0\n")


def test_a_stopped_run_goes_on(program: Program, out: Path) -> None:
    words = ["--prompt-file", "-", "--out", str(out)]
    lines = b"a\nb\nslow\nc\n"
    with program.start(*words, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(lines)
        process.stdin.close()
        while out.exists() is False or len(records(out.read_bytes())) < 2:
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert process.wait(60) == 130
        assert process.stderr.read() == b"stopped after line 2; the same command goes on from there\n"
    begun = out.read_bytes()
    whole = begun.splitlines(keepends=True)
    # a kill in the midst of a line
    out.write_bytes(begun[:-5])
    code, stdout, err = program(*words, stdin=lines.replace(b"slow", b"fail"))
    assert (code, stdout) == (1, "")
    assert "an answer that was cut short is removed" in err
    assert err.endswith("1 of 4 lines failed\n")
    assert out.read_bytes().splitlines(keepends=True)[0] == whole[0]
    found = records(out.read_bytes())
    assert [(each["line"], each.get("text")) for each in found] == [
        (1, "you said: a"),
        (2, "you said: b"),
        (3, "half an "),
        (4, "you said: c"),
    ]
    assert len({each["seed"] for each in found}) == 1  # the first run's, drawn at random
    # a complete file is left as it is, and its failures still count
    written = out.stat().st_mtime_ns
    assert program(*words, stdin=lines.replace(b"slow", b"fail"))[0] == 1
    assert out.stat().st_mtime_ns == written
    # more lines are answered
    assert program(*words, stdin=lines.replace(b"slow", b"fail") + b"d\n")[0] == 1
    assert [each["line"] for each in records(out.read_bytes())] == [1, 2, 3, 4, 5]


def test_another_input_or_other_options_are_refused(program: Program, out: Path) -> None:
    words = ["--prompt-file", "-", "--out", str(out)]
    assert program(*words, stdin=b"a\nb\n")[0] == 0
    before = out.read_bytes()
    for more, stdin, said in (
        (["--temperature", "0.5"], b"a\nb\n", "other options"),
        (["--seed", "3"], b"a\nb\n", "other options"),
        (["--template", "x {line}"], b"a\nb\n", "other options"),
        (["-c", "x"], b"a\nb\n", "other options"),
        (["--think", "on"], b"a\nb\n", "other options"),
        ([], b"\na\nb\n", "answers another line 1 than that of stdin"),
        ([], b"a\n", "has an answer to line 2, which stdin does not have"),
    ):
        code, stdout, err = program(*words, *more, stdin=stdin)
        assert (code, stdout) == (2, "")
        assert said in err
        assert "--overwrite" in err
        assert out.read_bytes() == before
    assert program(*words, "--overwrite", "--seed", "3", stdin=b"c\n")[0] == 0
    assert [each["text"] for each in records(out.read_bytes())] == ["you said: c"]


def record(number: int) -> bytes:
    return json.dumps({"line": number, "digest": "d", "options": "o", "seed": 1, "text": "t"}).encode() + b"\n"


@pytest.mark.parametrize(
    ("rest", "kept"),
    [
        (b"", 2),
        (record(3)[:-1], 2),
        (record(3)[:30], 2),
        (b'{"li', 2),
        (b"\0" * 100, 2),
        (b'{"line": 3, "text": "to\0\0\0\n', 2),
    ],
)
def test_a_torn_end_is_removed(out: Path, rest: bytes, kept: int) -> None:
    out.write_bytes(record(1) + record(2) + rest)
    with ResultFile(out, overwrite=False) as file:
        assert [each.line for each in file.records()] == list(range(1, kept + 1))
        file.append({"line": 3, "digest": "d", "options": "o", "seed": 1, "text": "ä"})
    found = out.read_bytes()
    assert found.startswith(record(1) + record(2) + b'{"line": 3,')
    assert records(found)[2]["text"] == "ä"


@pytest.mark.parametrize(
    "content",
    [
        b"a user's notes",
        b"a user's notes\n",
        record(1) + b"a note\n" + record(2),
        record(1) + b"a note",
        b'{"line": 1, "of": "another program"}\n',
        record(1) + b'{"line": 2, "of": "another program"}\n',
        b"GGUF\0\0\0",
        b"[]\n",
        b'{"line": "1", "digest": "d", "options": "o", "seed": 1}\n',
    ],
)
def test_a_file_of_something_else_is_left_alone(out: Path, content: bytes) -> None:
    out.write_bytes(content)
    with ResultFile(out, overwrite=False) as file, pytest.raises(UsageError, match="is no answer of a batch"):
        list(file.records())
    assert out.read_bytes() == content


def test_a_file_of_answers_needs_no_stdout(tmp_path: Path, program: Program, out: Path) -> None:
    command = shlex.join(program.command("--prompt-file", "-", "--out", str(out)))
    closed = ["/bin/sh", "-c", f"printf 'a\nb\n' | {command} >&-"]
    done = subprocess.run(closed, env=environment(tmp_path), cwd=ROOT, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert [each["text"] for each in records(out.read_bytes())] == ["you said: a", "you said: b"]


def test_one_run_at_a_time_writes_a_file(out: Path) -> None:
    with ResultFile(out, overwrite=False), pytest.raises(UsageError, match="another run writes"):
        ResultFile(out, overwrite=True)
    with ResultFile(out, overwrite=False) as file:
        assert list(file.records()) == []


def test_a_full_disk_is_named_and_nothing_is_lost(program: Program, out: Path) -> None:
    words = ["--prompt-file", "-", "--out", str(out), "--seed", "1"]
    lines = b"".join(b"line %d\n" % number for number in range(40))
    process = subprocess.run(
        ["/bin/sh", "-c", 'ulimit -f 4; exec "$@"', "sh", *program.command(*words)],
        input=lines,
        env=environment(program.home),
        cwd=ROOT,
        capture_output=True,
        timeout=60,
    )
    err = process.stderr.decode()
    assert process.returncode == 1
    assert f"error: {out} cannot be written: File too large" in err
    kept = records(out.read_bytes())
    assert 0 < len(kept) < 40
    assert err.endswith(f"stopped after line {len(kept)}; the same command goes on from there\n")
    assert program(*words, stdin=lines)[0] == 0
    assert [each["text"] for each in records(out.read_bytes())] == [f"you said: line {n}" for n in range(40)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompt-file", "/absent"], "/absent does not exist"),
        (["--prompt-file", "/"], "is a folder"),
        (["--prompt-file", "-", "--out", "/absent/x"], "/absent is no folder"),
        (["--prompt-file", "-", "--out", "/dev/null"], "is no regular file"),
        (["--prompt-file", "-", "--overwrite"], "--overwrite is for the file of --out"),
        (["--prompt-file", "-", "--out", "x", "--jsonl"], "--out has JSON lines anyway"),
        (["--prompt-file", "-", "--json"], "--json needs --prompt"),
        (["--prompt-file", "-", "--template", "x"], "--template has no place"),
        (["--prompt-file", "-", "--prompt", "x"], "--prompt and --prompt-file exclude each other"),
        (["--prompt-file", "-", "--prompt-concurrency", "2"], "--prompt-concurrency needs --prompt"),
        (["--prompt", "x", "--out", "x"], "--out needs --prompt-file"),
        (["--prompt", "x", "--json", "--jsonl"], "--json and --jsonl exclude each other"),
        (["--prompt", "x", "--json", "--prompt-concurrency", "2"], "--json is for one answer"),
        (["-i", "--json"], "--json needs --prompt"),
        (["-i", "--chat-jsonl"], "-i and --chat-jsonl exclude each other"),
        (["--prompt-file", "lines", "--out", "./lines"], "is the file of the prompts"),
    ],
)
def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lines").write_bytes(b"x\n")
    parsed = parse(words)
    assert parsed is not None
    with pytest.raises(UsageError) as refused:
        resolve(parsed)
    assert said in refused.value.message
    assert refused.value.hint
    assert (tmp_path / "lines").read_bytes() == b"x\n"


def test_sigterm_keeps_what_is_done(program: Program, out: Path) -> None:
    with program.start("--prompt-file", "-", "--out", str(out), stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(b"a\nslow\n")
        process.stdin.flush()
        while not out.exists() or not records(out.read_bytes()):
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    assert [each["line"] for each in records(out.read_bytes())] == [1]


def test_ctrl_c_ends_a_text_with_a_line_feed(program: Program) -> None:
    with program.start("--prompt-file", "-", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"slow\n")
        process.stdin.flush()
        seen = wait_for(process, b"word1 ")
        process.send_signal(signal.SIGINT)
        seen += process.stdout.read()
        assert process.wait(60) == 130
    assert seen.endswith(b"\n")


def test_progress_on_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes(b"a\nb\nfail\nprefill\n")
    words = ["--prompt-file", str(tmp_path / "lines"), "--out", str(tmp_path / "out.jsonl")]
    with Terminal(words, environment(tmp_path)) as terminal:
        terminal.child.delaybeforesend = None
        while not (tmp_path / "out.jsonl").exists() or len(records((tmp_path / "out.jsonl").read_bytes())) < 3:
            terminal.lines()
        terminal.send(CTRL_C)
        terminal.wait_for("stopped after line 3; the same command goes on from there")
        assert terminal.exit_code() == 130
        assert "1 of 3 lines failed" in terminal.lines()
