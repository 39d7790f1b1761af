"""`litellm`, in an environment of its own: it wants other versions of packages than this project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import ANSWER, CLIENTS, HEADERS, Observe
from tests.serving import RunningServer

PYTHON = CLIENTS / "litellm" / "bin" / "python"
PROGRAM = Path(__file__).parent / "programs" / "ask_litellm.py"

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="litellm is not installed; make clients installs it")


@pytest.fixture(scope="module")
def seen(observe: Observe) -> dict[str, Any]:
    """Returns litellm's reading of the answers; without this list it fetches another one from the network."""
    return observe(str(PYTHON), str(PROGRAM), environment={"LITELLM_LOCAL_MODEL_COST_MAP": "True"})


def test_chat(seen: dict[str, Any]) -> None:
    chat = seen["chat"]
    assert (chat["text"], chat["role"], chat["reason"]) == (ANSWER, "assistant", "stop")
    prompt, completion, total = chat["usage"]
    assert (completion, total) == (8, prompt + completion)


def test_stream(seen: dict[str, Any]) -> None:
    stream = seen["stream"]
    assert (stream["text"], stream["built"], stream["reason"]) == (ANSWER, ANSWER, "stop")
    assert stream["usages"] == [8]


def test_logprobs_choices_and_limits(seen: dict[str, Any]) -> None:
    assert seen["logprobs"]["text"] == ANSWER
    assert set(seen["logprobs"]["tops"]) == {2}
    assert seen["choices"]["indices"] == [0, 1]
    assert seen["choices"]["second"] == seen["choices"]["alone"]
    assert seen["limits"] == {"short": "length", "stopped": "The capital of France is"}


def test_texts_and_vectors(seen: dict[str, Any]) -> None:
    assert " Paris" in seen["texts"]["text"]
    assert seen["texts"]["values"] == 576


def test_errors(seen: dict[str, Any]) -> None:
    errors = seen["errors"]
    assert errors["long"][:2] == ["ContextWindowExceededError", 400]
    assert "maximum context length is 8192 tokens" in errors["long"][2]
    assert errors["key"][:2] == ["AuthenticationError", 401]
    assert errors["value"][:2] == ["BadRequestError", 400]
    assert "temperature" in errors["value"][2]


def test_asynchronous(seen: dict[str, Any], server: RunningServer) -> None:
    assert seen["asynchronous"] == {"texts": [ANSWER] * 3, "streamed": ANSWER, "cancelled": True}
    assert server.until_quiet(5, headers=HEADERS)
