"""From bodies to requests: the engine is asked for what was sent, and whatever cannot be served is refused before."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistralrs.api.schemas.request_bodies import ChatCompletionBody, CompletionBody, EmbeddingBody, parse
from mistralrs.api.served_model import ServedModel
from mistralrs.api.serving.engine_requests import chat_request, ids_request
from mistralrs.api.serving.policy import Policy
from mistralrs.api.serving.prepare import (
    Prepared,
    PreparedEmbeddings,
    prepare_chat,
    prepare_completion,
    prepare_embeddings,
)
from mistralrs.engine.config import SAMPLERS, SamplingParams
from mistralrs.errors import ContextLengthError, RequestError
from tests.api.served import HIDDEN, MAX_LEN, POLICY, byte_tokenizer, piece_tokenizer, served

MODEL = served()
STRICT = replace(POLICY, strict=True)


def chat(policy: Policy = POLICY, by: ServedModel = MODEL, /, **fields: Any) -> Prepared:
    body = json.dumps({"messages": "hi", **fields}).encode()
    return prepare_chat(parse(ChatCompletionBody, body), by, policy)


def complete(policy: Policy = POLICY, by: ServedModel = MODEL, /, **fields: Any) -> Prepared:
    body = json.dumps({"prompt": "hello", **fields}).encode()
    return prepare_completion(parse(CompletionBody, body), by, policy)


def embed(policy: Policy = POLICY, by: ServedModel = MODEL, /, **fields: Any) -> PreparedEmbeddings:
    return prepare_embeddings(parse(EmbeddingBody, json.dumps({"input": "hi", **fields}).encode()), by, policy)


def sampling(**fields: Any) -> SamplingParams:
    """Returns the sampling parameters of a chat and a completion with the same fields."""
    one, other = (prepare(**{"seed": 0, **fields}).requests[0].sampling for prepare in (chat, complete))
    assert one == other
    return one


def text(prompt: tuple[int, ...]) -> str:
    tokenizer = byte_tokenizer()
    return "".join(tokenizer.token_text(token) for token in prompt)


# Prompts


def test_a_chat_is_what_the_template_makes_of_it() -> None:
    prepared = chat()
    [request] = prepared.requests
    assert text(request.prompt) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert request.trim_space
    assert request.prompt_logprobs is None
    assert (prepared.kind, prepared.echo, prepared.ignored, prepared.truncated_tokens) == ("chat", None, (), 0)


@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize("length", [2, 60, 3 * MAX_LEN, 5 * MAX_LEN])
def test_the_terminal_asks_the_engine_for_what_the_server_asks_it_for(length: int, truncate: bool) -> None:
    policy = replace(POLICY, truncate=truncate, template_hint="serve another")
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi " * length}]
    params = SamplingParams(seed=0, max_tokens=5)

    def request() -> object:
        return chat_request(messages, params, MODEL, policy)[0]

    if truncate or length < 100:
        [served_request] = chat(policy, messages=messages, seed=0, max_tokens=5).requests
        assert request() == served_request
        ids = chat_request(messages, params, MODEL, policy)[0].prompt
        assert ids_request(ids, params, MODEL, policy) == replace(served_request, trim_space=False)
        return
    with pytest.raises(ContextLengthError) as told:
        chat(policy, messages=messages)
    with pytest.raises(ContextLengthError, match=re.escape(told.value.message)) as raised:
        request()
    assert (raised.value.param, raised.value.hint) == (told.value.param, told.value.hint)


def test_the_terminal_continues_a_message_as_the_server_does() -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello and"}]
    params = SamplingParams(seed=0, max_tokens=5)
    [served_request] = chat(messages=messages, seed=0, max_tokens=5, continue_final_message=True).requests
    assert chat_request(messages, params, MODEL, POLICY, continues=True)[0] == served_request
    assert text(served_request.prompt).endswith("hello and")


def test_a_missing_template_is_said_in_the_same_words() -> None:
    errors = []
    for policy in (POLICY, replace(POLICY, template_hint="serve another")):
        with pytest.raises(RequestError) as raised:
            chat_request([{"role": "user", "content": "hi"}], SamplingParams(), served(None), policy)
        errors.append(raised.value)
        with pytest.raises(RequestError) as raised:
            chat(policy, served(None))
        errors.append(raised.value)
    assert {(error.message, error.param) for error in errors} == {
        ("org/tiny has no chat template, so it cannot chat", "messages")
    }
    assert "--chat-template" in (errors[0].hint or "")
    assert [error.hint for error in errors] == [errors[0].hint] * 2 + ["serve another"] * 2


def test_what_is_continued_keeps_its_space() -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "I am"}]
    [request] = chat(messages=messages, continue_final_message=True).requests
    assert text(request.prompt).endswith("<|im_start|>assistant\nI am")
    assert not request.trim_space


def test_a_raw_prompt_is_read_as_transformers_reads_it() -> None:
    """Control tokens are parsed; BOS comes first where the tokenizer's configuration says so."""
    [request] = complete(prompt="<|im_start|>hello").requests
    assert request.prompt == tuple(byte_tokenizer().encode("<|im_start|>hello", special=True))
    assert request.prompt[0] == byte_tokenizer().bos_id
    assert not request.trim_space
    pieces = served(tokenizer=piece_tokenizer())
    for prompt in ("hello", "<s>hello"):
        [request] = complete(POLICY, pieces, prompt=prompt).requests
        assert request.prompt[0] == piece_tokenizer().bos_id
        assert request.prompt.count(1) == 1


