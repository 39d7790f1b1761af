"""The error codes of `docs/troubleshooting.md` that a user can bring about, from a real server where it has a part, and
the remedies."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from mistralrs import ChatCompletionRequest, Runner, Which
from mistralrs.errors import EngineError, RequestError
from tests.adapters.peft_adapters import write_adapter
from tests.architectures import VARIANTS, write_folder
from tests.examples.test_generated_documents import CODES
from tests.serving import RunningServer

CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]}]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}
Asked = tuple[str, str, object, dict[str, str]]
REQUESTS: dict[str, Asked] = {
    "unknown_url": ("GET", "/nowhere", None, {}),
    "method_not_allowed": ("PUT", CHAT, None, {}),
    "unsupported_media_type": ("POST", CHAT, {"messages": "Hi"}, {"Content-Type": "text/plain"}),
    "invalid_value": ("POST", CHAT, {"messages": "Hi", "temperature": -1}, JSON),
    "invalid_grammar": ("POST", CHAT, {"messages": "Hi", "grammar": {"type": "regex", "value": "[0-9"}}, JSON),
    "invalid_schema": ("POST", CHAT, {"messages": "Hi", "response_format": SCHEMA}, JSON),
    "context_length_exceeded": ("POST", CHAT, {"messages": "word " * 20_000}, JSON),
    "unsupported_content_part": ("POST", CHAT, {"messages": IMAGE}, JSON),
    "unsupported_parameter": ("POST", CHAT, {"messages": "Hi", "scalings": True}, JSON),
    "unsupported_tool": ("POST", CHAT, {"messages": "Hi", "tools": [{"type": "web_search"}]}, JSON),
    "unsupported_item": ("POST", "/v1/responses", {"input": [{"type": "item_reference", "id": "msg_1"}]}, JSON),
    "response_not_found": ("GET", "/v1/responses/resp_1", None, {}),
    "request_not_found": ("DELETE", "/v1/requests/chatcmpl-1", None, {}),
    "model_not_found": ("GET", "/v1/models/another", None, {}),
    "adapter_not_found": ("POST", CHAT, {"messages": "Hi", "adapter": "style"}, JSON),
    "adapter_changes_forbidden": (
        "POST",
        "/v1/load_lora_adapter",
        {"lora_name": "style", "lora_path": "style"},
        JSON,
    ),
    "request_too_large": ("POST", "/tokenize", {"content": "a" * (3 << 20)}, JSON),
    "forbidden_host": ("GET", "/v1/models", None, {"Host": "example.org"}),
    "invalid_host": ("GET", "/v1/models", None, {"Host": "two words"}),
}


def ask(server: RunningServer, asked: Asked) -> tuple[int, dict[str, Any]]:
    method, path, body, headers = asked
    with closing(http.client.HTTPConnection(server.host, server.port, timeout=30)) as connection:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())["error"]


@pytest.mark.parametrize("code", REQUESTS)
def test_a_request_that_is_refused(code: str, served: RunningServer) -> None:
    status, error = ask(served, REQUESTS[code])
    assert (status, error["code"]) == (CODES[code], code), error
    assert len(error["message"].split()) > 3


def test_bytes_that_are_no_request(served: RunningServer) -> None:
    with socket.create_connection((served.host, served.port), timeout=30) as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS client's hello\r\n\r\n")
        head, _, body = connection.makefile("rb").read().partition(b"\r\n\r\n")
    assert int(head.split()[1]) == CODES["invalid_http"]
    assert json.loads(body)["error"]["code"] == "invalid_http"


# Remedies


def test_a_grammar_that_ends_before_its_least_token(served: RunningServer) -> None:
    body = {"messages": "Hi", "max_tokens": 20, "grammar": {"type": "regex", "value": "a"}}
    status, error = ask(served, ("POST", CHAT, {**body, "min_tokens": 9}, JSON))
    assert (status, error["code"]) == (CODES["grammar_failed"], "grammar_failed"), error
    assert served.ask("POST", CHAT, body)[0] == 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, adapters of it, and an empty folder for adapters."""
    folder = tmp_path_factory.mktemp("guarded")
    base = write_folder(folder / "base", VARIANTS["llama"], dtype=torch.float32)
    for seed, name in enumerate(("elsewhere", "first", "second", "other")):
        write_adapter(folder / name, base, seed=seed, settings={"target_modules": ["q_proj"], "r": 4})
    (folder / "adapters").mkdir()
    return folder


