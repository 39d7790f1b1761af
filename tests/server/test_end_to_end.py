"""The server in front of real engines: its answers are the model's, and nothing of a request stays."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from mistralrs.api.engine_client.in_process import InProcessEngine
from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.local_model import LocalModel
from mistralrs.engine.config import SamplingParams
from mistralrs.engine.events import Delta
from tests.server.harness import CHAT, COMPLETIONS, Served, events, until

pytestmark = pytest.mark.anyio

MESSAGES = [{"role": "user", "content": "the end of the"}]
GREEDY = {"messages": MESSAGES, "temperature": 0, "max_tokens": 12, "ignore_eos": True}


@pytest.fixture(scope="module")
def local(tiny_llama: Path) -> Iterator[LocalModel]:
    source = ModelSource(None, tiny_llama, None, None)
    with LocalModel.load(source, LoadOptions(threads=1, isa="torch", max_seqs=4)) as model:
        yield model


@pytest.fixture
async def real(local: LocalModel) -> AsyncIterator[Served]:
    server = Served(InProcessEngine(local.engine, local.served))
    yield server
    await until(lambda: local.stats().running == 0)
    stats = local.stats()
    assert (stats.waiting, stats.free_blocks) == (0, stats.num_blocks)


@pytest.fixture(scope="module")
def spoken(tiny_llama: Path) -> str:
    """Returns the model's answer without a server."""
    source = ModelSource(None, tiny_llama, None, None)
    with LocalModel.load(source, LoadOptions(threads=1, isa="torch")) as model:
        stream = model.chat(MESSAGES, SamplingParams(temperature=0, max_tokens=12, ignore_eos=True))
        return "".join(event.text for event in stream if isinstance(event, Delta))


async def test_whole_and_streamed_the_answer_is_the_models(real: Served, spoken: str) -> None:
    whole = await real.post(CHAT, GREEDY)
    assert whole.json()["choices"][0]["message"]["content"] == spoken
    assert whole.json()["usage"]["completion_tokens"] == 12
    *chunks, done = events(await real.post(CHAT, {**GREEDY, "stream": True}))
    assert done == "[DONE]"
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == spoken


async def test_other_apis_get_the_same_answer(real: Served, spoken: str) -> None:
    asked = {"temperature": 0, "max_output_tokens": 12, "input": MESSAGES}
    answered = (await real.post("/v1/responses", asked)).json()
    [item] = answered["output"]
    written = (await real.post("/v1/messages", {"messages": MESSAGES, "temperature": 0, "max_tokens": 12})).json()
    [block] = written["content"]
    said = (await real.post(CHAT, {**GREEDY, "ignore_eos": False})).json()
    assert item["content"][0]["text"] == block["text"] == said["choices"][0]["message"]["content"]
    assert spoken.startswith(block["text"])
    counted = written["usage"]["input_tokens"] + written["usage"]["cache_read_input_tokens"]
    assert said["usage"]["prompt_tokens"] == counted == answered["usage"]["input_tokens"]
    stop = block["text"][1:3]
    body = {"messages": MESSAGES, "temperature": 0, "max_tokens": 12, "stop_sequences": ["never", stop]}
    stopped = (await real.post("/v1/messages", body)).json()
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", stop)
    assert stopped["content"][0]["text"] == block["text"].partition(stop)[0]


async def test_requests_at_the_same_time_get_the_answers_they_get_alone(real: Served, spoken: str) -> None:
    answers = await asyncio.gather(*(real.post(CHAT, {**GREEDY, "stream": bool(i % 2)}) for i in range(8)))
    for answer in answers:
        if answer.headers["content-type"] == "application/json":
            assert answer.json()["choices"][0]["message"]["content"] == spoken