def test_ids_are_taken_as_they_are() -> None:
    [request] = complete(POLICY, served(tokenizer=piece_tokenizer()), prompt=[5, 6]).requests
    assert request.prompt == (5, 6)


@pytest.mark.parametrize("prompts", [["a", "b"], [[70], [71]]])
def test_several_prompts_have_their_choices_one_after_the_other(prompts: list[Any]) -> None:
    prepared = complete(prompt=prompts, n=2, seed=7)
    first, second = (complete(prompt=prompt).requests[0].prompt for prompt in prompts)
    assert [request.prompt for request in prepared.requests] == [first, first, second, second]
    assert [request.sampling.seed for request in prepared.requests] == [7, 8, 7, 8]
    assert (prepared.generated, prepared.choices, prepared.seed) == (2, 2, 7)


def test_a_prompt_without_tokens_is_refused() -> None:
    with pytest.raises(RequestError, match="no tokens") as raised:
        complete(prompt="")
    assert raised.value.param == "prompt"


def test_ids_beyond_the_vocabulary_are_refused() -> None:
    with pytest.raises(RequestError, match=f"{MODEL.vocab_size}; the vocabulary") as raised:
        complete(prompt=[1, MODEL.vocab_size])
    assert raised.value.param == "prompt"
    with pytest.raises(RequestError) as raised:
        embed(input=[[1], [MODEL.vocab_size]])
    assert raised.value.param == "input[1]"


def test_a_token_without_an_embedding_is_named() -> None:
    """A tokenizer may have more tokens than the model, such as those of images."""
    short = replace(MODEL, vocab_size=MODEL.vocab_size - 1)
    last = MODEL.tokenizer.token_text(short.vocab_size)
    with pytest.raises(RequestError, match=re.escape(f"token {short.vocab_size}, {last!r}, for which this model")):
        complete(POLICY, short, prompt=[1, short.vocab_size])
    with pytest.raises(RequestError, match="the vocabulary has the ids 0 to"):
        complete(POLICY, short, prompt=[MODEL.vocab_size])


def test_a_model_without_a_template_completes_only() -> None:
    with pytest.raises(RequestError, match="org/tiny has no chat template"):
        chat(POLICY, served(None))
    assert complete(POLICY, served(None)).requests


