"""The `openai` package: what it sends by itself, and what it makes of the answers."""

from __future__ import annotations

import asyncio
import enum
import itertools
import math
import re
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

openai = pytest.importorskip("openai", reason="openai is not installed; make clients installs it")

from openai import AsyncOpenAI, OpenAI  # noqa: E402

from tests.clients.conftest import ANSWER, HEADERS, KEY, QUESTION  # noqa: E402
from tests.serving import RunningServer  # noqa: E402

MESSAGES = [{"role": "user", "content": QUESTION}]


def connected(server: RunningServer, kind: Any = OpenAI, **changes: Any) -> Any:
    """A client, to be closed. Untyped: tests also send what its types forbid."""
    return kind(**{"base_url": server.base_url, "api_key": KEY, "max_retries": 0, "timeout": 60, **changes})


@pytest.fixture
def client(server: RunningServer) -> Iterator[Any]:
    with connected(server) as client:
        yield client


def test_models(client: Any, model: str) -> None:
    [listed] = client.models.list().data
    assert (listed.id, listed.object, listed.owned_by) == (model, "model", "local")
    assert client.models.retrieve(model) == listed
    assert listed.context_length == listed.max_model_len == 8192


def test_chat(client: Any, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=MESSAGES, temperature=0)
    [choice] = answer.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "stop", None)
    assert (choice.message.role, choice.message.content, choice.message.refusal) == ("assistant", ANSWER, None)
    assert (answer.object, answer.model, answer.system_fingerprint) == ("chat.completion", model, "local")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens == 8  # the end of the text is one
    assert answer.usage.prompt_tokens_details.cached_tokens < answer.usage.prompt_tokens


def test_length(client: Any, model: str) -> None:
    for limit in ({"max_tokens": 3}, {"max_completion_tokens": 3}, {"max_completion_tokens": 3, "max_tokens": 1}):
        answer = client.chat.completions.create(model=model, messages=MESSAGES, temperature=0, **limit)
        assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 3)
        assert ANSWER.startswith(answer.choices[0].message.content)


def test_stream(client: Any, model: str) -> None:
    chunks = list(client.chat.completions.create(model=model, messages=MESSAGES, temperature=0, stream=True))
    assert all(len(chunk.choices) == 1 and chunk.usage is None for chunk in chunks)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert [delta.role for delta in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
    assert "".join(delta.content or "" for delta in deltas) == ANSWER
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]
    assert len({(chunk.id, chunk.created, chunk.model, chunk.system_fingerprint) for chunk in chunks}) == 1
    assert len(chunks) > 1  # in pieces, of several tokens where an earlier answer proposed them