@pytest.fixture(scope="module")
def guarded(folder: Path) -> Iterator[RunningServer]:
    """A server with a key, whose adapters clients may change."""
    adapters = ["--allow-adapter-changes", "--adapter-root", str(folder / "adapters")]
    with RunningServer("--api-key", "secret", *adapters, "--threads", "1", "auto", str(folder / "base")) as server:
        yield server


KEY = {"Authorization": "Bearer secret"}
MODELS = "/v1/models"


def test_a_key_that_is_missing(guarded: RunningServer) -> None:
    status, error = ask(guarded, ("GET", MODELS, None, {}))
    assert (status, error["code"]) == (CODES["invalid_api_key"], "invalid_api_key")
    for key in (KEY, {"x-api-key": "secret"}, {**KEY, "Host": "example.org"}):  # which is forbidden without a key
        assert guarded.ask("GET", MODELS, headers=key)[0] == 200


def test_adapters_that_cannot_be_had(guarded: RunningServer, folder: Path) -> None:
    def load(path: Path) -> tuple[int, Any]:
        body = {"lora_name": "style", "lora_path": str(path)}
        return guarded.ask("POST", "/v1/load_lora_adapter", body, headers=KEY)

    def answer() -> tuple[int, Any]:
        body = {"messages": "Hi", "max_tokens": 2, "adapter": "style"}
        return guarded.ask("POST", CHAT, body, headers=KEY)

    for done, code in (
        (answer(), "adapter_not_found"),
        (load(folder / "elsewhere"), "adapter_path_forbidden"),
        (load(folder / "adapters" / "nowhere"), "adapter_not_loadable"),
    ):
        assert (done[0], done[1]["error"]["code"]) == (CODES[code], code), done
    moved = Path(shutil.move(folder / "elsewhere", folder / "adapters" / "moved"))
    assert load(moved)[0] == 200
    assert answer()[0] == 200
    assert "style" in [each["id"] for each in guarded.ask("GET", MODELS, headers=KEY)[1]["data"]]


# Remedies, with little room


PLUGIN = """
import pathlib, time

def waits(tokens, logits):
    while not pathlib.Path({gate!r}).exists():
        time.sleep(0.01)

def divides(tokens, logits):
    return 1 / 0

LOGITS_PROCESSORS = {{"waits": waits, "divides": divides}}
"""


@pytest.fixture
def gate(folder: Path) -> Iterator[Path]:
    """The file that ends the waiting of all answers with the processor ``waits``."""
    gate = folder / "gate"
    yield gate
    gate.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def limited(folder: Path) -> Iterator[RunningServer]:
    """A server with places for two requests and for one of its two adapters."""
    plugin = folder / "plugin.py"
    plugin.write_text(PLUGIN.format(gate=str(folder / "gate")), encoding="utf-8")
    limits = ["--max-seqs", "2", "--max-queue", "0", "--max-adapters", "1", "--threads", "1"]
    adapters = [f"--lora={name}={folder / name}" for name in ("first", "second")]
    changes = ["--allow-adapter-changes", "--adapter-root", str(folder)]
    with RunningServer(*limits, *adapters, *changes, "--plugin", str(plugin), "auto", str(folder / "base")) as server:
        yield server


def answer(server: RunningServer, **fields: object) -> tuple[int, Any]:
    return server.ask("POST", CHAT, {"messages": "Hi", "max_tokens": 2, **fields})


@contextmanager
def waiting(server: RunningServer, gate: Path, **fields: object) -> Iterator[Future[tuple[int, Any]]]:
    """A request that is under way until ``gate`` is written, which the end of the context does."""
    before = len(server.ask("GET", "/v1/requests")[1]["data"])
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(answer, server, logits_processors=["waits"], **fields)
        while len(server.ask("GET", "/v1/requests")[1]["data"]) == before:
            assert not asked.done(), asked.result()
        try:
            yield asked
        finally:
            gate.touch()


def test_places_that_are_all_taken(limited: RunningServer, gate: Path) -> None:
    with waiting(limited, gate, adapter="first") as first:
        refused = answer(limited, adapter="second")
        assert (refused[0], refused[1]["error"]["code"]) == (CODES["adapter_slots_full"], "adapter_slots_full")
        with waiting(limited, gate) as second:
            refused = answer(limited)
            assert (refused[0], refused[1]["error"]["code"]) == (CODES["queue_full"], "queue_full")
    assert (first.result()[0], second.result()[0], answer(limited, adapter="second")[0]) == (200, 200, 200)


