"""``doctor --api``: a server that does all that clients rely on, and the same with one fault at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mistralrs_cli.conformance.check_table import CHECKS, run_checks
from mistralrs_cli.conformance.checked_server import CheckedServer
from mistralrs_cli.server_client.server_address import ServerAddress
from mistralrs_cli.server_client.server_connection import Server
from tests.cli.in_process import InProcess, running
from tests.server.openai_double import Handler, OpenAIDouble
from tests.serving import RunningServer

Body = dict[str, Any]
Bend = Callable[[Any], Any]
"""Changes the chunks of a stream, or the body of an answer."""

COUNTS = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
LOGPROBS = {"content": [{"token": "a", "logprob": -1.0, "top_logprobs": [{"token": "a", "logprob": -1.0}]}]}
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Rome"}'}}


def error(code: str | None = None) -> Body:
    return {"error": {"message": "no", "type": "invalid_request_error", "param": None, "code": code}}


def _deltas(body: Body) -> list[Body]:
    if "tools" in body:
        first = {**CALL, "index": 0, "function": {"name": "get_weather", "arguments": ""}}
        pieces = [{"tool_calls": [first]}]
        return [*pieces, {"tool_calls": [{"index": 0, "function": {"arguments": '{"city":"Rome"}'}}]}]
    return [{"content": "Hel"}, {"content": "lo"}]


def _reason(body: Body) -> str:
    return "tool_calls" if "tools" in body else "length" if body.get("max_tokens") == 1 else "stop"


def chunks(body: Body) -> list[Body]:
    found = []
    for index in range(body.get("n", 1)):
        found += [{"index": index, "delta": each, "finish_reason": None} for each in _deltas(body)]
        found[-2]["delta"] = {"role": "assistant"} | found[-2]["delta"]
        found.append({"index": index, "delta": {}, "finish_reason": _reason(body)})
    if body.get("logprobs"):
        found[0]["logprobs"] = LOGPROBS
    head = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    events = [head | {"choices": [each]} for each in found]
    usage = head | {"choices": [], "usage": COUNTS}
    return [*events, usage] if body.get("stream_options") else events


def whole(body: Body) -> Body:
    calls = {"content": None, "tool_calls": [CALL]} if "tools" in body else {"content": "Hello"}
    choice: Body = {"index": 0, "message": {"role": "assistant", **calls}, "finish_reason": _reason(body)}
    if body.get("logprobs"):
        choice["logprobs"] = LOGPROBS
    head = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
    return head | {"choices": [choice], "usage": COUNTS}


def answering(
    *, stream: Bend = lambda found: found, plain: Bend = lambda found: found, refuse: Bend = lambda found: found
) -> Callable[[Handler], None]:
    """Answers well, but for what the arguments change."""

    def answer(handler: Handler) -> None:
        body = handler.body
        messages = body.get("messages")
        is_bad = isinstance(body.get("temperature"), str) or isinstance(body.get("max_tokens"), list)
        if is_bad or not isinstance(messages, list) or not isinstance(messages[0]["role"], str):
            status, value = refuse((400, error()))
            handler.json(status, value)
        elif len(messages[0]["content"]) > 1_000_000:
            status, value = refuse((400, error("context_length_exceeded")))
            handler.json(status, value)
        elif body.get("stream"):
            handler.stream(*stream(chunks(body)))
        else:
            handler.json(200, plain(whole(body)))

    return answer


@pytest.fixture
def double() -> Iterator[OpenAIDouble]:
    with OpenAIDouble() as server:
        server.refusal = error()
        server.answer = answering()
        yield server


def faults(double: OpenAIDouble) -> dict[str, str]:
    server = Server(ServerAddress.parse(double.url, written="--api"), None)
    return {each.name: each.said for each in run_checks(CheckedServer(server, model=None)) if each.state == "fault"}


def _choices(change: Callable[[Body], object]) -> Bend:
    def bend(found: Any) -> Any:
        for chunk in found if isinstance(found, list) else [found]:
            for choice in chunk["choices"]:
                change(choice)
        return found

    return bend


def _each(**fields: object) -> Bend:
    return lambda found: [chunk | fields for chunk in found] if isinstance(found, list) else found | fields


def _call_pieces(change: Callable[[Body], object]) -> Bend:
    return _choices(lambda choice: [change(piece) for piece in choice["delta"].get("tool_calls", [])])


def _last_delta_null(found: list[Body]) -> list[Body]:
    found[-1]["choices"] and found[-1]["choices"][0].update(delta=None)
    return found


FAULTS: dict[str, tuple[dict[str, Bend], set[str]]] = {
    "role in every delta": (
        {"stream": _choices(lambda each: each["delta"].update(role="assistant"))},
        {"stream: role once"},
    ),
    "no role in a delta": (
        {"stream": _choices(lambda each: each["delta"].pop("role", None))},
        {"stream: role once"},
    ),
    "no role": ({"plain": _choices(lambda each: each["message"].pop("role"))}, {"message: role and text"}),
    "content as list": (
        {"plain": _choices(lambda each: each["message"].update(content=[{"type": "text", "text": "x"}]))},
        {"message: role and text"},
    ),
    "null for choices": ({"stream": lambda found: [*found, found[0] | {"choices": None}]}, {
        "stream: choices in every event", "stream: usage when asked"}),
    "null for the last delta": ({"stream": _last_delta_null}, {"stream: role once", "stream: deltas and one reason"}),
    "usage on every chunk": (
        {"stream": _each(usage=COUNTS)},
        {"stream: no usage unasked", "stream: usage when asked"},
    ),
    "no id": ({"stream": _each(id=None)}, {"id, object, time, model"}),
    "no usage": ({"plain": _each(usage=None)}, {"usage"}),
    "an unknown reason": (
        {"plain": _choices(lambda each: each.update(finish_reason="eos"))},
        {"finish_reason", "tool call: finish_reason"},
    ),
    "choice 1 first": (
        {"stream": lambda found: sorted(found, key=lambda chunk: -(chunk["choices"] or [{"index": -1}])[0]["index"])},
        {"stream: choice 0 first"},
    ),
    "ids for tokens": (
        {"plain": _choices(lambda each: each.get("logprobs") and each.update(logprobs={"content": [{"token": 1}]}))},
        {"logprobs"},
    ),
    "arguments as object": (
        {"plain": _choices(lambda each: each["message"].get("tool_calls") and each["message"].update(tool_calls=[
            CALL | {"function": {"name": "get_weather", "arguments": {"city": "Rome"}}}]))},
        {"tool call"},
    ),
    "the name again": (
        {"stream": _call_pieces(lambda piece: piece["function"].update(name="get_weather"))},
        {"tool call: stream"},
    ),
    "no index": ({"stream": _call_pieces(lambda piece: piece.pop("index"))}, {"tool call: stream"}),
    "an index from 1": ({"stream": _call_pieces(lambda piece: piece.update(index=1))}, {"tool call: stream"}),
    "5xx for bad input": (
        {"refuse": lambda found: (500, found[1])},
        {"error: body", "error: 4xx for bad input", "error: context length"},
    ),
    "an error as text": (
        {"refuse": lambda found: (400, {"error": "no"})},
        {"error: body", "error: context length"},
    ),
    "FastAPI's detail": (
        {"refuse": lambda found: (400, {"detail": "no"})},
        {"error: body", "error: context length"},
    ),
    "200 with an error": (
        {"refuse": lambda found: (200, found[1])},
        {"error: body", "error: 4xx for bad input"},
    ),
    "one name for thoughts": (
        {"plain": _choices(lambda each: each["message"].update(reasoning_content="hm"))},
        {"thought under both names"},
    ),
}  # fmt: skip


def test_a_server_without_faults_passes(double: OpenAIDouble) -> None:
    assert faults(double) == {}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_found(name: str, double: OpenAIDouble) -> None:
    bends, expected = FAULTS[name]
    double.answer = answering(**bends)
    assert set(faults(double)) == expected


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[InProcess]:
    with running(tmp_path, capsys, monkeypatch) as command:
        yield command


def test_the_table_and_the_exit_code(run: InProcess, double: OpenAIDouble) -> None:
    code, out, err = run("doctor", "--api", double.url)
    lines = out.splitlines()
    assert (code, err, len(lines)) == (0, "", len(CHECKS) + 2)
    assert lines[0] == f"{double.url}, model first"
    assert lines[-1] == f"{len(CHECKS) - 1} ok, 0 with a fault, 1 not checked"
    double.models, double.key = ["only"], "key"
    double.refusal = {"error": "\x1b[31mred"}
    code, out, err = run("--api-key", "key", "--model-name", "other", "doctor", "--api", double.url, "--json")
    record = json.loads(out)
    assert (code, err, record["model"], record["ok"]) == (1, "", "other", False)
    assert [each["name"] for each in record["checks"] if each["state"] == "fault"] == ["error: unknown path"]
    assert "\x1b" not in run("--api-key", "key", "doctor", "--api", double.url)[1]


def test_a_server_that_is_not_there(run: InProcess) -> None:
    code, out, err = run("doctor", "--api", "http://127.0.0.1:9")
    assert (code, out) == (3, "")
    assert "error: http://127.0.0.1:9/v1 cannot be reached" in err


@pytest.mark.slow
def test_our_server_passes(default_model: Path, run: InProcess) -> None:
    settings = {"MISTRALRS_DEFAULT_MODEL": str(default_model)}
    with RunningServer("--chat-template", "hermes", environment=settings) as server:
        code, out, _ = run("doctor", "--api", server.root)
    assert (code, out.splitlines()[-1]) == (0, f"{len(CHECKS) - 1} ok, 0 with a fault, 1 not checked"), out
