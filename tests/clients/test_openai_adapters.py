"""The `openai` package chooses adapters by the name of a model, and by fields of ``extra_body``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

openai = pytest.importorskip("openai", reason="openai is not installed; make clients installs it")

from openai import OpenAI  # noqa: E402

from tests.server.adapter_server import AdapterServer  # noqa: E402

PROMPT = [5, 77, 100, 9, 3, 41, 8]


@pytest.fixture(scope="module")
def client(adapter_server: AdapterServer) -> Iterator[Any]:
    with OpenAI(base_url=adapter_server.base_url, api_key="any", max_retries=0, timeout=60) as client:
        yield client


def answer(client: Any, model: str, **extra: object) -> Any:
    return client.completions.create(
        model=model, prompt=PROMPT, max_tokens=12, temperature=0, extra_body={"ignore_eos": True, **extra}
    )


def test_models_and_adapters_are_listed(client: Any) -> None:
    base, first, second = client.models.list().data
    assert [base.id, first.id, second.id] == ["tiny", "a", "b"]
    assert (first.parent, second.parent) == ("tiny", "tiny")
    assert client.models.retrieve("b") == second


def test_a_model_chooses_an_adapter(client: Any) -> None:
    answers = {name: answer(client, name) for name in ("tiny", "a", "b")}
    assert {name: each.model for name, each in answers.items()} == {name: name for name in answers}
    assert len({each.choices[0].text for each in answers.values()}) == 3
    assert answer(client, "tiny", adapter="b").choices[0].text == answers["b"].choices[0].text
    assert answer(client, "a", adapters={"a": 1}).choices[0].text == answers["a"].choices[0].text
    mix = answer(client, "tiny", adapters={"a": 0.5, "b": 0.5})
    assert mix.adapter_generation == answers["a"].adapter_generation


def test_an_unknown_model_is_not_the_base_by_another_name(client: Any) -> None:
    with pytest.raises(openai.NotFoundError) as refusal:
        answer(client, "c")
    assert refusal.value.code == "model_not_found"
    assert "known are tiny, a, b" in refusal.value.message
    with pytest.raises(openai.BadRequestError):
        answer(client, "a", adapter="b")
