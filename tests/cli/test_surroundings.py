"""The program started by other programs: streams that are closed, full or sockets, no home, no working folder."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from mistralrs.server.run import say
from mistralrs_cli.terminal.standard_streams import MESSAGE_PATIENCE_S
from tests.architectures import VARIANTS, write_folder
from tests.cli.in_process import running
from tests.cli.terminal import ROOT, environment

FAKE = f"{shlex.quote(sys.executable)} -m tests.cli.fake_main"
REAL = f"{shlex.quote(sys.executable)} -m mistralrs_cli"


def shell(home: Path, command: str, *, cwd: Path = ROOT, **extra: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line with redirections. stdin is empty."""
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        env=environment(home, **extra),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("words", "code", "out"),
    [
        ("--prompt hello <&- 2>&-", 0, "you said: hello\n"),
        ("--prompt hello <&- >&- 2>&-", 141, ""),
        ("--help >&-", 141, ""),
        ("--prompt hello --top-p 2 >&-", 2, ""),  # the error is reported before answers matter
        ("models delete owner/none --yes >&-", 2, ""),  # needs no stdout
        ("models >&-", 141, ""),
        ("--prompt hello --stats 2>/dev/full", 0, "you said: hello\n"),
        ("--prompt fail 2>/dev/full", 1, "half an \n"),
        ("--prompt hello --top-p 2 2>/dev/full", 2, ""),
        ("--log-level debug --prompt hello 2>/dev/full", 0, "you said: hello\n"),
        ("--prompt hello >/dev/full 2>/dev/full", 1, ""),
    ],
)
def test_the_exit_code_is_of_what_happened(tmp_path: Path, words: str, code: int, out: str) -> None:
    result = shell(tmp_path, f"{FAKE} {words}", HF_HOME=str(tmp_path / "hf"))
    assert result[:2] == (code, out)
    assert result[2].startswith("error: ") == (code == 2 and "2>" not in words)


def test_stderr_that_nobody_reads(tmp_path: Path) -> None:
    """Neither a reader that is gone nor one that stands still, behind a pipe that does not wait, changes the answer."""
    for gone in (True, False):
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        if gone:
            os.close(reading)
        else:
            _fill(writing)
        began = time.monotonic()
        done = subprocess.run(
            [*shlex.split(FAKE), "--prompt", "hello", "--stats"],
            env=environment(tmp_path),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=writing,
            timeout=60,
        )
        assert (done.returncode, done.stdout) == (0, b"you said: hello\n")
        assert gone or time.monotonic() - began > MESSAGE_PATIENCE_S
        os.close(writing)
        if not gone:
            os.close(reading)


def _fill(pipe: int) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(pipe, b"x" * 4096)


def test_a_stdout_that_does_not_wait_is_waited_for(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with subprocess.Popen(
        [*shlex.split(FAKE), "--prompt", "flood"],
        env=environment(tmp_path),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=writing,
        stderr=subprocess.PIPE,
    ) as process:
        os.close(writing)
        with open(reading, "rb") as pipe:
            time.sleep(1)  # it is full now
            assert pipe.read(1001 * 500) == (b"0123456789" * 100 + b"\n") * 500
        assert process.wait(timeout=60) == 141
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_stdin_is_a_socket(tmp_path: Path) -> None:
    """Node's ``spawn`` and ssh without a terminal make such a stdin."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(
            [*shlex.split(FAKE), "--prompt", "sum up"],
            env=environment(tmp_path),
            cwd=ROOT,
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        theirs.close()
        ours.sendall("\ufeffline 1\nline 2\n".encode("utf-16"))
        ours.shutdown(socket.SHUT_WR)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    assert out == "you said: sum up\n\n\ufeffline 1\nline 2\n".encode()


def test_without_a_home(tmp_path: Path) -> None:
    """Runs under a user id that the system does not know."""
    code = (
        "import pwd, sys\n"
        "def unknown(uid): raise KeyError(uid)\n"
        "pwd.getpwuid = unknown\n"
        "from mistralrs_cli.app import main\n"
        "sys.exit(main({words!r}))\n"
    )
    variables = environment(tmp_path)
    kept = {name: value for name, value in variables.items() if not name.startswith(("HOME", "XDG_", "HF_"))}
    for words, expected, said in (
        (["models"], 0, "the hub's cache holds no model\n"),
        (["--prompt", "x", "auto", "owner/name"], 3, "error: owner/name: config.json: there is no home folder"),
        (["--prompt", "x", "auto", "~/model.gguf"], 2, "error: ~/model.gguf: the home folder ~ is not known\n"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code.format(words=words)],
            env=kept,
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == expected
        assert said in done.stdout + done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["default.gguf"]  # nothing called ~


GONE = 'mkdir gone && cd gone && rmdir "$PWD" && '


@pytest.mark.native
def test_without_a_working_folder(tiny_llama: Path, tmp_path: Path) -> None:
    options = "--temperature 0 --max-tokens 4 --chat-template '{{ messages[0].content }}'"
    command = f"{REAL} {options} --prompt hello auto"
    code, answer, _ = shell(tmp_path, f"{command} {tiny_llama}", cwd=tmp_path)
    assert code == 0
    assert shell(tmp_path, f"{GONE} {command} {tiny_llama}", cwd=tmp_path) == (0, answer, "")
    code, _, err = shell(tmp_path, f"{GONE} {command} {tiny_llama.name}", cwd=tmp_path)
    assert (code, err.splitlines()[0]) == (3, f"error: {tiny_llama.name} does not exist")
    shutil.copy(tiny_llama, tmp_path / "model.gguf")
    code, _, err = shell(tmp_path, f"{GONE} {REAL} --port 0 auto ../model.gguf", cwd=tmp_path)
    assert (code, err.splitlines()[1]) == (
        1,
        "hint: the working directory does not exist any more: cd to one that does",
    )


@pytest.mark.native
def test_quantize_without_streams_and_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No message gets into the file, whatever number it is opened under."""
    folder = write_folder(tmp_path / "model", VARIANTS["llama"])
    usual, out = tmp_path / "usual.gguf", tmp_path / "out.gguf"
    with running(tmp_path, capsys, monkeypatch) as run:
        assert run("quantize", str(folder), str(usual), "--type", "q8_0")[:2] == (0, "")
    command = f"{GONE} {REAL} quantize {folder} {out} --type q8_0 <&- >&- 2>&-"
    assert shell(tmp_path, command, cwd=tmp_path)[:2] == (0, "")
    assert usual.read_bytes() == out.read_bytes()


@pytest.mark.native
def test_a_detached_server_serves(tiny_llama: Path, tmp_path: Path) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = f"{GONE} exec {REAL} --port {port} gguf -f {tiny_llama} <&- >&- 2>&-"
    with subprocess.Popen(["/bin/sh", "-c", command], env=environment(tmp_path), cwd=tmp_path) as process:
        try:
            end = time.monotonic() + 60
            while not _is_healthy(port):
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.1)
        finally:
            process.terminate()
        assert process.wait(timeout=60) == 0