def test_stream_with_usage(client: Any, model: str) -> None:
    whole = client.chat.completions.create(model=model, messages=MESSAGES, temperature=0)
    *chunks, last = client.chat.completions.create(
        model=model, messages=MESSAGES, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    assert (last.choices, last.object) == ([], "chat.completion.chunk")
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert last.usage.prompt_tokens == whole.usage.prompt_tokens
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_stream_helper(client: Any, model: str) -> None:
    with client.chat.completions.stream(
        model=model, messages=MESSAGES, temperature=0, n=2, logprobs=True, stream_options={"include_usage": True}
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done", "logprobs.content.delta"} <= kinds
    assert [choice.message.role for choice in final.choices] == ["assistant"] * 2
    assert [choice.message.content for choice in final.choices] == [ANSWER] * 2
    assert [choice.finish_reason for choice in final.choices] == ["stop"] * 2
    assert final.usage.completion_tokens == 16
    assert "".join(each.token for each in final.choices[0].logprobs.content) == ANSWER


class Continent(enum.Enum):
    AFRICA = "Africa"
    EUROPE = "Europe"


class Capital(BaseModel):
    """A capital and its country."""

    name: str = Field(description="Without its country", max_length=20)
    continent: Continent
    districts: list[Literal["Louvre", "Bourse"]] = Field(max_length=2)
    founded: int | None = Field(ge=-300, le=2026)


class Impossible(BaseModel):
    pairs: set[int]


def test_parse(client: Any, model: str) -> None:
    asked = {"model": model, "messages": MESSAGES, "response_format": Capital, "temperature": 0, "max_tokens": 200}
    answer = client.chat.completions.parse(**asked)
    assert answer.choices[0].finish_reason == "stop"
    assert isinstance(answer.choices[0].message.parsed, Capital)
    with client.chat.completions.stream(**asked) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed == answer.choices[0].message.parsed
    assert final.choices[0].message.content == answer.choices[0].message.content


def test_parse_of_a_cut_answer(client: Any, model: str) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model=model, messages=MESSAGES, response_format=Capital, max_tokens=3)


def test_a_schema_that_cannot_be_obeyed_is_refused(client: Any, model: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.parse(model=model, messages=MESSAGES, response_format=Impossible)
    place = "response_format.json_schema.schema/properties/pairs/uniqueItems"
    assert (refused.value.param, refused.value.code) == (place, "invalid_schema")


def test_grammars_of_other_servers(client: Any, model: str) -> None:
    """The field of mistral.rs, as in its examples, and those of vLLM and llama.cpp, all in ``extra_body``."""
    for extra in (
        {"grammar": {"type": "regex", "value": "(- [^\n]{1,9}\n)(- [^\n]{1,9})"}},
        {"structured_outputs": {"regex": "(- [^\n]{1,9}\n)(- [^\n]{1,9})"}},
        {"grammar": r'root ::= item "\n" item' + "\n" + r'item ::= "- " [^\n]{1,9}'},
    ):
        answer = client.chat.completions.create(model=model, messages=MESSAGES, extra_body=extra, max_tokens=60)
        assert re.fullmatch(r"- .{1,9}\n- .{1,9}", answer.choices[0].message.content)
        assert answer.choices[0].finish_reason == "stop"


def test_parse_without_a_schema(client: Any, model: str) -> None:
    answer = client.chat.completions.parse(model=model, messages=MESSAGES, temperature=0)
    assert (answer.choices[0].message.content, answer.choices[0].message.parsed) == (ANSWER, None)


def test_logprobs(client: Any, model: str) -> None:
    asked = {"model": model, "messages": MESSAGES, "temperature": 0, "logprobs": True, "top_logprobs": 3}
    whole = client.chat.completions.create(**asked).choices[0].logprobs.content
    assert "".join(each.token for each in whole) == ANSWER
    for each in whole:
        assert bytes(each.bytes).decode() == each.token
        assert each.logprob <= 0
        assert each.top_logprobs[0].token == each.token  # greedy takes the likeliest
        best = [top.logprob for top in each.top_logprobs]
        assert (len(best), best) == (3, sorted(best, reverse=True))
    streamed = [
        each
        for chunk in client.chat.completions.create(**asked, stream=True)
        if chunk.choices[0].logprobs is not None
        for each in chunk.choices[0].logprobs.content
    ]
    assert streamed == whole


def test_two_choices(client: Any, model: str) -> None:
    asked = {"model": model, "messages": MESSAGES, "temperature": 1.0, "seed": 7, "n": 2, "max_tokens": 12}
    whole = client.chat.completions.create(**asked)
    assert [choice.index for choice in whole.choices] == [0, 1]
    texts = [choice.message.content for choice in whole.choices]
    again = client.chat.completions.create(**asked)
    assert [choice.message.content for choice in again.choices] == texts
    alone = client.chat.completions.create(**{**asked, "n": 1, "seed": 8})
    assert alone.choices[0].message.content == texts[1]  # choice i draws with seed + i
    streamed, seen = ["", ""], []
    for chunk in client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            seen.append(choice.index)
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts
    assert list(dict.fromkeys(seen)) == [0, 1]


@pytest.mark.parametrize("stop", [" Paris", ["xyz", " of France"]])
def test_stop(client: Any, model: str, stop: str | list[str]) -> None:
    asked = {"model": model, "messages": MESSAGES, "temperature": 0, "stop": stop}
    answer = client.chat.completions.create(**asked)
    before = ANSWER.partition(stop if isinstance(stop, str) else stop[-1])[0]
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (before, "stop")
    chunks = client.chat.completions.create(**asked, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == before


def test_shapes_of_messages(client: Any, model: str) -> None:
    asked = {"model": model, "temperature": 0, "max_tokens": 12}
    system = {"role": "system", "content": "Be brief."}
    developer = {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]}
    parts = [{"type": "text", "text": "Answer me."}, {"type": "text", "text": QUESTION}]
    plain = client.chat.completions.create(
        messages=[system, {"role": "user", "content": f"Answer me.\n{QUESTION}"}], **asked
    )
    shaped = client.chat.completions.create(messages=[developer, {"role": "user", "content": parts}], **asked)
    assert shaped.choices[0].message.content == plain.choices[0].message.content
    assert shaped.usage.prompt_tokens == plain.usage.prompt_tokens


def test_what_is_ignored_is_named(client: Any, model: str) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="gpt-4o", messages=MESSAGES, temperature=0, user="ada", store=True, extra_body={"top_k": 1, "wings": 2}
    )
    named = raw.headers["x-mistralrs-ignored"].split(", ")
    assert sorted(named) == ["store", "user", "wings"]
    assert raw.headers["x-mistralrs-model"] == model
    answer = raw.parse()
    assert (answer.model, answer.choices[0].message.content) == (model, ANSWER)
    assert answer._request_id == raw.headers["x-request-id"]


def test_extras(client: Any, model: str) -> None:
    extra = {
        "top_k": 40, "min_p": 0.1, "repetition_penalty": 1.1, "typical_p": 0.9, "min_tokens": 4, "ignore_eos": True,
        "xtc_probability": 0.0, "dry_multiplier": 0.5, "stop_token_ids": [5], "cache_prompt": False,
    }  # fmt: skip
    raw = client.chat.completions.with_raw_response.create(
        model=model, messages=MESSAGES, max_tokens=6, seed=1, extra_body=extra
    )
    assert "x-mistralrs-ignored" not in raw.headers
    assert raw.parse().usage.completion_tokens >= 4


def test_context_length_exceeded(client: Any, model: str) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="maximum context length is 8192 tokens") as refused:
            client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": "word " * 9000}], stream=stream
            )
        assert refused.value.code == "context_length_exceeded"
        assert refused.value.type == "invalid_request_error"


