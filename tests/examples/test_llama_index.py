"""`integrations/llama_index_integration.py` with the default model, and `examples/llama_index/`."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_index.core", reason="llama-index-core is not installed; make clients installs it")

from llama_index.core.llms import ChatMessage, ImageBlock
from llama_index.core.prompts import PromptTemplate
from pydantic import BaseModel, Field

from mistralrs import ChatCompletionRequest, CompletionRequest, RequestError, Runner, Which
from tests.examples.conftest import Run
from tests.serving import ROOT

pytestmark = pytest.mark.clients

QUESTION = ChatMessage(role="user", content="What is the capital of France?")
ANSWER = "The capital of France is Paris."
MESSAGES = [QUESTION, ChatMessage(role="assistant", content=ANSWER), ChatMessage(role="user", content="And of Spain?")]
PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def model(default_model: Path) -> Which:
    return Which.GGUF(quantized_filename=str(default_model))


@pytest.fixture(scope="module")
def integration() -> Iterator[Any]:
    sys.path.insert(0, str(ROOT / "integrations"))
    import llama_index_integration

    yield llama_index_integration
    sys.path.remove(str(ROOT / "integrations"))


@pytest.fixture(scope="module")
def llm(integration: Any, model: Which) -> Iterator[Any]:
    with integration.MistralRS(model, temperature=0, max_new_tokens=12, top_logprobs=2) as llm:
        yield llm


def test_a_chat_keeps_its_roles(llm: Any) -> None:
    answer = llm.chat(MESSAGES)
    request = ChatCompletionRequest(
        [{"role": each.role.value, "content": each.content} for each in MESSAGES],
        temperature=0, max_tokens=12, top_k=32, top_p=0.1,
    )  # fmt: skip
    expected = llm.runner.send_chat_completion_request(request)
    assert answer.message.content == expected.choices[0].message.content
    assert answer.additional_kwargs["prompt_tokens"] == expected.usage.prompt_tokens
    assert answer.raw["choices"][0]["finish_reason"] == expected.choices[0].finish_reason
    assert llm.chat([QUESTION]).message.content == ANSWER


def test_a_completion_is_no_chat(llm: Any) -> None:
    request = CompletionRequest(PROMPT, temperature=0, max_tokens=12, top_k=32, top_p=0.1)
    answer = llm.complete(PROMPT)
    assert answer.text == llm.runner.send_completion_request(request).choices[0].text
    assert answer.additional_kwargs["completion_tokens"] == 12


def test_streams_equal_whole_answers(llm: Any) -> None:
    pieces = list(llm.stream_chat([QUESTION]))
    assert "".join(piece.delta for piece in pieces) == pieces[-1].message.content == ANSWER
    texts = list(llm.stream_complete(PROMPT))
    assert "".join(piece.delta for piece in texts) == texts[-1].text == llm.complete(PROMPT).text


def test_log_probabilities(llm: Any) -> None:
    whole = llm.chat([QUESTION]).logprobs
    assert "".join(candidates[0].token for candidates in whole) == ANSWER
    assert all(len(candidates) == 2 for candidates in whole)
    assert all(bytes(each.bytes).decode() == each.token for candidates in whole for each in candidates)
    assert [each for piece in llm.stream_chat([QUESTION]) for each in piece.logprobs or []] == whole
    answer = llm.complete(PROMPT)
    assert "".join(candidates[0].token for candidates in answer.logprobs) == answer.text
    assert llm.chat([QUESTION], logprobs=False, top_logprobs=None).logprobs is None


def test_tasks_get_the_same(llm: Any) -> None:
    async def run() -> list[str]:
        answers = await asyncio.gather(llm.achat([QUESTION]), llm.acomplete(PROMPT))
        chat = [piece.delta async for piece in await llm.astream_chat([QUESTION])]
        text = [piece.delta async for piece in await llm.astream_complete(PROMPT)]
        return [answers[0].message.content, answers[1].text, "".join(chat), "".join(text)]

    text = llm.complete(PROMPT).text
    assert asyncio.run(run()) == [ANSWER, text, ANSWER, text]


def until_idle(runner: Runner) -> None:
    deadline = time.monotonic() + 15
    while runner.stats().running:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_what_is_not_read_is_not_computed(llm: Any) -> None:
    long = {"max_tokens": 4000, "ignore_eos": True}
    stream = llm.stream_chat([QUESTION], **long)
    next(stream)
    stream.close()
    until_idle(llm.runner)

    async def cancel() -> None:
        asking = asyncio.create_task(llm.achat([QUESTION], **long))
        while not llm.runner.stats().running:
            await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    asyncio.run(cancel())
    until_idle(llm.runner)


class Place(BaseModel):
    city: str = Field(max_length=10)
    is_capital: bool


def test_structured_predictions(llm: Any) -> None:
    prompt = PromptTemplate("Describe {city} as JSON.")
    place = llm.structured_predict(Place, prompt, llm_kwargs={"max_tokens": 100}, city="Paris")
    assert isinstance(place, Place)
    again = asyncio.run(llm.astructured_predict(Place, prompt, llm_kwargs={"max_tokens": 100}, city="Paris"))
    assert again == place


def test_metadata(llm: Any) -> None:
    facts = llm.metadata
    assert (facts.context_window, facts.num_output, facts.is_chat_model) == (8192, 12, True)
    assert facts.model_name == llm.runner.info.name
    assert llm.class_name() == "MistralRS_llm"


def test_refusals(llm: Any) -> None:
    with pytest.raises(RequestError, match="no ImageBlock"):
        llm.chat([ChatMessage(role="user", blocks=[ImageBlock(url="http://x/y.png")])])
    with pytest.raises(RequestError, match="wings"):
        llm.chat([QUESTION], wings=2)
    assert llm.chat([QUESTION], stop=[" Paris"]).message.content == "The capital of France is"


def test_a_prompt_of_ones_own(integration: Any, model: Which) -> None:
    def prompt(messages: Any) -> str:
        return PROMPT

    with integration.MistralRS(model, temperature=0, max_new_tokens=8, messages_to_prompt=prompt) as llm:
        text = llm.complete(PROMPT).text
        assert llm.chat([QUESTION]).message.content == text
        assert list(llm.stream_chat([QUESTION]))[-1].message.content == text

        async def run() -> list[str]:
            pieces = [piece.delta async for piece in await llm.astream_chat([QUESTION])]
            return [(await llm.achat([QUESTION])).message.content, "".join(pieces)]

        assert asyncio.run(run()) == [text, text]


@pytest.mark.parametrize("name", ["chat", "rag"])
def test_an_example(name: str, run: Run) -> None:
    out = run(f"llama_index/{name}.py")
    assert out.strip()
    assert name != "chat" or out.startswith(ANSWER)
