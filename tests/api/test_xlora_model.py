"""X-LoRA behind the doors of the API: loading, answers, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mistralrs import ChatCompletionRequest, CompletionRequest, Runner, Which
from mistralrs.api.engine_client.remote import RemoteEngine
from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.loaded_adapters.adapter_options import AdapterOptions, AdapterSource
from mistralrs.api.local_model import LocalModel
from mistralrs.api.schemas.request_bodies import ChatCompletionBody, CompletionBody, parse
from mistralrs.api.schemas.response_bodies import ChatCompletion, Completion
from mistralrs.api.serving.answers.respond import Answer as ApiAnswer
from mistralrs.api.serving.policy import Policy
from mistralrs.api.serving.prepare import prepare_chat, prepare_completion
from mistralrs.engine import prompt_outputs
from mistralrs.engine.config import Request, SamplingParams
from mistralrs.engine.events import Delta, Event, Scalings
from mistralrs.errors import LoadError, RequestError, UsageError
from tests.adapters.xlora_files import NAMES, axis_of, write_xlora
from tests.adapters.xlora_reference import ReferenceXLora
from tests.architectures import VARIANTS, write_folder
from tests.parity.test_engine_laws import Answer, collect

pytestmark = pytest.mark.native

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, logprobs=3, ignore_eos=True)
PROMPTS = [[5 + (7 * place + start) % 250 for place in range(length)] for start, length in ((0, 30), (3, 47), (9, 5))]
AXIS = axis_of("llama", targets=("q_proj", "v_proj", "down_proj"))
Load = Callable[..., LocalModel]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("xlora") / "base", VARIANTS["llama"])


@pytest.fixture(scope="module")
def mixture(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_xlora(tmp_path_factory.mktemp("mixture"), base, AXIS, layerwise_scalings=True)


@pytest.fixture(scope="module")
def load(base: Path) -> Load:
    def load(adapters: AdapterOptions, **options: Any) -> LocalModel:
        source = ModelSource(None, base, None, None)
        return LocalModel.load(source, replace(LoadOptions(threads=2, adapters=adapters), **options))

    return load


def answers(model: LocalModel) -> list[Answer]:
    """All prompts at once."""
    streams = [model.complete(prompt, GREEDY) for prompt in PROMPTS]
    return [collect(stream)[0] for stream in streams]


@pytest.mark.parametrize("index", [None, 0, 3])
def test_answers_do_not_depend_on_how_they_are_served(load: Load, mixture: Path, index: int | None) -> None:
    options = AdapterOptions(xlora=str(mixture), non_granular_index=index)
    with load(options, prefix_cache_n=0, max_draft=0) as model:
        alone = [collect(model.complete(prompt, GREEDY))[0] for prompt in PROMPTS]
        assert answers(model) == alone
    with load(options, max_batch_tokens=16) as model:
        assert answers(model) == alone
        assert answers(model) == alone  # from the prefix cache
        assert model.stats().cached_tokens > 0
    if index is None:
        with load(options, no_kv_cache=True) as model:
            assert answers(model) == alone


def test_the_mixture_acts_and_says_so(load: Load, mixture: Path) -> None:
    with load(AdapterOptions()) as plain, load(AdapterOptions(xlora=str(mixture))) as mixed:
        assert answers(plain) != answers(mixed)
        assert mixed.known_adapters().describe() == f"X-LoRA of 3 adapters from {mixture}; 97 KiB of memory"


def test_requests_choose_no_adapters(load: Load, mixture: Path) -> None:
    with load(AdapterOptions(xlora=str(mixture))) as model:
        for choice in ({"music": 1.0}, {"jazz": 1.0}, {}):
            with pytest.raises(RequestError, match=r"is an X-LoRA of 3 adapters .* requests choose none"):
                model.complete(PROMPTS[0], GREEDY, adapters=choice)


@pytest.mark.parametrize(
    "changes",
    [
        {"adapters": (AdapterSource("a", "x"),)},
        {"merge": True},
        {"max_adapters": 2},
        {"root": Path("/")},
    ],
)
def test_other_adapters_are_excluded(load: Load, mixture: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="X-LoRA has its own adapters: it excludes "):
        load(replace(AdapterOptions(xlora=str(mixture)), **changes))


def test_an_index_without_a_mixture_is_refused(load: Load) -> None:
    with pytest.raises(UsageError, match="means nothing without X-LoRA"):
        load(AdapterOptions(non_granular_index=1))


def test_a_missing_classifier_is_named(load: Load, mixture: Path, tmp_path: Path) -> None:
    for path in mixture.rglob("*"):
        if path.is_file() and path.name != "xlora_classifier.safetensors":
            target = tmp_path / path.relative_to(mixture)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
    with pytest.raises(LoadError, match=r"has no xlora_classifier.safetensors, the classifier of"):
        load(AdapterOptions(xlora=str(tmp_path)))


# Scalings


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


def scalings_of(events: Sequence[Event]) -> tuple[Scalings, torch.Tensor]:
    """The event, and its values (tokens, layers, adapters)."""
    [found] = [event for event in events if isinstance(event, Scalings)]
    assert isinstance(events[-2], Scalings)  # before the end
    values = torch.frombuffer(bytearray(found.data), dtype=torch.float32)
    return found, values.view(len(found.tokens), *found.shape)


def generated(events: Sequence[Event]) -> list[int]:
    return [token for event in events if isinstance(event, Delta) for token in event.tokens]


@pytest.mark.parametrize("index", [None, 0, 3])
def test_scalings_are_the_reference_s_however_they_are_served(
    load: Load, base: Path, mixture: Path, index: int | None
) -> None:
    """Of all tokens but the last sampled one. In chunks, with drafts, beside others, without KV cache: the same."""
    options = AdapterOptions(xlora=str(mixture), non_granular_index=index)
    repeating = [*PROMPTS[0][:9], *PROMPTS[0][:9], *PROMPTS[0][:7]]  # so that there are draft tokens
    with load(options, max_draft=0, dtype="f32") as model:
        events = list(model.complete(repeating, GREEDY, scalings=True))
    alone, values = scalings_of(events)
    tokens = [*repeating, *generated(events)][:-1]
    assert (alone.start, list(alone.tokens), alone.omitted_tokens) == (0, tokens, 0)
    expected = ReferenceXLora(base, mixture, AXIS).scalings(tokens)
    if index is not None:
        last = len(repeating) + index - 1
        expected[last + 1 :] = expected[last]
    torch.testing.assert_close(values.double(), expected, rtol=1e-3, atol=1e-4)
    for changes in ({"max_batch_tokens": 16}, {"max_draft": 4}, {"no_kv_cache": True}):
        with load(options, dtype="f32", **{"max_draft": 0, **changes}) as model:
            streams = [model.complete(repeating, GREEDY, scalings=True), model.complete(PROMPTS[1], GREEDY)]
            assert scalings_of(list(streams[0]))[0] == alone
            assert not any(isinstance(event, Scalings) for event in streams[1])


def test_tokens_from_the_prefix_cache_have_no_scalings(load: Load, mixture: Path) -> None:
    with load(AdapterOptions(xlora=str(mixture))) as model:
        whole, values = scalings_of(list(model.complete(PROMPTS[1], GREEDY, scalings=True)))
        rest, of_rest = scalings_of(list(model.complete(PROMPTS[1], GREEDY, scalings=True)))
    assert rest.start > 0
    assert rest.tokens == whole.tokens[rest.start :]
    assert torch.equal(of_rest, values[rest.start :])


def test_scalings_are_bounded(load: Load, mixture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_outputs, "MAX_SCALINGS", 7 * len(AXIS) * len(NAMES) + 1)
    with load(AdapterOptions(xlora=str(mixture)), max_batch_tokens=16) as model:
        found, _ = scalings_of(list(model.complete(PROMPTS[0], GREEDY, scalings=True)))
    assert list(found.tokens) == PROMPTS[0][:7]
    assert found.omitted_tokens == len(PROMPTS[0]) + 11 - 7


def test_a_model_without_x_lora_refuses_scalings(load: Load) -> None:
    with load(AdapterOptions()) as model:
        with pytest.raises(RequestError, match="this model is none") as refused:
            model.complete(PROMPTS[0], GREEDY, scalings=True)
        assert refused.value.hint is not None
        with pytest.raises(RequestError, match="it has no scalings"):
            model.engine.submit(Request(tuple(PROMPTS[0]), GREEDY, wants_scalings=True))
        body = parse(CompletionBody, json.dumps({"prompt": PROMPTS[0], "scalings": True}).encode())
        with pytest.raises(RequestError, match="this model is none"):
            prepare_completion(body, model.served, Policy("m"))


def test_what_scalings_exclude(load: Load, mixture: Path) -> None:
    with load(AdapterOptions(xlora=str(mixture))) as model:
        for fields, words in (
            ({"stream": True}, "they cannot be streamed"),
            ({"n": 2}, "those of one answer; this would generate 2"),
            ({"prompt": ["a", "b"]}, "those of one answer; this would generate 2"),
        ):
            asked = {"prompt": "a", "scalings": True, "max_tokens": 2, **fields}
            body = parse(CompletionBody, json.dumps(asked).encode())
            with pytest.raises(RequestError, match=words) as refused:
                prepare_completion(body, model.served, Policy("m"))
            assert refused.value.param == "scalings"
        body = parse(ChatCompletionBody, b'{"messages": "a", "stream": true, "scalings": true}')
        with pytest.raises(RequestError, match="they cannot be streamed"):
            prepare_chat(body, model.served, Policy("m"))


@pytest.mark.anyio
async def test_scalings_through_another_process(load: Load, base: Path, mixture: Path) -> None:
    options = LoadOptions(threads=2, adapters=AdapterOptions(xlora=str(mixture)))
    with load(AdapterOptions(xlora=str(mixture))) as model:
        [*events] = model.complete(PROMPTS[0], GREEDY, scalings=True)
    expected, values = scalings_of(events)
    engine = await RemoteEngine.start(ModelSource(None, base, None, None), options)
    try:
        asked = {"prompt": PROMPTS[0], "scalings": True, "max_tokens": 12, "temperature": 0, "ignore_eos": True}
        for _ in range(2):  # the prefix cache is not used
            body = parse(CompletionBody, json.dumps(asked).encode())
            prepared = prepare_completion(body, engine.model, Policy("m"))
            streams = [engine.submit(request) for request in prepared.requests]
            answer = await ApiAnswer(prepared, id="1", created=1, model_name="m").whole(streams)
            [choice] = Completion.model_validate(answer).choices
            found = choice.scalings
            assert found is not None
            assert (found.adapters, found.layers, found.omitted_tokens) == (list(NAMES), AXIS, 0)
            assert [token.id for token in found.tokens] == list(expected.tokens)
            assert [token.position for token in found.tokens] == list(range(len(expected.tokens)))
            assert found.tokens[3].text == engine.model.tokenizer.token_text(PROMPTS[0][3])
            weights = torch.tensor([token.weights for token in found.tokens])
            torch.testing.assert_close(weights, values, rtol=0, atol=1e-6)
    finally:
        await engine.close()


def test_scalings_in_python(base: Path, mixture: Path) -> None:
    which = Which.Auto(str(base), xlora=str(mixture))
    with closing(Runner(which, threads=1, chat_template="{{ messages[0].content }}")) as runner:
        asked: dict[str, Any] = {"max_tokens": 3, "temperature": 0.0, "ignore_eos": True}
        chat = runner.send_chat_completion_request(ChatCompletionRequest("hello", scalings=True, **asked))
        assert isinstance(chat, ChatCompletion)
        found = chat.choices[0].scalings
        assert found is not None
        assert len(found.tokens) == chat.usage.prompt_tokens + 2
        assert all(abs(sum(layer) - 1) < 1e-4 for token in found.tokens for layer in token.weights)
        plain = runner.send_completion_request(CompletionRequest("hello", **asked))
        assert isinstance(plain, Completion)
        assert plain.choices[0].scalings is None