def test_too_long_is_said_in_openais_words() -> None:
    with pytest.raises(ContextLengthError) as raised:
        chat(messages="x" * 400)
    error = raised.value
    assert error.code == "context_length_exceeded"
    assert error.message.startswith(f"This model's maximum context length is {MAX_LEN} tokens. However, your messages")
    assert error.param == "messages"
    with pytest.raises(ContextLengthError):
        complete(prompt="x" * 400)
    assert complete(prompt="x" * (MAX_LEN - 1)).requests
    assert complete(prompt="x" * MAX_LEN, max_tokens=0).requests
    assert embed(input="x" * MAX_LEN).requests
    for fields in ({}, {"max_tokens": 1}, {"max_tokens": -1}, {"max_tokens": 1, "echo": True}):
        with pytest.raises(ContextLengthError, match=f"in {MAX_LEN} tokens, which leaves no room for an answer"):
            complete(prompt="x" * MAX_LEN, **fields)


def test_of_several_prompts_that_which_is_meant_is_named() -> None:
    for ask, name in ((complete, "prompt"), (embed, "input")):
        for wrong, said in (("", "the prompt has no tokens"), ("x" * 400, "This model's maximum"), ([10**6], "holds")):
            for prompts in (["a", wrong], ["a", "b", wrong, wrong]):
                if isinstance(wrong, list):
                    prompts = [[1] if prompt != wrong else wrong for prompt in prompts]
                with pytest.raises(RequestError) as raised:
                    ask(**{name: prompts})
                place = f"{name}[{prompts.index(wrong)}]"
                assert raised.value.param == place
                assert raised.value.message.startswith(f"{place}: ")
                assert said in raised.value.message
                assert str(raised.value) == raised.value.message
            with pytest.raises(RequestError) as raised:
                ask(**{name: [wrong]})
            assert raised.value.param == name


def test_truncation_keeps_the_end_and_says_what_it_cut(caplog: pytest.LogCaptureFixture) -> None:
    policy = replace(POLICY, truncate=True)
    with caplog.at_level(logging.WARNING):
        prepared = complete(policy, prompt=["x" * 400 + "end", "short"], max_tokens=20, echo=True, n=2)
    assert prepared.truncated_tokens == 403 - (MAX_LEN - 20)
    assert text(prepared.requests[0].prompt) == "x" * (MAX_LEN - 23) + "end"
    assert prepared.echo is not None
    assert [echo.text for echo in prepared.echo] == ["x" * (MAX_LEN - 23) + "end", "short"]
    assert len(caplog.records) == 1
    assert chat(policy, messages="x" * 400).truncated_tokens > 100
    assert embed(policy, input=["x" * 301, "x" * 302]).truncated_tokens == 3


def test_the_work_of_one_request_is_bounded() -> None:
    assert len(complete(prompt=["x"] * 16, n=128).requests) == 2048
    with pytest.raises(RequestError, match="more than 2048"):
        complete(prompt=["x"] * 17, n=128)
    with pytest.raises(RequestError, match="more than 2048"):
        complete(prompt=["x"] * 17, best_of=128)


# Sampling


