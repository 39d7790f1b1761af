"""The error codes of `docs/troubleshooting.md` that a client can bring about, each from a real server."""

from __future__ import annotations

import http.client
import json
import socket
from contextlib import closing
from typing import Any

import pytest

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
