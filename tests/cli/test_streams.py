"""The program from outside: exit codes, and the stream of each output."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mistralrs import __version__
from mistralrs_cli.terminal.stdin_text import MAX_CHARACTERS
from tests.cli.program import Program
from tests.cli.terminal import ROOT, environment


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


def wait_for(process: subprocess.Popen[bytes], text: bytes) -> bytes:
    """Returns the output on stdout once ``text`` is in it."""
    assert process.stdout is not None
    seen = b""
    while text not in seen:
        piece = os.read(process.stdout.fileno(), 4096)
        assert piece, f"stdout ended with {seen!r}"
        seen += piece
    return seen


@pytest.mark.parametrize(
    ("arguments", "extra", "code", "out", "err"),
    [
        (["--version"], {}, 0, f"mistralrs {__version__}\n", ""),
        (["--prompt", "hello"], {}, 0, "you said: hello\n", ""),
        (["--prompt", "newlines"], {}, 0, "one\n\ntwo\n", ""),
        (["--prompt", "nothing"], {}, 0, "\n", ""),
        (["--prompt", "escape"], {}, 0, "a\x1b]0;title\x07b\x1b[31mc\x9b2Jd\te\r\n\x1b\n", ""),
        (["--prompt", "fail"], {}, 1, "half an \n", "error: the engine broke\nhint: try again\n"),
        (
            ["--prompt", "x", "--top-p", "2"],
            {},
            2,
            "",
            "error: --top-p 2.0 is out of range\nhint: it must be from 0 to 1\n",
        ),
        (["--prompt", "x"], {"FAKE_LOAD_ERROR": "bad file"}, 3, "", "error: bad file\nhint: take another file\n"),
        (["-i"], {"MISTRALRS_DEFAULT_MODEL": "/absent"}, 3, "", None),
        (["--prompt", "too-long"], {}, 4, "", None),
        (["--prompt", ""], {}, 4, "", None),
        (["--prompt", "-"], {}, 4, "", None),
        (["-i", "-c", "none"], {}, 4, "", None),
    ],
)
def test_exit_codes_and_streams(
    program: Program, arguments: list[str], extra: dict[str, str], code: int, out: str, err: str | None
) -> None:
    result = program(*arguments, variables=extra)
    assert result[:2] == (code, out)
    if err is None:
        lines = result[2].splitlines()
        assert len(lines) == 2
        assert lines[0].startswith("error: ")
        assert lines[1].startswith("hint: ")
    else:
        assert result[2] == err


def test_python_m_is_the_command(program: Program) -> None:
    assert program("--version", module="mistralrs_cli") == (0, f"mistralrs {__version__}\n", "")
    code, out, _ = program("help", "gguf", module="mistralrs_cli")
    assert code == 0
    assert out == program("gguf", "--help", module="mistralrs_cli")[1]
    assert "--quantized-filename" in out


def test_defects_show_a_traceback_only_when_asked(program: Program) -> None:
    code, out, err = program("--prompt", "defect")
    assert (code, out) == (1, "")
    assert err.splitlines()[0] == "error: unexpected ZeroDivisionError: a defect"
    assert "Traceback" not in err
    for arguments, extra in ((["--debug"], {}), ([], {"MISTRALRS_DEBUG": "1"})):
        code, _, err = program(*arguments, "--prompt", "defect", variables=extra)
        assert code == 1
        assert "Traceback" in err
        assert "error: unexpected ZeroDivisionError: a defect" in err


def test_stdin_is_context(program: Program) -> None:
    assert program("--prompt", "sum up", stdin=b"line 1\nline 2\n")[1] == "you said: sum up\n\nline 1\nline 2\n"
    assert program("--prompt", "sum up", stdin=b"")[1] == "you said: sum up\n"
    assert program("--prompt", "sum up", "--no-stdin", stdin=b"text")[1] == "you said: sum up\n"
    assert program("--prompt", "-", stdin=b"from a pipe\n")[1] == "you said: from a pipe\n"
    assert program("--prompt", "-", stdin=b"bad \xff byte")[1] == "you said: bad \ufffd byte\n"
    assert program("--prompt", "\ufeffsum up", stdin=b"\xef\xbb\xbftext")[1] == "you said: sum up\n\ntext\n"


def test_stdin_from_a_file_and_from_nothing(program: Program, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("in a file\n")
    with text.open("rb") as file, program.start("--prompt", "sum up", stdin=file.fileno()) as process:
        assert process.communicate(timeout=60)[0] == b"you said: sum up\n\nin a file\n"
    closed = f"{sys.executable} -m tests.cli.fake_main --prompt hello <&-"
    result = subprocess.run(closed, shell=True, env=environment(tmp_path), cwd=ROOT, capture_output=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, b"you said: hello\n")


def test_no_stdin_leaves_the_loop_its_lines(tmp_path: Path) -> None:
    loop = f'while read line; do {sys.executable} -m tests.cli.fake_main --no-stdin --prompt "$line"; done'
    result = subprocess.run(
        loop, shell=True, env=environment(tmp_path), cwd=ROOT, input=b"a\nb\n", capture_output=True, timeout=60
    )
    assert result.stdout == b"you said: a\nyou said: b\n"


def test_concurrent_answers_in_order_with_their_own_seeds(program: Program) -> None:
    code, out, err = program("--prompt", "sampling", "--prompt-concurrency", "3", "--seed", "40", "--stats")
    answers = out.split("=" * 23 + "\n")
    assert code == 0
    assert [json.loads(answer)["seed"] for answer in answers] == [40, 41, 42]
    # 3 x 2000 prompt tokens in 0.5 s each, side by side; 3 x 1 token in 0.25 s each
    assert err == "Prompt T/s = 12000.0\nCompletion T/s = 12.0\nSeed = 40\n"
    drafted = program("--prompt", "x", "--prompt-concurrency", "2", "--seed", "40", "--stats", "--draft", "4")[2]
    assert drafted.splitlines()[2:] == ["Seed = 40", "Drafts = 8/24"]
    code, out, err = program("--prompt", "fail", "--prompt-concurrency", "2")
    assert (code, err.count("error: the engine broke")) == (1, 2)


def test_a_cut_is_said(program: Program) -> None:
    """Ends by the limit, or by the end of the context before it."""
    for limit, said in (
        ("1", "stopped at 1 tokens: --max-tokens allows more"),
        ("128", "stopped at the end of the model's context"),
        ("-1", "stopped at the end of the model's context"),
    ):
        assert program("--prompt", "long", "--stats", "--max-tokens", limit)[2].splitlines()[-1] == said


def test_options_reach_the_model(program: Program, tmp_path: Path) -> None:
    arguments = ["-t", "--system", "be brief", "--stop", "END", "--seed", "9"]
    _, out, _ = program(*arguments, "--prompt", "sampling")
    sampling = json.loads(out)
    assert (sampling["truncate"], sampling["stop"], sampling["seed"]) == (True, ["END"], 9)
    _, out, _ = program(*arguments, "--prompt", "messages")
    assert json.loads(out)[0] == {"role": "system", "content": "be brief"}
    model = tmp_path / "my.gguf"
    model.touch()
    _, out, _ = program("--no-kv-cache", "--prompt", "loaded", "llama-gguf", "-m", str(tmp_path), "-f", "my.gguf")
    loaded = json.loads(out)
    assert loaded["source"] == {"architecture": "llama", "path": str(model), "repo": None, "filename": None, "gqa": 1}
    assert loaded["options"]["no_kv_cache"] is True


def test_grammars_reach_the_model(program: Program, tmp_path: Path) -> None:
    grammar = tmp_path / "g.y"
    grammar.write_text("%%\nE: E '+' E | 'x' ;\n", encoding="utf-8")
    code, out, err = program("--grammar", str(grammar), "--prompt", "grammar")
    assert (code, json.loads(out)) == (0, {"kind": "yacc", "text": "%%\nE: E '+' E | 'x' ;\n"})
    assert f"--grammar {grammar}: the grammar has 1 conflicts" in err
    code, out, err = program("--choice", "yes, I do", "--choice", "né", "-i", stdin=b"grammar\ngrammar\n")
    assert [json.loads(line) for line in out.splitlines()] == [{"kind": "choice", "text": '["yes, I do", "né"]'}] * 2
    assert (code, err) == (0, "")
    assert program("--prompt", "grammar")[1] == "null\n"
    code, out, err = program("--regex", "(?=a)", "--prompt", "hi")
    assert (code, out) == (2, "")
    assert err.startswith("error: --regex: ")


def test_piped_chat_takes_lines_as_text(program: Program) -> None:
    code, out, err = program("-i", stdin=b"/exit\n\n// b\nlong\nmessages")
    lines = out.splitlines()
    assert code == 0
    assert lines[:3] == ["you said: /exit", "you said: // b", "cut here"]
    assert [each["content"] for each in json.loads(lines[3])] == [
        *("/exit", "you said: /exit"),
        *("// b", "you said: // b"),
        *("long", "cut here"),
        "messages",
    ]
    assert err == ""
    assert program("-i", stdin=b"") == (0, "", "")
    assert program("-i", stdin="\ufeffa\r\nb\r\n".encode("utf-16-be"))[1] == "you said: a\nyou said: b\n"


def test_piped_chat_outlives_errors(program: Program) -> None:
    code, out, err = program("-i", "--stats", "--seed", "1", stdin=b"too-long x\nfail\nmessages\n")
    assert code == 0
    assert out.splitlines()[0] == "half an "
    assert json.loads(out.splitlines()[1]) == [{"role": "user", "content": "messages"}]
    assert err.count("error: ") == 2
    assert err.splitlines()[-1].endswith("seed 1")


@pytest.mark.parametrize("arguments", [["--prompt", "flood"], ["-i"], ["--help"], ["bench"]])
def test_closed_stdout_ends_quietly(program: Program, arguments: list[str]) -> None:
    process = program.start(*arguments, stdin=subprocess.PIPE, FAKE_SAYS_CLOSED="1")
    assert process.stdout is not None
    process.stdout.close()
    with process:
        assert process.stdin is not None
        process.stdin.write(b"flood\n")
        process.stdin.close()
        assert process.stderr is not None
        err = process.stderr.read().decode()
    assert process.returncode == 141
    assert [line for line in err.splitlines() if not line.startswith("bench:")] in ([], ["closed"])


def test_stdout_that_closes_in_mid_stream(program: Program) -> None:
    with program.start("--prompt", "slow") as process:
        wait_for(process, b"word1 ")
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.wait(timeout=60) == 141
        assert process.stderr.read() == b""


def test_stdout_that_was_never_open(tmp_path: Path) -> None:
    closed = f"{sys.executable} -m tests.cli.fake_main --prompt hello >&-"
    result = subprocess.run(closed, shell=True, env=environment(tmp_path), cwd=ROOT, capture_output=True, timeout=60)
    assert (result.returncode, result.stderr) == (141, b"")


def test_full_disk_is_an_error(tmp_path: Path) -> None:
    full = f"{sys.executable} -m tests.cli.fake_main --prompt hello </dev/null >/dev/full"
    result = subprocess.run(full, shell=True, env=environment(tmp_path), cwd=ROOT, capture_output=True, timeout=60)
    assert result.returncode == 1
    assert result.stderr.startswith(b"error: standard output cannot be written: No space left on device\nhint: ")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("arguments", [["--prompt", "slow"], ["-i"]])
def test_signals(program: Program, arguments: list[str], number: signal.Signals, code: int) -> None:
    with program.start(*arguments, stdin=subprocess.PIPE, FAKE_SAYS_CLOSED="1") as process:
        assert process.stdin is not None
        process.stdin.write(b"slow\n")
        process.stdin.close()
        seen = wait_for(process, b"word2 ")
        process.send_signal(number)
        assert process.stdout is not None
        assert process.stderr is not None
        seen += process.stdout.read()
        assert process.wait(timeout=60) == code
        assert seen.startswith(b"word0 word1 word2 ")
        assert b"word999" not in seen  # which comes after 50 seconds
        assert process.stderr.read() == b"closed\n"
    if number is signal.SIGINT:
        assert seen.endswith(b"\n")


@pytest.mark.parametrize("arguments", [["--prompt", "preparing", "--no-stdin"], ["--prompt", "-"], ["-i"]])
def test_ctrl_c_while_a_prompt_is_prepared(program: Program, arguments: list[str]) -> None:
    with program.start(*arguments, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(b"preparing\n")
        process.stdin.close()
        assert process.stderr.readline() == b"preparing\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=50) == 130  # the fake prepares for a minute
        assert process.stderr.read() == b""


@pytest.mark.parametrize("arguments", [["--prompt", "-"], ["--prompt", "sum up"], ["-i"]])
def test_more_than_any_model_can_read_is_refused(program: Program, arguments: list[str]) -> None:
    code, out, err = program(*arguments, stdin=b"7" * (MAX_CHARACTERS + 1))
    assert (code, out) == (4, "")
    assert err.startswith(f"error: stdin holds more than {MAX_CHARACTERS} characters")


def test_interrupted_load(program: Program) -> None:
    with program.start("--prompt", "x", "--no-stdin", FAKE_LOAD_S="60", FAKE_SAYS_BEGUN="1") as process:
        assert process.stderr is not None
        assert process.stderr.readline() == b"loading\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, b"", b"")


def test_a_slower_backend_is_said(program: Program) -> None:
    code, out, err = program("--prompt", "hello", variables={"FAKE_PASSED_OVER": "native: not built"})
    assert (code, out) == (0, "you said: hello\n")
    assert err == "WARNING mistralrs.cli: slower than it could be: native: not built\n"
    assert program("--log-level", "error", "--prompt", "hello", variables={"FAKE_PASSED_OVER": "x"})[2] == ""
    code, out, err = program("--log-json", "--prompt", "hello", variables={"FAKE_PASSED_OVER": "x"})
    assert (code, out, json.loads(err)["level"]) == (0, "you said: hello\n", "warning")


def test_bench_says_what_it_does(program: Program) -> None:
    code, out, err = program("bench", "-p", "16", "-n", "8", "-c", "1,4", "-r", "2", "--json")
    assert code == 0
    records = [json.loads(line) for line in out.splitlines()]
    assert [(each["test"], each["concurrency"]) for each in records] == [
        ("tg8", 1),
        ("pp16", 1),
        ("tg8", 4),
        ("pp16", 4),
    ]
    assert records[0] == {
        "test": "tg8",
        "concurrency": 1,
        "tok_s_median": 28.0,  # 7 tokens after the first in 0.25 s
        "tok_s_mean": 28.0,
        "tok_s_sd": 0.0,
        "tok_s_all": [28.0, 28.0],
        "tok_s_total": 28.0,
        "threads": 2,
        "precision": "default",
        "kv_cache_dtype": "f16",
        "kv_token_bytes": 23040,
        "isa": "avx2",
        "model": "Fake\x1b[31m-1B",
        "version": __version__,
    }
    assert records[1]["tok_s_median"] == 32.0
    assert (records[2]["tok_s_median"], records[2]["tok_s_total"]) == (28.0, 112.0)
    said = (
        "warm-up",
        "prefix cache off",
        "ignored",
        "sampling is included",
        "precision default",
        "f16 (23.0 kB a token)",
        "of all together",
    )
    assert all(word in err for word in said)
    code, out, _ = program("bench", "-p", "16", "-n", "0", "-c", "4", "-r", "2")
    header, row = (line.replace("┃", "│").strip("│").split("│") for line in out.splitlines()[1:4:2])
    assert [cell.strip() for cell in header] == [
        *("model", "backend", "test", "t/s", "ms/t", "concurrency", "throughput/s")
    ]
    assert [cell.strip() for cell in row] == [
        *("Fake-1B", "cpu avx2", "pp 16", "32.000±0.000", "31.250±0.000", "4", "128.0")
    ]