def test_a_request_that_says_nothing_gets_the_servers_defaults() -> None:
    assert sampling() == SamplingParams(seed=0)
    policy = replace(POLICY, sampling=SamplingParams(temperature=0.3, top_k=5, max_tokens=9, seed=3))
    assert replace(chat(policy).requests[0].sampling, seed=0) == SamplingParams(temperature=0.3, top_k=5, max_tokens=9)
    assert chat(policy, temperature=0, top_k=0).requests[0].sampling.temperature == 0
    assert chat(policy, top_k=0).requests[0].sampling.top_k == 0


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"temperature": None, "stop": None, "logit_bias": None}, {}),
        ({"temperature": 0, "top_p": 0.5, "min_p": 0.1}, {"temperature": 0, "top_p": 0.5, "min_p": 0.1}),
        ({"top_k": 40}, {"top_k": 40}),
        ({"top_k": 0}, {}),
        ({"top_k": -1}, {}),
        ({"presence_penalty": -2, "frequency_penalty": 2}, {"presence_penalty": -2, "frequency_penalty": 2}),
        ({"repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
        ({"repeat_penalty": 1.1, "repeat_last_n": 0}, {"repetition_penalty": 1.1, "repeat_last_n": 0}),
        ({"repeat_last_n": -1}, {"repeat_last_n": 2**31 - 1}),
        ({"typical_p": 0.9}, {"typical_p": 0.9}),
        ({"typ_p": 0.9}, {"typical_p": 0.9}),
        ({"xtc_probability": 0.5, "xtc_threshold": 0.2}, {"xtc_probability": 0.5, "xtc_threshold": 0.2}),
        ({"dry_multiplier": 0.8, "dry_base": 2, "dry_allowed_length": 3, "dry_penalty_last_n": 64},
         {"dry_multiplier": 0.8, "dry_base": 2, "dry_allowed_length": 3, "dry_last_n": 64}),
        ({"dry_penalty_last_n": -1}, {}),
        ({"dry_penalty_last_n": 0}, {"dry_last_n": 0}),
        ({"dry_sequence_breakers": ["\n", "."]}, {"dry_breakers": ("\n", ".")}),
        ({"ignore_eos": True, "min_tokens": 3}, {"ignore_eos": True, "min_tokens": 3}),
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"stop": "a"}, {"stop": ("a",)}),
        ({"stop": ["a", "b", "c", "d", "e"]}, {"stop": ("a", "b", "c", "d", "e")}),
        ({"stop": []}, {}),
        ({"stop_token_ids": [1, 2]}, {"stop_token_ids": (1, 2)}),
        ({"logit_bias": {"5": -100, "0": 1.5}}, {"logit_bias": ((5, -100), (0, 1.5))}),
        ({"samplers": ["top_k", "typ_p", "temperature"]}, {"samplers": ("top_k", "typical_p", "temperature")}),
        ({"samplers": "penalties;top_k;temp"}, {"samplers": ("penalties", "top_k", "temperature")}),
        ({"samplers": ";".join(SAMPLERS)}, {}),
        ({"samplers": []}, {"samplers": ()}),
        ({"seed": 0}, {}),
    ],
    ids=lambda value: json.dumps(value)[:50],
)  # fmt: skip
def test_sampling_parameters(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    assert sampling(**fields) == SamplingParams(**expected)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"logit_bias": {"x": 1}}, "logit_bias", "token ids"),
        ({"logit_bias": {"-1": 1}}, "logit_bias", "token ids"),
        ({"logit_bias": {"01": 1}}, "logit_bias", "token ids"),
        ({"logit_bias": {"٣": 1}}, "logit_bias", "token ids"),
        ({"logit_bias": {"99999999": 1}}, "logit_bias", "the vocabulary has"),
        ({"logit_bias": {"1": 1e300}}, "logit_bias", "between"),
        ({"stop_token_ids": [99999999]}, "stop_token_ids", "the vocabulary has"),
        ({"samplers": ["mirostat"]}, "samplers", "'mirostat', which is not known"),
        ({"samplers": "top_k;top_k"}, "samplers", "top_k twice"),
        ({"samplers": "typ_p;typical_p"}, "samplers", "typical_p twice"),
        ({"min_tokens": 6, "max_tokens": 5}, "min_tokens", "at most max_tokens"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_this_model_cannot_do(fields: dict[str, Any], param: str, words: str) -> None:
    for prepare in (chat, complete):
        with pytest.raises(RequestError, match=words) as raised:
            prepare(**fields)
        assert raised.value.param == param


def test_the_newer_limit_wins() -> None:
    assert chat(max_tokens=5, max_completion_tokens=7).requests[0].sampling.max_tokens == 7
    assert chat(max_tokens=7, max_completion_tokens=None).requests[0].sampling.max_tokens == 7


def test_seeds() -> None:
    assert len({chat().seed for _ in range(20)}) == 20
    prepared = chat(seed=2**63 - 1, n=3)
    assert [request.sampling.seed - prepared.seed for request in prepared.requests] == [0, 1, 2]
    assert chat(seed=-5).seed == -5
    random = [chat(seed=-1, n=2) for _ in range(20)]
    assert len({prepared.seed for prepared in random}) == 20
    for prepared in random:
        assert [request.sampling.seed for request in prepared.requests] == [prepared.seed, prepared.seed + 1]


def test_log_probabilities_of_a_chat() -> None:
    def asked(**fields: Any) -> tuple[int | None, int | None]:
        prepared = chat(**fields)
        return prepared.logprobs, prepared.requests[0].sampling.logprobs

    assert asked() == asked(logprobs=False) == asked(logprobs=False, top_logprobs=0) == (None, None)
    assert asked(logprobs=True) == asked(logprobs=True, top_logprobs=0) == (0, 0)
    assert asked(logprobs=True, top_logprobs=20) == (20, 20)
    with pytest.raises(RequestError, match="needs logprobs") as raised:
        chat(top_logprobs=2)
    assert raised.value.param == "top_logprobs"


def test_log_probabilities_of_a_completion() -> None:
    prepared = complete(logprobs=3)
    assert (prepared.logprobs, prepared.requests[0].sampling.logprobs) == (3, 3)
    assert prepared.requests[0].prompt_logprobs is None
    assert complete(logprobs=3, echo=True).requests[0].prompt_logprobs == 3
    assert complete(echo=True).requests[0].prompt_logprobs is None


# Choices


def test_the_best_are_found_by_their_log_probability() -> None:
    prepared = complete(n=2, best_of=5, prompt=["a", "b"])
    assert (prepared.choices, prepared.generated, len(prepared.requests)) == (2, 5, 10)
    assert prepared.logprobs is None
    assert {request.sampling.logprobs for request in prepared.requests} == {0}
    assert complete(n=2, best_of=2).requests[0].sampling.logprobs is None
    assert complete(n=3).generated == 3
    assert complete(best_of=3).choices == 1


@pytest.mark.parametrize("fields", [{"n": 2, "best_of": 1}, {"best_of": 2, "stream": True}])
def test_what_best_of_cannot_be(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as raised:
        complete(**fields)
    assert raised.value.param == "best_of"


def test_the_echo_is_what_was_sent() -> None:
    def echoed(prompt: Any, model: ServedModel = MODEL) -> list[str]:
        prepared = complete(POLICY, model, prompt=prompt, echo=True)
        assert prepared.echo is not None
        return [echo.text for echo in prepared.echo]

    assert echoed(["<|im_start|>hello", " world"]) == ["<|im_start|>hello", " world"]
    pieces = served(tokenizer=piece_tokenizer())
    assert echoed("hello", pieces) == ["hello"]
    assert echoed([piece_tokenizer().encode("hello w", special=False)], pieces) == ["hello w"]
    assert complete().echo is None


def test_nothing_but_the_prompt() -> None:
    assert complete(max_tokens=0, echo=True).requests[0].sampling.max_tokens == 0


def test_how_the_answer_is_to_look() -> None:
    prepared = complete(stream=True, stream_options={"include_usage": True}, timings_per_token=True, suffix="!")
    assert (prepared.stream, prepared.include_usage, prepared.timings_per_token, prepared.suffix) == (
        True,
        True,
        True,
        "!",
    )
    prepared = chat(stream=None, stream_options={})
    assert (prepared.stream, prepared.include_usage, prepared.timings_per_token, prepared.suffix) == (
        False,
        False,
        False,
        "",
    )


# The server's policy


def test_what_the_server_decides_reaches_the_engine() -> None:
    policy = replace(POLICY, cache_salt="key", deadline_s=5.0)
    for prepared in (chat(policy), complete(policy), embed(policy)):
        [request] = prepared.requests
        assert (request.cache_salt, request.deadline_s, request.reuse) == ("key", 5.0, True)
    assert not chat(cache_prompt=False).requests[0].reuse
    assert chat(cache_prompt=True).requests[0].reuse


def test_what_is_ignored_is_named_from_everywhere() -> None:
    prepared = chat(
        messages=[{"role": "user", "content": "hi", "name": "Ann"}],
        user="me",
        store=True,
        best_effort=1,
        stream_options={"include_obfuscation": True},
        chat_template_kwargs={"thinking": False},
    )
    assert prepared.ignored == (
        "user",
        "store",
        "best_effort",
        "stream_options.include_obfuscation",
        "messages.name",
        "chat_template_kwargs.thinking",
    )
    assert complete(user="me", messages=[]).ignored == ("user", "messages")
    assert embed(user="me", x=1).ignored == ("user", "x")


def test_a_strict_server_ignores_nothing() -> None:
    assert chat(STRICT, temperature=0, user=None).ignored == ()
    for fields in ({"user": "me"}, {"x": 1}, {"stream_options": {"x": 1}}, {"chat_template_kwargs": {"x": 1}}):
        with pytest.raises(RequestError, match="would be ignored"):
            chat(STRICT, **fields)
    for prepare in (complete, embed):
        with pytest.raises(RequestError, match="would be ignored: user"):
            prepare(STRICT, user="me")


def test_which_model() -> None:
    strict = replace(POLICY, strict_model=True)
    for name in (None, "", "default", "org/tiny"):
        for prepare in (chat, complete, embed):
            assert prepare(strict, model=name).other_model is None
    for prepare in (chat, complete, embed):
        assert prepare(model="gpt-4").other_model == "gpt-4"
        with pytest.raises(RequestError, match="'gpt-4' does not exist") as raised:
            prepare(strict, model="gpt-4")
        assert (raised.value.code, raised.value.param) == ("model_not_found", "model")


# Embeddings


def test_embeddings() -> None:
    prepared = embed(input=["hello", "hi"])
    assert [request.prompt for request in prepared.requests] == [
        tuple(byte_tokenizer().encode(word, special=True)) for word in ("hello", "hi")
    ]
    assert {request.pooling for request in prepared.requests} == {"mean"}
    assert prepared.encoding_format == "float"
    prepared = embed(pooling="last", encoding_format="base64", dimensions=HIDDEN)
    assert (prepared.requests[0].pooling, prepared.encoding_format) == ("last", "base64")
    with pytest.raises(RequestError, match=f"embeddings have {HIDDEN}") as raised:
        embed(dimensions=HIDDEN + 1)
    assert raised.value.param == "dimensions"


# Any input

SCALARS = st.none() | st.booleans() | st.integers(-3, 30) | st.floats(0, 2) | st.text(max_size=5)
VALUES = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(st.text(max_size=3), SCALARS, max_size=2)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": st.text(max_size=5) | VALUES},
        optional={"name": st.text(max_size=3), "tool_calls": st.lists(VALUES, max_size=2), "x": VALUES},
    ),
    max_size=3,
)
PROMPTS = st.text(max_size=5) | st.lists(st.integers(0, 300), max_size=3) | st.lists(st.text(max_size=3), max_size=3)


