"""A server's life: its messages, its ends, and its exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from mistralrs.api.served_model import ServedModel
from mistralrs.errors import UsageError
from mistralrs.server.run import listen, serve_engine
from mistralrs.server.settings import ServerSettings
from tests.server.harness import CHAT
from tests.server.process import ServerProcess, ask, question, wait_for


def in_background(server: ServerProcess, word: str, **more: Any) -> list[httpx.Response]:
    """Asks in a thread; the answer appears in the list. Returns once the request is under way."""
    answers: list[httpx.Response] = []

    def run() -> None:
        with server.client() as client:
            answers.append(client.post(CHAT, json=question(word, **more)))

    threading.Thread(target=run, daemon=True).start()
    wait_for(lambda: server.metric("mistralrs_requests_open") == 1)
    return answers


def test_it_says_what_it_serves_where_and_to_whom(model: ServedModel, tmp_path: Path) -> None:
    with ServerProcess(model, tmp_path) as server:
        name, scheme, host, port, rest = server.serving.groups()
        assert (name, scheme, host, rest) == ("tiny", "http", "127.0.0.1", "no API key; local only")
        assert int(port) > 0
        assert len(server.lines) == 1
    with ServerProcess(model, tmp_path, host="0.0.0.0", api_keys=["a key"]) as server:
        assert server.serving[5] == "with an API key; open to the network"
        assert len(server.lines) == 1


def test_an_open_server_without_a_key_comes_with_a_warning(model: ServedModel, tmp_path: Path) -> None:
    with ServerProcess(model, tmp_path, host="0.0.0.0") as server:
        assert server.serving
        wait_for(lambda: len(server.lines) == 2)
        assert server.lines[1].startswith("warning: ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_when_told(model: ServedModel, tmp_path: Path, number: signal.Signals) -> None:
    with ServerProcess(model, tmp_path) as server:
        assert server.serving
        server.tell(number)
        assert server.wait() == 0
        assert len(server.lines) == 1


def test_what_runs_is_finished_first_and_nothing_new_begins(model: ServedModel, tmp_path: Path) -> None:
    with ServerProcess(model, tmp_path) as server, server.client() as client:
        answers = in_background(server, "held")
        server.tell(signal.SIGTERM)
        wait_for(lambda: client.get("/health").status_code == 503)
        refused = client.post(CHAT, json=question("hi"))
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert answers == []
        (tmp_path / "go on").touch()
        assert server.wait() == 0
        wait_for(lambda: bool(answers))
        assert answers[0].json()["choices"][0]["message"]["content"] == "begun"


@pytest.mark.parametrize("stream", [True, False])
def test_what_takes_too_long_is_told_why_it_ends(model: ServedModel, tmp_path: Path, stream: bool) -> None:
    with ServerProcess(model, tmp_path, drain_seconds=0.3) as server:
        answers = in_background(server, "endless", stream=stream)
        server.tell(signal.SIGTERM)
        assert server.wait() == 0
        wait_for(lambda: bool(answers))
        assert '"shutting_down"' in answers[0].text
        assert answers[0].status_code == (200 if stream else 503)


@pytest.mark.parametrize(
    ("word", "number", "code"), [("endless", signal.SIGTERM, 143), ("blocked", signal.SIGINT, 130)]
)
def test_a_second_signal_ends_it_at_once(
    model: ServedModel, tmp_path: Path, word: str, number: signal.Signals, code: int
) -> None:
    with ServerProcess(model, tmp_path) as server, server.connect() as connection:
        assert server.serving
        connection.sendall(ask(word))
        assert connection.recv(100)
        time.sleep(0.5)
        server.tell(number)
        time.sleep(0.2)
        assert not server.has_ended
        while not server.has_ended:  # two that come at once are one for a process
            server.tell(number)
            time.sleep(0.1)
        assert server.wait() == code


def test_sighup_opens_the_log_anew(model: ServedModel, tmp_path: Path) -> None:
    log, old = tmp_path / "log", tmp_path / "log.1"
    with ServerProcess(model, tmp_path, log=str(log)) as server, server.client() as client:
        for id in ("before", "after"):
            headers = {"x-request-id": id}
            assert client.post(CHAT, json=question("hi"), headers=headers).status_code == 200
            if id == "before":
                wait_for(lambda: '"response"' in log.read_text())
                log.rename(old)
                server.tell(signal.SIGHUP)
                wait_for(log.exists)
        server.tell(signal.SIGTERM)
        assert server.wait() == 0
    for file, id in ((old, "before"), (log, "after")):
        assert [json.loads(line)["id"] for line in file.read_text().splitlines()] == [id] * 2


def test_a_detached_server_without_a_log_outlives_sighup(model: ServedModel, tmp_path: Path) -> None:
    with ServerProcess(model, tmp_path) as server, server.client() as client:
        for _ in range(3):
            server.tell(signal.SIGHUP)
            assert client.post(CHAT, json=question("hi")).status_code == 200
        server.tell(signal.SIGTERM)
        assert server.wait() == 0
        assert len(server.lines) == 1


def test_the_end_of_its_terminal_lets_requests_end_first(model: ServedModel, tmp_path: Path) -> None:
    ours, terminal = pty.openpty()
    with ServerProcess(model, tmp_path, terminal=terminal) as server:
        os.close(terminal)
        answers = in_background(server, "held")
        server.tell(signal.SIGHUP)  # by hand, while the terminal is there
        time.sleep(0.2)
        with server.client() as client:
            assert client.get("/health").status_code == 200
        os.close(ours)
        (tmp_path / "go on").touch()
        assert server.wait() == 0
        wait_for(lambda: bool(answers))
        assert answers[0].json()["choices"][0]["message"]["content"] == "begun"


def test_a_log_that_nobody_reads_holds_up_neither_requests_nor_the_end(model: ServedModel, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ServerProcess(model, tmp_path, log=str(pipe)) as server:
        with server.client() as client:
            for _ in range(20):
                assert client.post(CHAT, json=question("hi " + "x" * 5000)).status_code in (200, 400)
        server.tell(signal.SIGTERM)
        assert server.wait() == 0
    assert "lacks 40 records" in server.lines[-1]


def test_the_death_of_the_engine_is_told_and_ends_it(model: ServedModel, tmp_path: Path) -> None:
    with ServerProcess(model, tmp_path) as server:
        answers = in_background(server, "endless", stream=True)
        with server.client() as client:
            failed = client.post(CHAT, json=question("die"))
        assert (failed.status_code, failed.json()["error"]["message"]) == (503, "the engine died")
        assert server.wait() == 1
        wait_for(lambda: bool(answers))
        assert "the engine died" in answers[0].text
        assert server.lines[-1] == "error: the engine died"


def test_a_defect_in_the_midst_of_a_stream_is_logged_once(model: ServedModel, tmp_path: Path) -> None:
    with ServerProcess(model, tmp_path) as server:
        with server.client() as client, pytest.raises(httpx.RemoteProtocolError):
            client.post(CHAT, json=question("defective", stream=True))
        server.tell(signal.SIGTERM)
        assert server.wait() == 0
        assert sum("Traceback" in line for line in server.lines) == 1  # nobody set up a log without them
        assert sum("met a defect" in line for line in server.lines) == 1


def test_a_model_that_cannot_be_loaded_ends_it(model: ServedModel, tmp_path: Path) -> None:
    with ServerProcess(model, tmp_path, loading="fail") as server:
        assert server.wait() == 3
        assert server.lines == ["error: the file is broken"]


def test_while_the_model_is_loaded_it_listens_and_can_be_ended(model: ServedModel, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with ServerProcess(model, tmp_path, loading="never", port=port) as server:

        def is_loading() -> bool:
            try:
                health = httpx.get(f"http://127.0.0.1:{port}/health")
            except httpx.ConnectError:
                return False
            return '"model_loading"' in health.text

        wait_for(is_loading)
        server.tell(signal.SIGTERM)
        assert server.wait() == 0
        assert server.lines == []


async def _nothing() -> Any:
    raise AssertionError("nothing is to be loaded")


def test_a_taken_port_is_said_before_anything_is_loaded() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} is taken") as error:
            serve_engine(_nothing, ServerSettings(port=port))
    assert error.value.exit_code == 2
    assert error.value.hint is not None
    assert "--port" in error.value.hint


@pytest.mark.parametrize("host", ["203.0.113.7", "no such name", "a" * 300, "x..y"])
def test_an_address_that_is_not_ours_is_said(host: str) -> None:
    with pytest.raises(UsageError, match="no address of this machine"):
        listen(ServerSettings(host=host, port=0))


def test_a_name_may_mean_several_addresses() -> None:
    listeners = listen(ServerSettings(host="localhost", port=0))
    assert len({listener.getsockname()[1] for listener in listeners}) == 1
    for listener in listeners:
        listener.close()


def has_ipv6() -> bool:
    with socket.socket(socket.AF_INET6) as one:
        try:
            one.bind(("::1", 0))
        except OSError:
            return False
    return True


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "0.0.0.0"])
@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.anyio
async def test_no_connection_holds_back_short_packets(host: str, tls: bool, certificate: tuple[Path, Path]) -> None:
    """Otherwise the second half of a short answer waits for the client's delayed confirmation of the first."""
    made: asyncio.Queue[asyncio.BaseTransport] = asyncio.Queue()

    class Connection(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            made.put_nowait(transport)

    here = there = None
    if tls:
        here, there = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl._create_unverified_context()
        here.load_cert_chain(*certificate)
    if host == "::1" and not has_ipv6():
        pytest.skip("there is no IPv6 here")
    for listener in listen(ServerSettings(host=host, port=0)):
        async with await asyncio.get_running_loop().create_server(Connection, sock=listener, ssl=here):
            address = "::1" if listener.family == socket.AF_INET6 else "127.0.0.1"
            _, writer = await asyncio.open_connection(address, listener.getsockname()[1], ssl=there)
            transport = await made.get()
            connection = transport.get_extra_info("socket")
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
            for each in (writer, transport):
                each.close()
            await writer.wait_closed()


def test_a_log_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--log"):
        serve_engine(_nothing, ServerSettings(port=0, log=tmp_path / "nowhere" / "log"))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not here to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*command, *names, "-keyout", key, "-out", cert], check=True, capture_output=True)
    return cert, key


