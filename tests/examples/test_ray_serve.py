"""`examples/ray_serve.py` with two replicas on this machine."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest

from tests.serving import ROOT

pytestmark = [
    pytest.mark.native,
    pytest.mark.slow,
    # a folder of that name beside the project would look like the package
    pytest.mark.skipif(not list(distributions(name="ray")), reason="ray is not installed; the extra ray has it"),
]

DRIVER = """
import sys
import ray
import ray_serve
from ray import serve
ray.init(num_cpus=2, object_store_memory=80 << 20, include_dashboard=False, log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
serve.run(ray_serve.build(ray_serve.Arguments(model=sys.argv[1], replicas=2, threads=1)))
print("ready", flush=True)
sys.stdin.read()
serve.shutdown()
"""
CHAT = "/v1/chat/completions"
START = "once upon a time there was a small cat, and it said that the dog was not there. "


class Cluster:
    """Where Ray serves."""

    def __init__(self, port: int) -> None:
        self._port = port

    def ask(self, method: str, path: str, body: object = None, *, session: str | None = None) -> tuple[str, Any]:
        """The replica that answered, and its answer."""
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)) as connection:
            headers = {"Content-Type": "application/json"} | ({} if session is None else {"x-session-id": session})
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            assert response.status == 200, response.read()
            data = response.read().decode()
            is_json = response.headers.get_content_type() == "application/json"
            return response.headers["x-replica"], json.loads(data) if is_json else data


@pytest.fixture(scope="module")
def cluster(tiny_llama: Path) -> Iterator[Cluster]:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = os.pathsep.join(
        [str(ROOT / "examples"), str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    )
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tiny_llama), str(port)],
        env={**os.environ, "PYTHONPATH": paths, "RAY_USAGE_STATS_ENABLED": "0"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert "ready\n" in iter(process.stdout.readline, "")
            yield Cluster(port)
            process.stdin.close()
            assert process.wait(60) == 0
        finally:
            process.kill()


def test_both_replicas_serve_the_same_answers(cluster: Cluster) -> None:
    body = {"messages": START, "temperature": 0, "max_tokens": 8}
    answers = [cluster.ask("POST", CHAT, body) for _ in range(16)]
    assert len({replica for replica, _ in answers}) == 2
    assert len({answer["choices"][0]["message"]["content"] for _, answer in answers}) == 1


def test_a_session_stays_where_its_beginning_was_computed(cluster: Cluster) -> None:
    replicas = set()
    for session in map(str, range(8)):
        body = {"prompt": f"{session} {START * 2}", "temperature": 0, "max_tokens": 2}
        first, _ = cluster.ask("POST", "/v1/completions", body, session=session)
        again, answer = cluster.ask("POST", "/v1/completions", body, session=session)
        assert again == first
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
        replicas.add(first)
    assert len(replicas) == 2


def test_a_stream(cluster: Cluster) -> None:
    body = {"messages": START, "temperature": 0, "max_tokens": 8}
    _, whole = cluster.ask("POST", CHAT, body)
    _, stream = cluster.ask("POST", CHAT, {**body, "stream": True})
    events = [line.removeprefix("data: ") for line in stream.split("\n\n") if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    pieces = [json.loads(event)["choices"][0]["delta"].get("content", "") for event in events]
    assert "".join(pieces) == whole["choices"][0]["message"]["content"]
