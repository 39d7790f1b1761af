"""Clients that hang up, wait, dawdle, or talk nonsense, behind a real socket; then the server answers as before."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from mistralrs.api.served_model import ServedModel
from tests.server.harness import CHAT
from tests.server.process import ServerProcess, ask, question, receive_all, wait_for

READ_S = 0.6
WRITE_S = 0.6
CONNECTIONS = 12
MAX_BODY = 300_000
LIMITS: dict[str, Any] = {
    "write_timeout": WRITE_S,
    "max_connections": CONNECTIONS,
    "max_body_bytes": MAX_BODY,
    "keep_alive_ms": 50,
}


@pytest.fixture(scope="module")
def server(model: ServedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(model, tmp_path_factory.mktemp("server"), **LIMITS) as process:
        yield process


@pytest.fixture(scope="module")
def hasty(model: ServedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that waits ``READ_S`` for a request; a client on a busy machine may be slower than that."""
    with ServerProcess(model, tmp_path_factory.mktemp("hasty"), **LIMITS, read_timeout=READ_S) as process:
        yield process


@pytest.fixture(autouse=True)
def still_well(request: pytest.FixtureRequest) -> Iterator[None]:
    """Checks after each test that nothing is left of it and that a good request is answered."""
    server: ServerProcess = request.getfixturevalue("hasty" if "hasty" in request.fixturenames else "server")
    yield
    wait_for(lambda: server.metric("mistralrs_requests_open") == 0)
    wait_for(lambda: server.metric("mistralrs_requests_running") == 0)
    with server.client() as client:
        assert client.post(CHAT, json=question("hi")).json()["choices"][0]["message"]["content"] == "Hello world"
    assert not any("Traceback" in line or "defect" in line for line in server.lines), server.lines


def answer(data: bytes) -> tuple[int, dict[str, Any]]:
    """Returns the status and the error's facts of a whole answer."""
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head.lower()
    assert b"connection: close" in head.lower()
    facts: dict[str, Any] = json.loads(body)["error"]
    return int(head.split()[1]), facts


