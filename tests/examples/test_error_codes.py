"""The error codes of `docs/troubleshooting.md` that a client can bring about, each from a real server."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

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
    """A tiny model, an adapter of it, and an empty folder for adapters."""
    folder = tmp_path_factory.mktemp("guarded")
    base = write_folder(folder / "base", VARIANTS["llama"], dtype=torch.float32)
    write_adapter(folder / "elsewhere", base, settings={"target_modules": ["q_proj"], "r": 4})
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
