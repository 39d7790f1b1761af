"""Malicious requests, drawn from a fixed seed: each gets a refusal or nothing, never a 5xx."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from mistralrs.api.schemas.request_bodies import ChatCompletionBody
from mistralrs.api.schemas.translated.messages_bodies import CountTokensBody, MessagesBody
from mistralrs.api.schemas.translated.responses_bodies import ResponsesBody
from mistralrs.api.served_model import ServedModel
from tests.server.harness import CHAT
from tests.server.process import ServerProcess, question, receive_all, wait_for

COUNT = 150
FIELDS = sorted(ChatCompletionBody.model_fields)
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63, 2**64, -(2**70), 10**300, 0.0, -0.0, 1e-300, 1e300,
    "", "x", "x" * 5000, "\x00", "\u202e", "nan",
    [], {}, [[]], [None], [{}], {"": None}, {"a": {"b": []}}, ["x"] * 500, [0] * 500, list(range(-5, 5)),
    {"role": "user"}, [{"role": "user", "content": None}], [{"role": "root", "content": "x"}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}],
)  # fmt: skip

TURNS = [{"role": "user", "content": "hi"}]
OTHERS: tuple[tuple[str, type[BaseModel], dict[str, Any]], ...] = (
    ("/v1/responses", ResponsesBody, {"input": "hi"}),
    ("/v1/messages", MessagesBody, {"messages": TURNS, "max_tokens": 1}),
    ("/v1/messages/count_tokens", CountTokensBody, {"messages": TURNS}),
)
"""Addresses of other APIs, with their bodies and the least of each."""


@pytest.fixture(scope="module")
def server(model: ServedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder: Path = tmp_path_factory.mktemp("hostile")
    with ServerProcess(model, folder, read_timeout=0.15, max_body_bytes=100_000, log=str(folder / "log")) as process:
        yield process


def post(body: bytes, path: str = CHAT) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def noise(draw: random.Random) -> bytes:
    return draw.randbytes(draw.randrange(1, 2000)) + b"\r\n\r\n"


def noisy_body(draw: random.Random) -> bytes:
    return post(draw.randbytes(draw.randrange(2000)))


def deep(draw: random.Random) -> bytes:
    opening = draw.choice([b"[", b'{"a":', b'{"messages":[', b'[{"role":'])
    return post(opening * draw.randrange(1, 5000))


def wrong_types(draw: random.Random) -> bytes:
    fields = {draw.choice(FIELDS): draw.choice(VALUES) for _ in range(draw.randrange(1, 4))}
    return post(json.dumps({**question("hi", max_tokens=1), **fields}).encode())


def other_apis(draw: random.Random) -> bytes:
    path, kind, least = draw.choice(OTHERS)
    fields = {draw.choice(sorted(kind.model_fields)): draw.choice(VALUES) for _ in range(draw.randrange(1, 4))}
    return post(json.dumps({**least, **fields}).encode(), path)


def broken_text(draw: random.Random) -> bytes:
    body = bytearray(json.dumps(question("hello \u00e4\u00f6\u00fc", max_tokens=1)).encode())
    for _ in range(draw.randrange(1, 4)):
        body[draw.randrange(len(body))] = draw.randrange(256)
    return post(bytes(body))


def huge_ids(draw: random.Random) -> bytes:
    number = draw.choice([10**9, 2**31 - 1, 2**62, 10**1000, -1])
    body = f'{{"prompt":[{number}],"max_tokens":1,"logit_bias":{{"{number}":1}}}}'
    return post(body.encode(), draw.choice(["/v1/completions", "/v1/embeddings", "/detokenize"]))


def wrong_head(draw: random.Random) -> bytes:
    good = post(json.dumps(question("hi", max_tokens=1)).encode())
    at = draw.randrange(80)
    return good[:at] + draw.randbytes(draw.randrange(1, 5)) + good[at:]


def wrong_path(draw: random.Random) -> bytes:
    path = "".join(draw.choice("/.%25~\\{}v1modelsrequests") for _ in range(draw.randrange(1, 200)))
    method = draw.choice(["GET", "DELETE", "PUT", "OPTIONS", "TRACE", "HEAD"])
    return f"{method} /{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()


KINDS: tuple[Callable[[random.Random], bytes], ...] = (
    noise, noisy_body, deep, wrong_types, wrong_types, other_apis, broken_text, huge_ids, wrong_head, wrong_path,
)  # fmt: skip


def attack(server: ServerProcess, draw: random.Random) -> bytes:
    """Sends one request, whole, in part, or without waiting for its answer."""
    data = draw.choice(KINDS)(draw)
    with server.connect() as connection, suppress(ConnectionError):
        manner = draw.randrange(40)
        if manner == 0:  # never finished
            data = data[: draw.randrange(1, len(data))]
        connection.sendall(data)
        if manner == 1:
            return b""
        if manner == 2:
            connection.shutdown(socket.SHUT_WR)
        return receive_all(connection)
    return b""


@pytest.mark.slow
def test_it_stands_them_all(server: ServerProcess) -> None:
    draw = random.Random(20261123)
    for number in range(COUNT):
        received = attack(server, draw)
        if received:
            status = int(received.split(b" ", 2)[1])
            assert status < 500, (number, received)
            assert status == 200 or b'"error"' in received or b" 404 " in received[:20] or b" 405 " in received[:20]
    wait_for(lambda: server.metric("mistralrs_requests_running") == 0)
    with server.client() as client:
        answer = client.post(CHAT, json=question("hi")).json()
    assert answer["choices"][0]["message"]["content"] == "Hello world"
    assert len(server.lines) == 1, server.lines[1:]
