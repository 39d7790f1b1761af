"""``--connect``: the terminal asks a server, ours and others, in place of a model that it loads."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistralrs.api.served_model import ServedModel
from mistralrs.engine.config import SamplingParams
from mistralrs.engine.events import Delta
from mistralrs.errors import LoadError, UsageError
from mistralrs_cli.arguments.command_line import parse
from mistralrs_cli.arguments.invocation import RemoteInvocation, resolve
from mistralrs_cli.chat_storage.chat_store import ChatStore
from mistralrs_cli.server_client.remote_model import ServerChoice, connect
from mistralrs_cli.server_client.server_address import ServerAddress
from mistralrs_cli.server_client.server_connection import Server
from mistralrs_cli.server_client.sse_events import SseDecoder
from tests.cli.program import Program
from tests.cli.terminal import CTRL_C, CTRL_D, ENTER, ROOT, Terminal, environment
from tests.server.openai_double import HELLO, USAGE, Answer, OpenAIDouble, chunk
from tests.server.process import ServerProcess, wait_for


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


@pytest.fixture(scope="module")
def ours(model: ServedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(model, tmp_path_factory.mktemp("server"), api_keys=["secret", "other"]) as server:
        assert server.port
        yield server


@pytest.fixture
def other() -> Iterator[OpenAIDouble]:
    with OpenAIDouble() as double:
        yield double


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://127.0.0.1:1234", "http://127.0.0.1:1234/v1"),
        ("localhost:1234", "http://localhost:1234/v1"),
        ("http://localhost:1234/v1/", "http://localhost:1234/v1"),
        ("https://openrouter.ai/api/v1", "https://openrouter.ai/api/v1"),
        ("http://[::1]:80/", "http://[::1]/v1"),
    ],
)
def test_addresses(url: str, shown: str) -> None:
    assert str(ServerAddress.parse(url, written="--connect")) == shown


@pytest.mark.parametrize(
    "url", ["", "ftp://x", "http://", "http://x:99999", "http://u:p@x", "http://x/?a=b", "http://x/a b", "http://[x"]
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(UsageError) as refused:
        ServerAddress.parse(url, written="--connect")
    assert "--connect" in refused.value.message
    assert refused.value.hint


EVENTS = (
    b': hello\r\n\r\ndata: a\ndata:b\nid: 3\n\nevent: x\rdata: \xc3\xa4\r\rdata\n\ndata: {"x": "\\n"}\r\n\r\ndata: cut'
)


@settings(deadline=None)
@given(st.lists(st.integers(0, len(EVENTS)), max_size=12))
def test_events_in_any_pieces(cuts: list[int]) -> None:
    decoder = SseDecoder()
    ends = sorted(cuts)
    pieces = [EVENTS[a:b] for a, b in zip([0, *ends], [*ends, len(EVENTS)], strict=True)]
    found = [event for piece in pieces for event in decoder.feed(piece)]
    assert found == [b"a\nb", "ä".encode(), b"", b'{"x": "\\n"}']


def test_our_server(program: Program, ours: ServerProcess) -> None:
    words = ["--connect", f"http://127.0.0.1:{ours.port}", "--api-key", "secret", "--seed", "3"]
    assert program(*words, "--prompt", "x") == (0, "Hello world\n", "")
    code, out, err = program(*words, "--prompt", "x", "--json")
    answer = json.loads(out)
    assert (code, err, answer["text"], answer["finish_reason"], answer["seed"]) == (0, "", "Hello world", "stop", 3)
    assert answer["usage"]["completion_tokens"] == 2
    assert (answer["timings"]["prompt_s"], answer["timings"]["completion_s"]) == (0.5, 0.25)
    code, out, err = program(*words, "--prompt", "broken")
    assert (code, out) == (1, "Hel\n")
    assert "failed: the model failed" in err
    code, out, err = program(*words, "--prompt", "x", "--model-name", "absent")
    assert (code, out) == (3, "")
    assert "has no model 'absent'" in err
    assert "hint: it has " in err
    # the rest of the ways to ask
    assert program(*words, "-i", stdin=b"x\ny\n") == (0, "Hello world\nHello world\n", "")
    code, out, _ = program(*words, "--chat-jsonl", stdin=b'{"role": "user", "content": "x"}\n')
    assert (code, json.loads(out)["content"]) == (0, "Hello world")
    code, out, _ = program(*words, "--prompt-file", "-", "--jsonl", stdin=b"x\nbroken\ny\n")
    found = [json.loads(line) for line in out.splitlines()]
    assert (code, [each["text"] for each in found]) == (1, ["Hello world", "Hel", "Hello world"])
    assert "error" in found[1]


@pytest.mark.parametrize(
    ("variables", "code", "said"),
    [
        ({}, 3, "refuses the key (401)"),
        ({"MISTRALRS_API_KEY": "wrong"}, 3, "refuses the key (401)"),
        ({"MISTRALRS_API_KEY": "other,secret"}, 0, ""),
    ],
)
def test_keys(program: Program, ours: ServerProcess, variables: dict[str, str], code: int, said: str) -> None:
    variables = {"MISTRALRS_URL": f"http://127.0.0.1:{ours.port}/v1", **variables}
    found, out, err = program("--prompt", "x", variables=variables)
    assert (found, out) == (code, "Hello world\n" if code == 0 else "")
    assert said in err


def test_ctrl_c_frees_the_server(program: Program, ours: ServerProcess) -> None:
    words = ["--connect", f"http://127.0.0.1:{ours.port}", "--api-key", "secret", "--no-stdin", "--prompt"]
    for word in ("endless", "silent"):
        with program.start(*words, word) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            wait_for(lambda: running(ours) == 1)
            if word == "endless":
                assert process.stdout.read(3) == b"xxx"
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
            assert process.stdout.read().strip(b"x") == (b"\n" if word == "endless" else b"")
            assert process.stderr.read() == b""
        wait_for(lambda: running(ours) == 0)


def running(server: ServerProcess) -> int:
    with server.client(headers={"Authorization": "Bearer secret"}) as client:
        return len(client.get("/v1/requests").json()["data"])


def test_a_chat_in_the_terminal(tmp_path: Path, ours: ServerProcess) -> None:
    words = ["--connect", f"localhost:{ours.port}", "-i", "--stats"]
    with Terminal(words, environment(tmp_path, MISTRALRS_API_KEY="secret")) as terminal:
        terminal.wait_for_prompt()
        assert f"http://localhost:{ours.port}/v1 · context" in " ".join(terminal.lines())
        terminal.send("Hi", ENTER)
        terminal.wait_for_line("Hello world")
        terminal.wait_for("2 tok · 4.0 tok/s")
        terminal.wait_for_prompt()
        terminal.send("/continue", ENTER)
        terminal.wait_for_line("Hello world", times=2)
        terminal.wait_for_prompt()
        terminal.send("silent", ENTER)
        terminal.wait_for("> silent")
        wait_for(lambda: running(ours) == 1)
        terminal.send(CTRL_C)
        terminal.wait_for_line("> silent", times=2)  # the text is back in the line
        terminal.send(CTRL_C, "broken", ENTER)
        terminal.wait_for("failed: the model failed")
        terminal.wait_for_prompt()
        terminal.send(CTRL_D)
        assert terminal.exit_code() == 0
    store = ChatStore.open(tmp_path / ".local" / "share" / "mistralrs" / "chats.db")
    saved = [each.content for each in store.load(store.find("")).path]
    store.close()
    assert saved == ["Hi", "Hello worldHello world"]


def test_an_answer_of_another_server_is_not_continued(tmp_path: Path, other: OpenAIDouble) -> None:
    with Terminal(["--connect", other.url, "-i"], environment(tmp_path)) as terminal:
        terminal.wait_for_prompt()
        terminal.send("Hi", ENTER)
        terminal.wait_for("Hello")
        terminal.wait_for_prompt()
        terminal.send("/continue", ENTER)
        terminal.wait_for("only a mistralrs server is known to continue an answer")
        terminal.wait_for_prompt()


def test_another_server_gets_what_was_asked_for(program: Program, other: OpenAIDouble) -> None:
    words = ["--connect", other.url, "--seed", "7", "--prompt", "x", "--jsonl"]
    code, out, err = program(*words)
    answer = json.loads(out)
    assert (code, err, answer["text"], answer["model"]) == (0, "", "Hello", "first")
    assert answer["usage"]["prompt_tokens"] == 5
    messages = [{"role": "user", "content": "x"}]
    body = {"model": "first", "messages": messages, "stream": True, "stream_options": {"include_usage": True}}
    assert other.bodies == [{**body, "seed": 7, "max_tokens": 128}]
    more = ["--temperature", "0.5", "--top-k", "3", "--stop", "END", "--max-tokens", "-1", "--model-name", "third"]
    other.models = None  # it need not list its models
    assert program(*words, *more, variables={"MISTRALRS_MIN_P": "0.1"})[0] == 0
    sampling = {"temperature": 0.5, "top_k": 3, "min_p": 0.1, "stop": ["END"]}
    assert other.bodies[1] == {**body, "model": "third", "seed": 7, **sampling}


def test_a_grammar_goes_to_the_server(program: Program, other: OpenAIDouble, tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    words = ["--connect", other.url, "--prompt", "x"]
    assert program(*words, "--schema", str(tmp_path / "schema.json"))[0] == 0
    format = other.bodies[0]["response_format"]
    assert (format["type"], format["json_schema"]["schema"]) == ("json_schema", schema)
    code, out, err = program(*words, "--regex", "[ab]")
    assert (code, out, len(other.bodies)) == (4, "", 1)
    assert "only a mistralrs server is known to obey a grammar of kind regex" in err
    other.is_ours = True
    assert program(*words, "--regex", "[ab]")[0] == 0
    assert other.bodies[1]["grammar"] == {"type": "regex", "value": "[ab]"}
    assert other.bodies[1]["top_k"] == 32  # the terminal's own


def busy(handler: Any) -> None:
    """Refuses the first request."""
    if len(handler.server.double.bodies) == 1:
        handler.json(429, {"error": {"message": "slow down"}}, Retry_After="0")
    else:
        handler.stream(*HELLO)


@pytest.mark.parametrize(
    ("answer", "code", "out", "said"),
    [
        (lambda h: h.json(400, {"error": {"message": "no such field"}}), 4, "", "refuses the request (400): no such"),
        (lambda h: h.json(404, {"error": {"message": "no model"}}), 3, "", "does not have it (404): no model"),
        (lambda h: h.json(401, {"detail": "key?"}), 3, "", "refuses the key (401): key?"),
        (lambda h: h.json(429, {"error": "busy"}, Retry_After="7"), 1, "", "now (429): busy\nhint: try again in 7 s"),
        (lambda h: h.json(503, {}, Retry_After="x"), 1, "", "takes no request now (503)\nhint: try again later"),
        (lambda h: h.json(500, {"message": "oh\x1b[31m"}), 1, "", "failed (500): oh\n"),
        (lambda h: h.json(301, {}, Location="http://elsewhere/v1"), 3, "", "sends elsewhere (301): http://elsewhere/v1"),
        (lambda h: h.json(200, {"choices": []}), 3, "", "answers with application/json"),
        (lambda h: h.stream(chunk("Hel"), {"error": {"message": "out of luck"}}), 1, "Hel\n", "failed: out of luck"),
        (
            lambda h: h.stream({"error": {"message": "too long", "type": "invalid_request_error"}}),
            4,
            "",
            "refuses the request: too long",
        ),
        (lambda h: h.stream(chunk("Hel"), end=b""), 1, "Hel\n", "broke its answer off"),
        (lambda h: h.stream(chunk("Hel"), b"data: {no json\n\n"), 1, "Hel\n", "sent no chunk of a chat"),
        (lambda h: h.stream(b"data: []\n\n"), 1, "", "sent no chunk of a chat"),
        (lambda h: h.stream(b'data: {"choices": [3]}\n\n'), 1, "", "sent no chunk of a chat"),
        (lambda h: h.stream(chunk("x", "content_filter")), 1, "x\n", "ended its answer with 'content_filter'"),
        (lambda h: h.stream(chunk("x", "length"), end=b""), 0, "x\n", ""),
        (lambda h: h.connection.close(), 1, "", "does not speak HTTP as it should"),
    ],
)  # fmt: skip
def test_answers_of_servers(
    program: Program, other: OpenAIDouble, answer: Answer, code: int, out: str, said: str
) -> None:
    other.answer = answer
    found = program("--connect", other.url, "--prompt", "x")
    assert found[:2] == (code, out)
    assert said in found[2]
    assert found[2].startswith("error: ") == bool(code)


def test_a_server_that_is_not_there(program: Program, other: OpenAIDouble) -> None:
    code, out, err = program("--connect", "127.0.0.1:1", "--prompt", "x")
    assert (code, out) == (3, "")
    assert err.startswith("error: http://127.0.0.1:1/v1 cannot be reached: Connection refused\nhint: ")
    other.models = []
    code, _, err = program("--connect", other.url, "--prompt", "x")
    assert (code, "lists no model" in err) == (3, True)
    code, _, err = program("--connect", f"{other.url}/wrong", "--prompt", "x")
    assert (code, "does not have it (404): no such path" in err) == (3, True)


def test_a_batch_waits_for_a_busy_server(program: Program, other: OpenAIDouble) -> None:
    other.answer = busy
    words = ["--connect", other.url, "--prompt-file", "-", "--max-seqs", "1"]
    assert program(*words, stdin=b"x\n") == (0, "Hello\n", "")
    assert len(other.bodies) == 2


def test_a_batch_stops_when_its_server_is_gone(program: Program, other: OpenAIDouble, tmp_path: Path) -> None:
    out, unlucky = tmp_path / "out.jsonl", ["c"]

    def break_off_once(handler: Any) -> None:
        question = handler.body["messages"][-1]["content"]
        if question in unlucky:
            unlucky.remove(question)
            handler.stream(chunk("He"), end=b"")
        else:
            handler.stream(*HELLO)

    other.answer = break_off_once
    words = ["--connect", other.url, "--prompt-file", "-", "--out", str(out), "--max-seqs", "1"]
    lines = b"a\nb\nc\nd\n"
    code, _, err = program(*words, stdin=lines)
    assert code == 1
    assert "broke its answer off" in err
    assert err.endswith("stopped after line 2; the same command goes on from there\n")
    assert program(*words, stdin=lines)[0] == 0
    assert [(each["line"], each["text"]) for each in map(json.loads, out.read_text().splitlines())] == [
        (number, "Hello") for number in (1, 2, 3, 4)
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompt", "x", "gguf", "-f", "x.gguf"], "gguf loads a model, and --connect asks a server"),
        (["-i", "--threads", "2"], "--threads is for a model that is loaded here"),
        (["-i", "--lora", "a=b"], "--lora is for a model that is loaded here"),
        (["-i", "-c", "x"], "--chat-template is for a model that is loaded here"),
        (["-i", "--max-seqs", "2"], "--max-seqs is for a model that is loaded here"),
        (["-i", "-t"], "--truncate-sequence is for a model that is loaded here"),
        (["-i", "--api-key", "a", "--api-key", "b"], "one key is sent to a server"),
        (["-i", "--api-key", "ä"], "has characters that no header has"),
        (["bench"], "--connect needs -i or --prompt"),
        (["--port", "1"], "--connect needs -i or --prompt"),
    ],
)
def test_refusals(words: list[str], said: str) -> None:
    parsed = parse(["--connect", "localhost:1", *words])
    assert parsed is not None
    with pytest.raises(UsageError) as refused:
        resolve(parsed)
    assert said in refused.value.message
    assert refused.value.hint


def test_the_server_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    def task(*words: str) -> object:
        parsed = parse(words)
        assert parsed is not None
        return resolve(parsed)

    monkeypatch.setenv("MISTRALRS_URL", "localhost:1")
    monkeypatch.setenv("MISTRALRS_THREADS", "2")  # for other calls
    found = task("-i")
    assert isinstance(found, RemoteInvocation)
    assert str(found.server.server.address) == "http://localhost:1/v1"
    with pytest.raises(UsageError) as refused:
        task("-i", "gguf", "-f", "x.gguf")
    assert (refused.value.message, refused.value.hint) == (
        "gguf loads a model, and MISTRALRS_URL asks a server",
        "leave gguf out, or MISTRALRS_URL= before the command leaves the server out",
    )
    monkeypatch.setenv("MISTRALRS_TRUNCATE_SEQUENCE", "1")
    with pytest.raises(UsageError, match="MISTRALRS_TRUNCATE_SEQUENCE: a server refuses"):
        task("-i")


def test_nothing_heavy_is_imported(tmp_path: Path, other: OpenAIDouble) -> None:
    heavy = ("torch", "numpy", "tokenizers", "gguf", "huggingface_hub", "jinja2", "httpx", "rich")
    words = ["--connect", other.url, "--prompt", "x"]
    code = f"import sys; from mistralrs_cli.app import main; code = main({words!r}); "
    code += f"print(code, [name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(tmp_path),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("Hello\n", "0 []\n")


def test_thinking_of_a_server(program: Program, other: OpenAIDouble) -> None:
    for name in ("reasoning", "reasoning_content"):
        thought = {"choices": [{"index": 0, "delta": {name: "Hm."}, "finish_reason": None}]}
        other.answer = lambda handler, thought=thought: handler.stream(thought, *HELLO)  # type: ignore[misc]
        answer = json.loads(program("--connect", other.url, "--prompt", "x", "--json")[1])
        assert (answer["text"], answer["reasoning"]) == ("Hello", "Hm.")
    assert program("--connect", other.url, "--prompt", "x") == (0, "Hello\n", "")


def test_usage_that_a_server_leaves_out(program: Program, other: OpenAIDouble) -> None:
    other.answer = lambda handler: handler.stream(*(each for each in HELLO if each is not USAGE))
    code, out, _ = program("--connect", other.url, "--prompt", "x", "--json")
    usage = json.loads(out)["usage"]
    assert (code, usage["prompt_tokens"], usage["completion_tokens"]) == (0, 0, 2)


TOKENS = {"tokens": [{"id": 5, "piece": "hi"}, {"id": 9, "piece": [195]}], "count": 2}
PROBABLE = {
    "content": [
        {"token": "hi", "logprob": -0.5, "bytes": [104, 105], "top_logprobs": [{"token": "ho", "logprob": -1.0}]},
        {"token": "\ufffd", "logprob": -3.0, "bytes": [195], "top_logprobs": []},
    ]
}


def test_tokens_and_probabilities_of_a_server(other: OpenAIDouble) -> None:
    other.is_ours = True
    server = Server(ServerAddress.parse(other.url, written="x"), None)
    model = connect(ServerChoice(server, None, frozenset(), 1, False))
    other.answer = lambda handler: handler.json(200, TOKENS)
    assert model.tokenizer.encode("hiÃ", special=False) == [5, 9]
    assert (model.tokenizer.token_text(5), model.tokenizer.token_bytes(9)) == ("hi", b"\xc3")
    assert model.tokens_of([{"role": "user", "content": "x"}]) == (5, 9)
    assert [body.get("prompt") for body in other.bodies] == ["hiÃ", None]
    for broken in ({}, {"tokens": [3]}, {"tokens": [{"id": 1, "piece": [999]}]}):
        other.answer = lambda handler, broken=broken: handler.json(200, broken)
        with pytest.raises(LoadError, match="sent no list of tokens"):
            model.tokenizer.encode("x", special=False)
    event = chunk("hi")
    event["choices"][0]["logprobs"] = PROBABLE  # type: ignore[index]
    other.answer = lambda handler: handler.stream(event, chunk(reason="stop"))
    events = list(model.chat([{"role": "user", "content": "x"}], SamplingParams(logprobs=2)))
    assert (other.bodies[-1]["logprobs"], other.bodies[-1]["top_logprobs"]) == (True, 2)
    assert isinstance(events[0], Delta)
    first, second = events[0].logprobs
    assert (first.text, first.logprob, second.data) == ("hi", -0.5, b"\xc3")
    assert [each.text for each in first.top] == ["ho"]
    assert len({first.token, second.token, first.top[0].token}) == 3


def test_a_server_names_its_models_sampling(program: Program, other: OpenAIDouble) -> None:
    other.is_ours, other.default_sampling = True, {"temperature": 0.7, "top_p": 0.9, "unknown": 1}
    assert program("--connect", other.url, "--prompt", "x", "--top-p", "0.5")[0] == 0
    body = other.bodies[0]
    assert (body["temperature"], body["top_p"], body["top_k"]) == (0.7, 0.5, 32)
    assert "unknown" not in body