def test_wrong_key(server: RunningServer, model: str) -> None:
    with connected(server, api_key="sk-wrong") as client:
        with pytest.raises(openai.AuthenticationError) as refused:
            client.chat.completions.create(model=model, messages=MESSAGES)
        assert refused.value.code == "invalid_api_key"
        assert refused.value.response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"n": 0}, "n"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json"}}, "response_format"),
    ],
    ids=str,
)
def test_bad_requests(client: Any, model: str, wrong: dict[str, object], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**{"model": model, "messages": MESSAGES, **wrong})
    assert refused.value.param.startswith(param)
    assert refused.value.body["message"]


def test_unknown_model(client: Any) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.models.retrieve("gpt-9")
    assert refused.value.code == "model_not_found"


PROMPT = "The capital of France is"


def test_completions(client: Any, model: str) -> None:
    asked = {"model": model, "prompt": PROMPT, "temperature": 0, "max_tokens": 5}
    answer = client.completions.create(**asked)
    text = answer.choices[0].text
    assert " Paris" in text
    assert (answer.object, answer.choices[0].finish_reason) == ("text_completion", "length")
    assert answer.usage.completion_tokens == 5
    assert "".join(chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True)) == text
    two = client.completions.create(**{**asked, "prompt": [PROMPT, "One, two,"]})
    assert [choice.index for choice in two.choices] == [0, 1]
    assert two.choices[0].text == text
    assert client.completions.create(**asked, echo=True).choices[0].text == PROMPT + text
    best = client.completions.create(**{**asked, "temperature": 1.0, "seed": 3}, best_of=3, n=1)
    assert len(best.choices) == 1