async def test_the_second_time_the_prompt_is_known(real: Served) -> None:
    body = {"prompt": list(range(10, 74)), "max_tokens": 2, "ignore_eos": True}
    first, second = [(await real.post(COMPLETIONS, body)).json()["usage"] for _ in range(2)]
    assert first["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["prompt_tokens_details"]["cached_tokens"] == 48


async def test_vectors_have_a_length_of_one(real: Served, local: LocalModel) -> None:
    data = (await real.post("/v1/embeddings", {"input": ["the end", "of the"]})).json()["data"]
    for entry in data:
        assert len(entry["embedding"]) == local.served.hidden_size
        assert math.isclose(math.hypot(*entry["embedding"]), 1, rel_tol=1e-5)
    assert data[0]["embedding"] != data[1]["embedding"]


async def test_a_cancelled_request_leaves_the_engine(real: Served, local: LocalModel) -> None:
    body = {"prompt": "the", "ignore_eos": True, "n": 3}
    asked = asyncio.create_task(real.client.post(COMPLETIONS, json=body, headers={"x-request-id": "mine"}))
    await until(lambda: local.stats().running == 3)
    assert (await real.client.delete("/v1/requests/mine")).status_code == 200
    assert (await asked).status_code == 499


_SERVE = """
import sys
from pathlib import Path
from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.server.run import serve
from mistralrs.server.settings import ServerSettings
source = ModelSource(None, Path(sys.argv[1]), None, None)
settings = ServerSettings(port=0, request_timeout=float(sys.argv[2]), drain_seconds=0.2)
sys.exit(serve(source, LoadOptions(threads=1, isa="torch"), settings))
"""


@contextmanager
def serving(model: Path, *, request_timeout: float = 600) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """A server with an engine of its own process, and a client of it."""
    command = [sys.executable, "-c", _SERVE, str(model), str(request_timeout)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            found = re.search(r"http://127\.0\.0\.1:\d+", line)
            assert found is not None, line + process.stderr.read()
            with httpx.Client(base_url=found[0], timeout=60) as client:
                yield process, client
        finally:
            process.kill()


def engine_of(process: subprocess.Popen[str]) -> int:
    """The engine's process; the server has others, for templates."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    [engine] = [child for child in children if b"engine_server" in Path(f"/proc/{child}/cmdline").read_bytes()]
    return int(engine)


def until_answered(client: httpx.Client) -> None:
    """Asks until an answer comes within the server's short time for one."""
    ends = time.monotonic() + 60
    while (answer := client.post(CHAT, json=GREEDY)).status_code != 200:
        assert answer.status_code in (503, 504), answer.text
        assert time.monotonic() < ends, answer.text


def test_an_engine_that_stands_still_and_goes_on(tiny_llama: Path) -> None:
    with serving(tiny_llama, request_timeout=2) as (process, client):
        until_answered(client)
        os.kill(engine_of(process), signal.SIGSTOP)
        late = client.post(CHAT, json=GREEDY)
        assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
        *_, last = events(client.post(CHAT, json={**GREEDY, "stream": True}))
        assert last["error"]["code"] == "deadline_exceeded"
        while (health := client.get("/health")).status_code == 200:
            pass
        assert (health.status_code, health.json()["error"]["code"]) == (503, "engine_stalled")
        assert client.post(CHAT, json=GREEDY).status_code == 503
        assert 'endpoint="/v1/chat/completions",status="504"' in client.get("/metrics").text
        assert client.get("/v1/requests").json()["data"] == []
        os.kill(engine_of(process), signal.SIGCONT)
        while client.get("/health").status_code == 503:
            pass
        until_answered(client)
        assert "mistralrs_kv_blocks " in client.get("/metrics").text
        os.kill(engine_of(process), signal.SIGSTOP)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_a_server_that_stands_still_and_goes_on(tiny_llama: Path, spoken: str) -> None:
    long = {**GREEDY, "max_tokens": 400, "stream": True}
    with serving(tiny_llama) as (process, client):
        [*expected, done] = events(client.post(CHAT, json=long))
        assert done == "[DONE]"
        with client.stream("POST", CHAT, json=long) as response:
            lines = response.iter_lines()
            first = next(lines)
            process.send_signal(signal.SIGSTOP)
            time.sleep(2)
            process.send_signal(signal.SIGCONT)
            rest = [line for line in (first, *lines) if line.startswith("data: ")]
        assert (len(rest) > 1, rest[-1]) == (True, "data: [DONE]")
        deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in rest[:-1]]
        said = "".join(delta.get("content", "") for delta in deltas)
        assert said == "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in expected)
        assert client.get("/health").status_code == 200


def test_a_server_with_an_engine_of_its_own_process(tiny_llama: Path, spoken: str) -> None:
    with serving(tiny_llama) as (process, client):
        answer = client.post(CHAT, json=GREEDY)
        assert answer.json()["choices"][0]["message"]["content"] == spoken
        with client.stream("POST", CHAT, json={**GREEDY, "max_tokens": 400, "stream": True}) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: ")
        assert client.post(CHAT, json=GREEDY).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
