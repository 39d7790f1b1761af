"""The command that serves, as a process: its messages, its exit code, and the options that reach the model."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.serving import ROOT, RunningServer

pytestmark = pytest.mark.native

BODY = {"messages": "once upon a time", "temperature": 0, "max_tokens": 4}
CHAT = "/v1/chat/completions"


def test_serving_from_start_to_end(tiny_llama: Path, tmp_path: Path) -> None:
    log = tmp_path / "output.log"
    with RunningServer("--log", str(log), "gguf", "-f", str(tiny_llama)) as server:
        assert server.said == [f"Serving tiny-llama at {server.base_url} (no API key; local only)\n"]
        assert server.ask("GET", "/health") == (200, "OK")
        _, models = server.ask("GET", "/v1/models")
        assert models["data"][0]["id"] == "tiny-llama"
        status, answer = server.ask("POST", CHAT, BODY, headers={"x-request-id": "mine"})
        assert (status, answer["usage"]["completion_tokens"]) == (200, 4)
        assert server.stop(signal.SIGTERM) == 0
    assert len(server.said) == 1
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(record["kind"], record["id"]) for record in records] == [("request", "mine"), ("response", "mine")]
    assert records[1]["body"] == answer


def test_ctrl_c_ends_it_in_order(tiny_llama: Path) -> None:
    with RunningServer("gguf", "-f", str(tiny_llama)) as server:
        assert server.stop(signal.SIGINT) == 0
    assert len(server.said) == 1


_MISHAP = """
import sys
from mistralrs.api.engine_client import engine_connection
from mistralrs_cli.app import main
engine_connection.CHILD = "tests.api.fake_engine_process"
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("options", "traces"), [((), 0), (("--log-level", "debug"), 0), (("--debug",), 1)])
def test_a_defect_while_loading_is_one_line_and_its_place_is_for_who_asks(
    tmp_path: Path, options: tuple[str, ...], traces: int
) -> None:
    (tmp_path / "has a bug").mkdir()
    said = subprocess.run(
        [sys.executable, "-c", _MISHAP, "--port", "0", *options, "auto", "has a bug"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
    )
    lines = said.stderr.splitlines()
    assert (said.returncode, lines[-1]) == (3, "error: the model cannot be loaded: ZeroDivisionError: by zero")
    assert said.stderr.count('raise ZeroDivisionError("by zero")') == traces
    if not traces:
        assert [line for line in lines if not line.startswith("DEBUG ")] == lines[-1:]


def test_lines_of_the_engines_process_look_like_those_of_the_server(tiny_llama: Path) -> None:
    with RunningServer("--log-level", "debug", "gguf", "-f", str(tiny_llama)) as server:
        assert server.ask("POST", CHAT, BODY)[0] == 200
    logged = [line for line in server.said if not line.startswith("Serving ")]
    assert all(
        re.match(r"(DEBUG|INFO|WARNING|ERROR) [a-z_.]+: (?!(DEBUG|INFO|WARNING|ERROR):)", line) for line in logged
    )
    assert any(" mistralrs.engine.engine_core: Prompt" in line for line in logged)


def test_options_reach_the_server(tiny_llama: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    options = ("--model-name", "mine", "--strict", "--strict-model", "--max-body", "1K", "--log", str(log))
    with RunningServer(
        *(*options, "--log-bodies", "off", "--cors-origin", "https://example.org", "gguf", "-f", str(tiny_llama)),
        environment={"MISTRALRS_API_KEY": "first-key,sesame"},
    ) as server:
        assert "(with an API key; local only)" in server.said[0]
        assert server.ask("POST", CHAT, BODY)[0] == 401
        key = {"Authorization": "Bearer sesame"}
        assert server.ask("POST", CHAT, BODY, headers=key)[0] == 200
        assert (
            server.ask("POST", CHAT, {**BODY, "model": "mine"}, headers={"Authorization": "Bearer first-key"})[0] == 200
        )
        assert server.ask("POST", CHAT, {**BODY, "model": "other"}, headers=key)[0] == 404
        assert server.ask("POST", CHAT, {**BODY, "user": "ada"}, headers=key)[0] == 400
        assert server.ask("POST", CHAT, {**BODY, "stop": "x" * 1000}, headers=key)[0] == 413
    assert "sesame" not in log.read_text() + "".join(server.said)
    assert "once upon" not in log.read_text()


def test_a_second_start_finds_what_the_first_computed(tiny_llama: Path, tmp_path: Path) -> None:
    body = {"prompt": "once upon a time there was a small cat, and it said " * 2, "temperature": 0, "max_tokens": 3}
    answers = []
    for _ in range(2):
        with RunningServer("--kv-dir", str(tmp_path / "kv"), "gguf", "-f", str(tiny_llama)) as server:
            answers.append(server.ask("POST", "/v1/completions", body)[1])
    assert [answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 0 for answer in answers] == [False, True]
    assert answers[0]["choices"] == answers[1]["choices"]


def test_draft_tokens_are_counted(tiny_llama: Path) -> None:
    body = {"prompt": "once upon a time " * 4, "temperature": 0, "max_tokens": 60, "ignore_eos": True}
    with RunningServer("--draft", "4", "gguf", "-f", str(tiny_llama)) as server:
        _, answer = server.ask("POST", "/v1/completions", body)
        drafted, accepted = answer["timings"]["draft_n"], answer["timings"]["draft_n_accepted"]
        _, metrics = server.ask("GET", "/metrics")
    assert drafted > 0
    assert f"mistralrs_draft_tokens_total {float(drafted)}\n" in metrics
    assert f"mistralrs_draft_tokens_accepted_total {float(accepted)}\n" in metrics
    with RunningServer("gguf", "-f", str(tiny_llama)) as server:
        assert server.ask("POST", "/v1/completions", body)[1]["choices"] == answer["choices"]


def refused(*arguments: str) -> tuple[int, str]:
    """Returns the exit code of a server that does not come to serve, and its message."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "mistralrs_cli", *arguments]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == ""
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--log", "/absent/folder/x.log"], "--log /absent/folder/x.log: No such file or directory"),
        (["--ssl-certfile", "/absent.pem"], "/absent.pem: no certificate with its key: No such file or directory"),
        (["--ssl-keyfile", "/absent.pem"], "a TLS key needs its certificate\nhint: give the file with --ssl-certfile"),
        (["--serve-ip", "300.1.1.1"], "--serve-ip 300.1.1.1 is no address of this machine"),
    ],
)
def test_what_cannot_be_used_is_said_before_a_model_is_loaded(tmp_path: Path, words: list[str], said: str) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"no model")
    code, text = refused("--port", "0", *words, "gguf", "-f", str(broken))
    assert (code, said in text) == (2, True), text


def test_a_taken_port(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"no model")
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        code, text = refused("--port", str(port), "gguf", "-f", str(broken))
    assert (code, text.startswith(f"error: port {port} is taken\nhint: ")) == (2, True), text


def test_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"no model")
    code, text = refused("--port", "0", "gguf", "-f", str(broken))
    assert (code, "broken.gguf" in text, "Traceback" in text) == (3, True, False), text