def test_a_request_that_another_client_ends(limited: RunningServer, gate: Path) -> None:
    with waiting(limited, gate) as asked:
        [found] = limited.ask("GET", "/v1/requests")[1]["data"]
        assert limited.ask("DELETE", f"/v1/requests/{found['id']}")[0] == 200
    status, body = asked.result()
    assert (status, body["error"]["code"]) == (CODES["request_cancelled"], "request_cancelled")
    assert answer(limited)[0] == 200


def test_a_function_that_fails(limited: RunningServer) -> None:
    status, body = answer(limited, logits_processors=["divides"])
    assert (status, body["error"]["code"]) == (CODES["hook_failed"], "hook_failed")
    assert "the logits processor divides failed: ZeroDivisionError" in body["error"]["message"]


def test_an_adapter_whose_files_are_gone_or_others(limited: RunningServer, folder: Path) -> None:
    def answers() -> tuple[int, str | None]:
        """Asks with the adapter after its only slot had another."""
        assert answer(limited, adapter="first")[0] == 200
        status, body = answer(limited, adapter="second")
        return status, body["error"]["code"] if status != 200 else None

    unavailable = (CODES["adapter_unavailable"], "adapter_unavailable")
    moved = Path(shutil.move(folder / "second", folder / "away"))
    assert answers() == unavailable
    shutil.move(moved, folder / "second")
    assert answers() == (200, None)
    shutil.copytree(folder / "other", folder / "second", dirs_exist_ok=True)
    assert answers() == unavailable
    again = {"lora_name": "second", "lora_path": str(folder / "second"), "load_inplace": True}
    assert limited.ask("POST", "/v1/load_lora_adapter", again)[0] == 200
    assert answers() == (200, None)


def test_an_engine_that_is_killed(limited: RunningServer, gate: Path) -> None:
    children = Path(f"/proc/{limited.process.pid}/task/{limited.process.pid}/children").read_text().split()
    [engine] = [child for child in children if b"engine_server" in Path(f"/proc/{child}/cmdline").read_bytes()]
    with waiting(limited, gate) as asked:
        os.kill(int(engine), signal.SIGKILL)
        status, body = asked.result(30)
    assert (status, body["error"]["code"]) == (CODES["engine_dead"], "engine_dead")
    assert limited.process.wait(30) == 1
    assert any("killed by signal 9" in line for line in limited.said)


# Remedies in the model's own files


def runs(folder: Path, **fields: Any) -> str | None:
    """Asks a model; returns the code of the error, or None for an answer."""
    with Runner(which=Which.Auto(str(folder)), threads=1) as runner:
        try:
            runner.send_chat_completion_request(ChatCompletionRequest("Hi", **{"max_tokens": 5, **fields}))
        except (EngineError, RequestError) as error:
            return error.code
    return None


@pytest.mark.parametrize(
    ("code", "opens", "closes"),
    [
        ("response_template_endless", "(?=.)", "(?=.)"),
        ("response_template_too_slow", "(?:a|aa)+[^ab]", "!"),
    ],
)
def test_a_response_template_that_cannot_be_used(
    code: str, opens: str, closes: str, folder: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(folder / "base", tmp_path / "model"))
    path = model / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    fields = {"thinking": {"open_pattern": opens, "close_pattern": closes}, "content": {}}
    path.write_text(json.dumps({**config, "response_template": {"start_anchor": "X", "fields": fields}}))
    with Runner(which=Which.Auto(str(model)), threads=1) as runner:
        [letter] = runner.tokenize("a")
    asked = {"max_tokens": 80, "logit_bias": {letter: 100.0}}
    assert runs(model, **asked) == code
    path.write_text(json.dumps(config))
    assert runs(model, **asked) is None


def test_a_vocabulary_without_an_end(folder: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(folder / "base", tmp_path / "model"))
    for path in model.glob("*.json"):
        lines = path.read_text(encoding="utf-8")
        for name in ("<|endoftext|>", "<|im_end|>"):
            lines = lines.replace(name, name.upper())
        read = json.loads(lines)
        path.write_text(json.dumps({key: read[key] for key in read if key not in ("eos_token", "eos_token_id")}))
    assert runs(model, grammar="[0-9]{1,3}", grammar_type="regex") == "unsupported_grammar"
    path = model / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "eos_token_id": 2}))
    assert runs(model, grammar="[0-9]{1,3}", grammar_type="regex") is None