def test_completion_logprobs(client: Any, model: str) -> None:
    answer = client.completions.create(
        model=model, prompt=PROMPT, temperature=0, max_tokens=4, logprobs=2, echo=True
    ).choices[0]
    logprobs = answer.logprobs
    assert "".join(logprobs.tokens) == answer.text
    sizes = {
        len(each) for each in (logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, logprobs.text_offset)
    }
    assert sizes == {len(logprobs.tokens)}
    assert (logprobs.token_logprobs[0], logprobs.top_logprobs[0]) == (None, None)
    assert all(value <= 0 for value in logprobs.token_logprobs[1:])
    assert logprobs.text_offset == [0, *itertools.accumulate(map(len, logprobs.tokens[:-1]))]


def test_token_ids_as_a_prompt(client: Any, server: RunningServer, model: str) -> None:
    _, found = server.ask("POST", "/tokenize", {"content": PROMPT, "add_special": True}, headers=HEADERS)
    asked = {"model": model, "temperature": 0, "max_tokens": 5}
    by_ids = client.completions.create(prompt=found["tokens"], **asked)
    assert by_ids.choices[0].text == client.completions.create(prompt=PROMPT, **asked).choices[0].text


def test_embeddings(client: Any, model: str) -> None:
    texts = ["a cat sat on the mat", "interest rates were raised"]
    packed = client.embeddings.create(model=model, input=texts)  # base64 on the wire
    plain = client.embeddings.create(model=model, input=texts, encoding_format="float")
    for one, other in zip(packed.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, rel=1e-6)
    assert [each.index for each in packed.data] == [0, 1]
    assert math.hypot(*packed.data[0].embedding) == pytest.approx(1, abs=1e-5)
    assert packed.usage.total_tokens == packed.usage.prompt_tokens > 0


LONG = {"messages": [{"role": "user", "content": "Count."}], "max_tokens": 4000, "extra_body": {"ignore_eos": True}}


def test_a_closed_stream_ends_the_work(client: Any, server: RunningServer, model: str) -> None:
    stream = client.chat.completions.create(model=model, stream=True, n=2, **LONG)
    for _ in itertools.islice(stream, 5):
        pass
    _, found = server.ask("GET", "/v1/requests", headers=HEADERS)
    assert [request["choices"] for request in found["data"]] == [2]
    stream.close()
    assert server.until_quiet(15, headers=HEADERS)  # the answer would take half a minute


def test_a_request_that_another_one_ends(client: Any, server: RunningServer, model: str) -> None:
    stream = client.chat.completions.create(model=model, stream=True, **LONG)
    first = next(iter(stream))
    assert server.ask("DELETE", f"/v1/requests/{first.id}", headers=HEADERS)[0] == 200
    with pytest.raises(openai.APIError) as ended:
        list(stream)
    assert ended.value.code == "request_cancelled"
    assert server.until_quiet(15, headers=HEADERS)


def test_a_client_that_does_not_wait(server: RunningServer, model: str) -> None:
    with connected(server, timeout=1) as client:
        with pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(model=model, **LONG)
        assert server.until_quiet(15, headers=HEADERS)


def test_async(server: RunningServer, model: str) -> None:
    async def run() -> tuple[list[str | None], str, str | None]:
        async with connected(server, AsyncOpenAI) as client:
            asked = {"model": model, "messages": MESSAGES, "temperature": 0}
            answers = await asyncio.gather(*(client.chat.completions.create(**asked) for _ in range(4)))
            stream = await client.chat.completions.create(**asked, stream=True)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            async with client.chat.completions.stream(**asked) as helper:
                final = await helper.get_final_completion()
            return [each.choices[0].message.content for each in answers], text, final.choices[0].message.content

    assert asyncio.run(run()) == ([ANSWER] * 4, ANSWER, ANSWER)


def test_async_cancel(server: RunningServer, model: str) -> None:
    async def run() -> None:
        async with connected(server, AsyncOpenAI) as client:
            asking = asyncio.create_task(client.chat.completions.create(model=model, **LONG))
            while not server.ask("GET", "/v1/requests", headers=HEADERS)[1]["data"]:
                await asyncio.sleep(0.05)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking

    asyncio.run(run())
    assert server.until_quiet(15, headers=HEADERS)
