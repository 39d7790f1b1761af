"""`litellm`, in an environment of its own: it wants other versions of packages than this project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import ANSWER, CLIENTS, HEADERS, Observe
from tests.server.adapter_server import AdapterServer
from tests.serving import RunningServer

PYTHON = CLIENTS / "litellm" / "bin" / "python"
PROGRAMS = Path(__file__).parent / "programs"
WITHOUT_NETWORK = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
"""Without its own list of models it fetches another one."""

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="litellm is not installed; make clients installs it")


@pytest.fixture(scope="module")
def seen(observe: Observe) -> dict[str, Any]:
    """Returns litellm's reading of the answers."""
    return observe(str(PYTHON), str(PROGRAMS / "ask_litellm.py"), environment=WITHOUT_NETWORK)


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
    assert server.until_quiet(15, headers=HEADERS)


def test_a_model_chooses_an_adapter(observe: Observe, adapter_server: AdapterServer, adapted: dict[str, str]) -> None:
    environment = {**WITHOUT_NETWORK, "BASE_URL": adapter_server.base_url, "MODELS": ",".join([*adapted, "c"])}
    found = observe(str(PYTHON), str(PROGRAMS / "ask_litellm_models.py"), environment=environment)
    refusal = found.pop("c")
    assert found == {name: {"text": text, "streamed": text, "model": name} for name, text in adapted.items()}
    assert refusal["error"] == ["NotFoundError", 404]
    assert "known are tiny, a, b" in refusal["message"]