def fields(kind: type[ChatCompletionBody] | type[CompletionBody]) -> st.SearchStrategy[dict[str, Any]]:
    known = st.dictionaries(st.sampled_from(sorted(kind.model_fields)) | st.text(max_size=4), VALUES, max_size=4)
    least = st.fixed_dictionaries({"messages": MESSAGES} if kind is ChatCompletionBody else {"prompt": PROMPTS})
    return st.builds(lambda some, sure: some | sure, known, least)


def outcome(prepare: Any, kind: Any, data: dict[str, Any], policy: Policy) -> Prepared | RequestError:
    try:
        return prepare(parse(kind, json.dumps(data).encode()), MODEL, policy)  # type: ignore[no-any-return]
    except RequestError as error:
        return error


@given(data=fields(ChatCompletionBody), strict=st.booleans())
def test_any_chat_is_prepared_or_refused(data: dict[str, Any], strict: bool) -> None:
    result = outcome(prepare_chat, ChatCompletionBody, data, replace(POLICY, strict=strict))
    assert isinstance(result, RequestError) or all(request.prompt for request in result.requests)


@given(data=fields(CompletionBody), strict=st.booleans())
def test_any_completion_is_prepared_or_refused(data: dict[str, Any], strict: bool) -> None:
    result = outcome(prepare_completion, CompletionBody, data, replace(POLICY, strict=strict))
    assert isinstance(result, RequestError) or all(request.prompt for request in result.requests)
