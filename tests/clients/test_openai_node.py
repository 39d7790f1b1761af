"""The npm package `openai`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import ANSWER, CLIENTS, HEADERS, Observe
from tests.serving import RunningServer

MODULES = CLIENTS / "npm" / "node_modules"
PROGRAM = Path(__file__).parent / "programs" / "ask_openai.js"
NODE = shutil.which("node")

pytestmark = [
    pytest.mark.skipif(NODE is None, reason="node is not installed"),
    pytest.mark.skipif(
        not (MODULES / "openai").is_dir(), reason="the npm package openai is not installed; make clients installs it"
    ),
]


@pytest.fixture(scope="module")
def seen(observe: Observe) -> dict[str, Any]:
    """The package's view of the answers."""
    assert NODE is not None
    return observe(NODE, str(PROGRAM), environment={"NODE_PATH": str(MODULES)})


def test_chat(seen: dict[str, Any]) -> None:
    chat = seen["chat"]
    assert (chat["text"], chat["role"], chat["reason"]) == (ANSWER, "assistant", "stop")
    assert chat["usage"]["completion_tokens"] == 8


def test_stream(seen: dict[str, Any]) -> None:
    assert seen["stream"] == {"text": ANSWER, "roles": 1, "usages": [8], "ids": 1}
    assert seen["helper"] == [["assistant", ANSWER, "stop"]] * 2


def test_logprobs_choices_and_limits(seen: dict[str, Any]) -> None:
    assert seen["logprobs"]["text"] == ANSWER
    assert set(seen["logprobs"]["tops"]) == {2}
    assert seen["choices"]["indices"] == [0, 1]
    assert seen["choices"]["second"] == seen["choices"]["alone"]
    assert seen["limits"] == {"short": "length", "stopped": "The capital of France is"}


def test_texts_and_vectors(seen: dict[str, Any]) -> None:
    assert " Paris" in seen["texts"].pop("text")
    assert seen["texts"] == {"values": 576, "models": 1}


def test_errors(seen: dict[str, Any]) -> None:
    errors = seen["errors"]
    assert errors["long"][:4] == ["BadRequestError", 400, "context_length_exceeded", "messages"]
    assert "maximum context length is 8192 tokens" in errors["long"][4]
    assert errors["key"][:3] == ["AuthenticationError", 401, "invalid_api_key"]
    assert errors["value"][:2] == ["BadRequestError", 400]
    assert errors["value"][3] == "temperature"


def test_cancel(seen: dict[str, Any], server: RunningServer) -> None:
    assert seen["cancel"] == 4
    assert server.until_quiet(15, headers=HEADERS)