@pytest.mark.native
def test_an_engine_of_a_process_without_streams(tiny_llama: Path, tmp_path: Path) -> None:
    """A server inside another program: the engine's socket does not become its stdout or stderr."""
    code = (
        "import asyncio, pathlib, sys\n"
        "from mistralrs.api.engine_client.remote import RemoteEngine\n"
        "from mistralrs.api.local_model import LoadOptions, ModelSource\n"
        "source = ModelSource(None, pathlib.Path(sys.argv[1]), None, None)\n"
        "async def run():\n"
        "    engine = await RemoteEngine.start(source, LoadOptions(threads=1))\n"
        "    await engine.close()\n"
        "asyncio.run(run())\n"
    )
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} {tiny_llama}"
    assert shell(tmp_path, f"{command} <&- >&- 2>&-") == (0, "", "")


def test_messages_of_a_server_without_stderr_stay_out_of_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    say("Serving")
    assert capsys.readouterr().out == ""


def _is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_a_working_folder_that_may_not_be_searched(tmp_path: Path) -> None:
    code = (
        "import os\n"
        "from mistralrs.api.default_model import find_default_model\n"
        "from mistralrs.errors import LoadError\n"
        "from mistralrs_cli.arguments.source_options import source_at\n"
        "os.chmod('.', 0)\n"
        "if os.getuid() == 0: os.setuid(12345)\n"
        "print(source_at('owner/name', None).repo)\n"
        "try: source_at('model.gguf', None)\n"
        "except LoadError as error: print(error)\n"
    )
    closed = tmp_path / "closed"
    closed.mkdir()
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment(tmp_path), cwd=closed, capture_output=True, text=True
        )
    finally:
        closed.chmod(0o700)
    assert done.stdout == "owner/name\nmodel.gguf may not be read by this user\n", done.stderr


def test_options_of_the_environment_and_the_config_file_count(tmp_path: Path) -> None:
    folder = tmp_path / ".config" / "mistralrs"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text('log-level = "info"\nseed = 5\nserve-ip = "0.0.0.0"\n', encoding="utf-8")
    code, out, err = shell(tmp_path, f"{FAKE} --prompt hello", MISTRALRS_SEED="7", MISTRALRS_THREAD="1")
    assert (code, out) == (0, "you said: hello\n")
    assert f"options from elsewhere than the command line: {folder}/config.toml: log-level, MISTRALRS_SEED\n" in err
    assert "MISTRALRS_THREAD is not read: did you mean MISTRALRS_THREADS?" in err
    assert "seed=7" in err
    code, out, err = shell(tmp_path, f"{FAKE} --prompt hello", MISTRALRS_THREADS="many")
    assert (code, out) == (2, "")
    assert err == "error: MISTRALRS_THREADS=many: not a whole number\nhint: write a whole number, or unset it\n"
    assert shell(tmp_path, f"{FAKE} --help", MISTRALRS_THREADS="many")[0] == 0