@pytest.mark.parametrize("word", ["endless", "silent"])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [1, 3])
def test_who_hangs_up_frees_the_engine_at_once(server: ServerProcess, word: str, stream: bool, n: int) -> None:
    before = server.metric("mistralrs_requests_cancelled_total")
    with server.connect() as connection:
        connection.sendall(ask(word, stream=stream, n=n))
        wait_for(lambda: server.metric("mistralrs_requests_running") == n)
    wait_for(lambda: server.metric("mistralrs_requests_running") == 0)
    assert server.metric("mistralrs_requests_cancelled_total") == before + 1


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"input": "endless"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "endless"}], "max_tokens": 100}),
    ],
)
def test_who_hangs_up_ends_a_request_of_another_api(
    server: ServerProcess, path: str, body: dict[str, Any], stream: bool
) -> None:
    before = server.metric("mistralrs_requests_cancelled_total")
    data = json.dumps({**body, "stream": stream}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
    with server.connect() as connection:
        connection.sendall(f"{head}\r\n\r\n".encode() + data)
        wait_for(lambda: server.metric("mistralrs_requests_running") == 1)
    wait_for(lambda: server.metric("mistralrs_requests_running") == 0)
    assert server.metric("mistralrs_requests_cancelled_total") == before + 1


def test_who_stops_reading_a_stream_frees_the_engine(server: ServerProcess) -> None:
    with server.client() as client, client.stream("POST", CHAT, json=question("endless", stream=True)) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        assert server.metric("mistralrs_requests_running") == 1
    wait_for(lambda: server.metric("mistralrs_requests_running") == 0)


def test_silence_is_filled_with_comments(server: ServerProcess) -> None:
    started = time.monotonic()
    with server.client() as client, client.stream("POST", CHAT, json=question("silent", stream=True)) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        lines = response.iter_lines()
        assert [next(lines) for _ in range(6)] == [": ping", ""] * 3
    assert time.monotonic() - started > 0.1


def test_a_stream_that_flows_has_no_comments(server: ServerProcess) -> None:
    with server.client() as client, client.stream("POST", CHAT, json=question("endless", stream=True)) as response:
        lines = response.iter_lines()
        # 30 events take six times as long as a silence may; only a server that stands still meanwhile sends a comment
        stretches = ([next(lines) for _ in range(60)] for _ in range(20))
        assert any(not any(line.startswith(":") for line in stretch) for stretch in stretches)


def test_who_does_not_read_is_cut_off(server: ServerProcess) -> None:
    with server.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(ask("flood"))
        wait_for(lambda: server.metric("mistralrs_requests_running") == 1)
        wait_for(lambda: server.metric("mistralrs_requests_running") == 0)


def test_who_half_closes_has_hung_up(server: ServerProcess) -> None:
    with server.connect() as connection:
        connection.sendall(ask("endless"))
        assert connection.recv(100)
        connection.shutdown(socket.SHUT_WR)
        wait_for(lambda: server.metric("mistralrs_requests_running") == 0)


def test_a_head_that_drips_is_not_waited_for(hasty: ServerProcess) -> None:
    started = time.monotonic()
    with hasty.connect() as connection:
        for byte in b"POST /v1/chat/completions HTTP/1.1\r\nHost: loc":
            connection.sendall(bytes([byte]))
            if select.select([connection], [], [], 0.005)[0]:  # this process stood still
                break
        status, facts = answer(receive_all(connection))
    assert (status, facts["code"]) == (408, "request_timeout")
    assert time.monotonic() - started > READ_S - 0.1


def test_a_body_that_drips_is_not_waited_for(hasty: ServerProcess) -> None:
    with hasty.connect() as connection:
        connection.sendall(ask("hi", length=500))
        status, facts = answer(receive_all(connection))
        assert (status, facts["code"]) == (408, "request_timeout")


def test_who_hangs_up_while_sending_is_no_defect(server: ServerProcess) -> None:
    for _ in range(5):
        with server.connect() as connection:
            connection.sendall(ask("hi", length=500))
            time.sleep(0.01)


def test_a_second_request_that_drips_is_not_waited_for(hasty: ServerProcess) -> None:
    with hasty.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received = b""
        while not received.endswith(b"OK"):
            received += connection.recv(10_000)
        connection.sendall(b"GET /health HTT")
        status, _ = answer(receive_all(connection))
        assert status == 408


def test_a_connection_without_a_request_is_closed(hasty: ServerProcess) -> None:
    with hasty.connect() as connection:
        assert receive_all(connection) == b""


def test_a_long_answer_outlives_the_time_for_requests(hasty: ServerProcess) -> None:
    with hasty.client() as client:
        response = client.post(CHAT, json=question("slow"))
    assert response.elapsed.total_seconds() > READ_S
    assert response.status_code == 200


def test_a_request_behind_a_long_one_is_not_late(hasty: ServerProcess) -> None:
    with hasty.connect() as connection:
        connection.sendall(
            ask("slow") + b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        )
        connection.sendall(b"Content-Length: 15\r\n\r\n")
        time.sleep(0.1)
        connection.sendall(b'{"content":"a"}')
        received = b""
        while b'"max_model_len"' not in received:
            piece = connection.recv(65536)
            assert piece, received
            received += piece
    assert received.count(b"HTTP/1.1 200") == 2
    assert b"[DONE]" in received


_POST = b"POST / HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\xff\x13\x37" * 100 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        _POST + b"Content-Length: -1\r\n\r\n",
        _POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        _POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_http_is_400(server: ServerProcess, data: bytes) -> None:
    with server.connect() as connection:
        connection.sendall(data)
        status, facts = answer(receive_all(connection))
    assert status in (400, 408)
    assert facts["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "head",
    [
        "GET /version HTTP/1.1\r\n",
        "GET /version HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n",
        "GET /version HTTP/1.1\r\nHost: localhost\r\nhost: evil.example\r\n",
        "GET /version HTTP/1.0\r\nHost: localhost\r\nHost: evil.example\r\n",
        "GET /version HTTP/1.1\r\nHost: [::1].evil.example\r\n",
        "GET http://evil.example/version HTTP/1.1\r\nHost: localhost\r\n",
        "GET http://localhost:1@evil.example/version HTTP/1.1\r\nHost: localhost:1\r\n",
        "GET http://localhost/version HTTP/1.1\r\nHost: evil.example\r\n",
        "GET http://localhost/version HTTP/1.1\r\n",
    ],
)
def test_a_request_is_for_one_host(server: ServerProcess, head: str) -> None:
    with server.connect() as connection:
        connection.sendall(f"{head}Connection: close\r\n\r\n".encode())
        status, facts = answer(receive_all(connection))
    assert (status, facts["code"]) == (400, "invalid_host")


@pytest.mark.parametrize(
    "head",
    [
        "GET /version HTTP/1.0\r\n",
        "GET http://localhost:5/version HTTP/1.1\r\nHost: LOCALHOST:5\r\n",
        "GET http://[::1]/version?a=http://b HTTP/1.1\r\nHost: [::1]\r\n",
        "GET //version?a=http://b HTTP/1.1\r\nHost: localhost.:\r\n",
    ],
)
def test_a_request_may_name_its_host_as_the_standard_allows(server: ServerProcess, head: str) -> None:
    with server.connect() as connection:
        connection.sendall(f"{head}Connection: close\r\n\r\n".encode())
        assert receive_all(connection).startswith(b"HTTP/1.1 200")


def test_nonsense_behind_a_request_does_not_get_into_its_answer(server: ServerProcess) -> None:
    with server.connect() as connection:
        connection.sendall(ask("endless"))
        assert connection.recv(100)
        connection.sendall(b"\x00\x01\x02\r\n\r\n")
        received = receive_all(connection)
    assert b"invalid_http" not in received


@pytest.mark.parametrize("endless", [b"GET /%s", b"GET / HTTP/1.1\r\nX-Long: %s", b"GET / HTTP/1.1\r\n%s"])
def test_a_head_without_end_is_not_kept(server: ServerProcess, endless: bytes) -> None:
    filling = b"x: y\r\n" * 50_000 if endless.endswith(b"\r\n%s") else b"x" * 300_000
    with server.connect() as connection:
        try:
            connection.sendall(endless % filling)
            received = receive_all(connection)
        except ConnectionError:  # it was closed with bytes unread
            return
    status, facts = answer(received)
    assert (status, facts["code"]) == (413, "request_too_large")


def test_trailers_without_end_are_not_kept(server: ServerProcess) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with server.connect() as connection:
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n1\r\n \r\n0\r\n")
        trailers = (b"x: " + b"y" * 10_000 + b"\r\n") * 1000
        with pytest.raises(ConnectionError):
            connection.sendall(trailers)


def test_who_sends_too_much_first_and_reads_then_hears_why(server: ServerProcess) -> None:
    with server.client() as client:
        response = client.post(CHAT, content=b" " * (2 * MAX_BODY), headers={"content-type": "application/json"})
    assert response.status_code == 413
    assert response.headers["connection"] == "close"


def test_who_asks_before_sending_too_much_sends_nothing(server: ServerProcess) -> None:
    with server.connect() as connection:
        connection.sendall(ask("hi", length=10 * MAX_BODY, more="Expect: 100-continue\r\n").partition(b"{")[0])
        received = receive_all(connection)
    assert received.startswith(b"HTTP/1.1 413")


def test_who_asks_before_sending_is_told_to_go_on(server: ServerProcess) -> None:
    head, brace, body = ask("hi", more="Expect: 100-continue\r\n").partition(b"{")
    with server.connect() as connection:
        connection.sendall(head)
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(brace + body)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")


def test_who_only_holds_connections_makes_room_for_who_asks(server: ServerProcess) -> None:
    with ExitStack() as stack:
        for number in range(2 * CONNECTIONS):
            connection = stack.enter_context(server.connect())
            connection.sendall(ask("hi", length=500) if number % 2 else b"GET / HT")
        with server.client() as client:
            assert client.get("/health").status_code == 200


def test_there_are_no_more_connections_than_files(model: ServedModel, tmp_path: Path) -> None:
    with ServerProcess(model, tmp_path, files=100) as few, ExitStack() as stack:
        for _ in range(150):
            stack.enter_context(few.connect()).sendall(b"GET / HT")
        with few.client() as client:
            assert client.post(CHAT, json=question("hi")).status_code == 200
        assert len(few.lines) == 1


def test_a_request_that_stays_half_does_not_get_into_the_answer_before_it(hasty: ServerProcess) -> None:
    with hasty.connect() as connection:
        connection.sendall(ask("slow") + ask("hi", length=500))
        received = b""
        while b"[DONE]" not in received:
            received += connection.recv(65536)
        assert b"request_timeout" not in received
        received += receive_all(connection)
    assert received.index(b"[DONE]") < received.index(b"request_timeout")


def test_more_requests_than_connections_are_503(server: ServerProcess) -> None:
    with ExitStack() as stack:
        for _ in range(CONNECTIONS):
            connection = stack.enter_context(server.connect())
            connection.sendall(ask("endless"))
            assert connection.recv(100)
        with server.connect() as one_more:
            one_more.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            received = receive_all(one_more)
    assert received.startswith(b"HTTP/1.1 503")
    assert b'"too_many_connections"' in received
    assert b"retry-after: 1" in received