def test_tls(model: ServedModel, tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    with ServerProcess(model, tmp_path, tls_cert=str(cert), tls_key=str(key)) as server:
        assert server.serving[2] == "https"
        trusted = ssl.create_default_context(cafile=cert)
        with server.client(verify=trusted) as client:
            response = client.post(CHAT, json=question("hi", stream=True))
            assert response.text.endswith("data: [DONE]\n\n")


def test_files_that_are_no_certificate_are_said(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("no certificate")
    for settings in (
        ServerSettings(port=0, tls_cert=wrong),
        ServerSettings(port=0, tls_cert=cert),
        ServerSettings(port=0, tls_cert=tmp_path / "missing", tls_key=key),
        ServerSettings(port=0, tls_key=key),
    ):
        with pytest.raises(UsageError):
            serve_engine(_nothing, settings)


def test_the_server_loads_no_torch() -> None:
    code = "import sys, mistralrs.server.run; sys.exit(any(name in sys.modules for name in ('torch', 'numpy')))"
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )


def test_a_loop_of_another_thread_can_serve(model: ServedModel) -> None:
    """Signals are for the main thread; elsewhere it runs without them, and without a reader of its lines."""
    from tests.server.fake import FakeEngine

    engines: list[FakeEngine] = []

    async def start() -> FakeEngine:
        engines.append(FakeEngine(model))
        asyncio.get_running_loop().call_later(0.3, engines[0].die)
        return engines[0]

    ended: list[BaseException] = []

    def nobody_reads(line: str) -> None:
        raise BrokenPipeError

    def run() -> None:
        try:
            serve_engine(start, ServerSettings(port=0), announce=nobody_reads)
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    assert [str(error) for error in ended] == ["the engine died"]
    assert engines[0].is_closed
