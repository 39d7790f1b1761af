"""One number means the same wherever it is given: in a body, to a Python request, on the command line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from mistralrs import ChatCompletionRequest, CompletionRequest
from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.local_model import LocalModel
from mistralrs.api.schemas import request_bodies
from mistralrs.api.serving.prepare import prepare_chat, prepare_completion
from mistralrs.engine.config import SamplingParams
from mistralrs.engine.events import Delta, Finished
from mistralrs.errors import MistralrsError, RequestError
from mistralrs_cli.arguments.command_line import parse
from mistralrs_cli.arguments.invocation import SAMPLING, Invocation, PromptJob, resolve
from tests.api.served import POLICY, served
from tests.tiny import TinyConfig, write_tiny

MODEL = served()
ALL = 2**31 - 1
"""Tokens to look back on: as many as there are."""
GRID = (0, 1, 0.5, -1, -2, -7, 10**30, -(10**30), math.nan, math.inf, -math.inf, "1", True, [1])
"""Each field meets each of these."""

Door = Callable[[str, object], SamplingParams]


def chat(fields: dict[str, Any]) -> SamplingParams:
    body = request_bodies.parse(request_bodies.ChatCompletionBody, json.dumps({"messages": "hi", **fields}).encode())
    return prepare_chat(body, MODEL, POLICY).requests[0].sampling


def complete(fields: dict[str, Any]) -> SamplingParams:
    body = request_bodies.parse(request_bodies.CompletionBody, json.dumps({"prompt": "hi", **fields}).encode())
    return prepare_completion(body, MODEL, POLICY).requests[0].sampling


def python_chat(fields: dict[str, Any]) -> SamplingParams:
    return prepare_chat(ChatCompletionRequest("hi", **fields).body, MODEL, POLICY).requests[0].sampling


def python_complete(fields: dict[str, Any]) -> SamplingParams:
    return prepare_completion(CompletionRequest("hi", **fields).body, MODEL, POLICY).requests[0].sampling


def seeded(ask: Callable[[dict[str, Any]], SamplingParams]) -> Door:
    return lambda name, value: ask({"seed": 0, name: value})


OPTIONS = {
    **{
        name: "--" + name.replace("_", "-") for name in ("temperature", "top_k", "top_p", "min_p", "seed", "max_tokens")
    },
    **{name: "--" + name.replace("_", "-") for name in ("frequency_penalty", "presence_penalty", "repeat_last_n")},
    "repetition_penalty": "--repeat-penalty",
}
"""The fields that the command line has."""


def command_line(name: str, value: object) -> SamplingParams:
    words = [OPTIONS[name], str(value)]
    others = ["--seed", "0"] if name != "seed" else []
    before, after = ([], words) if name == "repeat_last_n" else (words, [])
    parsed = parse([*before, *others, "--prompt", "x", "gguf", "-m", "", "-f", __file__, *after])
    assert parsed is not None
    task = resolve(parsed)
    assert isinstance(task, Invocation)
    assert isinstance(task.job, PromptJob)
    return task.job.sampling


DOORS: dict[str, Door] = {
    "chat": seeded(chat),
    "completion": seeded(complete),
    "Python chat": seeded(python_chat),
    "Python completion": seeded(python_complete),
    "command line": command_line,
}
SHARE: dict[object, object] = {0: 0, 1: 1, 0.5: 0.5}
COUNT: dict[object, object] = {0: 0, 1: 1}
MEANT: dict[str, dict[object, object]] = {
    "temperature": SHARE,
    "top_p": SHARE,
    "min_p": SHARE,
    "typical_p": SHARE,
    "xtc_probability": SHARE,
    "xtc_threshold": SHARE,
    "top_k": {**COUNT, -1: 0},
    "repetition_penalty": {1: 1, 0.5: 0.5},
    "frequency_penalty": {**SHARE, -1: -1, -2: -2, -7: -7},
    "presence_penalty": {**SHARE, -1: -1, -2: -2, -7: -7},
    "repeat_last_n": {**COUNT, -1: ALL},
    "dry_multiplier": SHARE,
    "dry_base": {1: 1},
    "dry_allowed_length": {1: 1},
    "dry_penalty_last_n": {**COUNT, -1: None},
    "min_tokens": COUNT,
    "seed": {**COUNT, -1: "random", -2: -2, -7: -7},
    "max_tokens": {1: 1, -1: None, -2: None},
    "n_predict": {1: 1, -1: None, -2: None},
}
"""By field: what is taken, and as what. All else in ``GRID`` is refused."""
ENGINE_NAMES = {"dry_penalty_last_n": "dry_last_n", "n_predict": "max_tokens"}


def has(door: str, name: str) -> bool:
    return door != "command line" or name in OPTIONS


@pytest.mark.parametrize(("door", "name"), [(door, name) for door in DOORS for name in MEANT if has(door, name)])
def test_a_value_means_the_same_at_each_door(door: str, name: str) -> None:
    meant = dict(MEANT[name])
    if name in ("max_tokens", "n_predict") and "completion" in door:
        meant[0] = 0  # nothing but the prompt, which a chat cannot show
    engine_name = ENGINE_NAMES.get(name, name)
    for value in GRID:
        if value == "1" and door == "command line":  # all words are text there
            continue
        if type(value) not in (int, float) or value not in meant:
            with pytest.raises(MistralrsError) as refused:
                DOORS[door](name, value)
            assert (OPTIONS[name] if door == "command line" else name) in refused.value.message, value
            assert len(refused.value.message) < 300
        elif meant[value] == "random":
            seeds = {DOORS[door](name, value).seed for _ in range(8)}
            assert len(seeds) == 8
            assert all(0 <= seed < 2**32 for seed in seeds)
        else:
            assert getattr(DOORS[door](name, value), engine_name) == meant[value], value


@pytest.mark.parametrize("name", MEANT)
@pytest.mark.parametrize("door", [door for door in DOORS if door != "command line"])
def test_null_is_not_there(door: str, name: str) -> None:
    taken = DOORS[door](name, None)
    assert replace(taken, seed=0) == SamplingParams()


@pytest.mark.parametrize("door", DOORS)
def test_the_largest_numbers(door: str) -> None:
    for seed in (2**63 - 1, -(2**63)):
        assert DOORS[door]("seed", seed).seed == seed
    for name, value in (("seed", 2**63), ("seed", 2**64), ("seed", -(2**63) - 1), ("seed", 10**400)):
        with pytest.raises(MistralrsError, match=name):
            DOORS[door](name, value)
    for name in ("max_tokens", "repeat_last_n", "top_k"):
        assert getattr(DOORS[door](name, 2**31 - 1), name) == 2**31 - 1
        with pytest.raises(MistralrsError):
            DOORS[door](name, 2**31)


def test_other_counts() -> None:
    for fields, param in (
        ({"n": 0}, "n"),
        ({"n": -1}, "n"),
        ({"top_logprobs": -1, "logprobs": True}, "top_logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"5": None}}, "logit_bias.5"),
        ({"logit_bias": {"5": math.nan}}, "logit_bias.5"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_completion_tokens": -3}, "max_completion_tokens"),
        ({"max_tokens": 1, "n_predict": 1}, "n_predict"),
    ):
        with pytest.raises(RequestError) as refused:
            chat({"seed": 0, **fields})
        assert refused.value.param == param, fields
    assert chat({"max_tokens": 5, "max_completion_tokens": -1}).max_tokens is None
    assert chat({"max_tokens": 5}).max_tokens == 5


# Their effects


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    path = write_tiny(tmp_path_factory.mktemp("values") / "tiny.gguf", TinyConfig(context=256)).path
    with LocalModel.load(ModelSource(None, path, None, None), LoadOptions(threads=1)) as loaded:
        yield loaded


def answer(model: LocalModel, sampling: SamplingParams) -> tuple[list[int], Finished]:
    *news, end = model.complete(tuple(range(70, 80)), sampling)
    assert isinstance(end, Finished), end
    return [token for event in news if isinstance(event, Delta) for token in event.tokens], end


@pytest.mark.parametrize("door", DOORS)
def test_no_share_at_all_is_the_likeliest_token_whatever_the_seed(door: str, model: LocalModel) -> None:
    base = replace(SAMPLING if door == "command line" else SamplingParams(), max_tokens=24, ignore_eos=True)
    hot = replace(base, temperature=3.0, top_k=0, top_p=1.0)
    likeliest, _ = answer(model, replace(base, temperature=0.0))
    for name, value in (("top_p", 0), ("typical_p", 0), ("top_k", 1), ("min_p", 1), ("temperature", 0)):
        if not has(door, name):
            continue
        number = getattr(DOORS[door](name, value), name)
        for seed in (0, 1, -7, 2**63 - 1):
            sampling = replace(hot, **{name: number, "seed": seed})
            assert answer(model, sampling)[0] == likeliest, (name, seed)
    assert answer(model, hot)[0] != likeliest


@pytest.mark.parametrize("door", DOORS)
def test_no_limit_is_the_end_of_the_context(door: str, model: LocalModel) -> None:
    for value in (-1, -2):
        limit = DOORS[door]("max_tokens", value).max_tokens
        tokens, end = answer(model, SamplingParams(max_tokens=limit, ignore_eos=True))
        assert (len(tokens), end.reason) == (256 - 10, "length")


@pytest.mark.parametrize("door", DOORS)
def test_the_seed_that_was_used_draws_the_same_again(door: str, model: LocalModel) -> None:
    hot = SamplingParams(temperature=2.0, max_tokens=16, ignore_eos=True)
    for seed in (-1, -7, 0):
        tokens, end = answer(model, replace(hot, seed=DOORS[door]("seed", seed).seed))
        assert seed == -1 or end.usage.seed == seed
        assert answer(model, replace(hot, seed=DOORS[door]("seed", end.usage.seed).seed))[0] == tokens


def test_all_tokens_are_looked_back_on(model: LocalModel) -> None:
    """Counts tokens too that are more than the usual 64 back."""
    prompt = tuple(range(70, 170))
    for back, is_penalised in ((64, False), (DOORS["chat"]("repeat_last_n", -1).repeat_last_n, True)):
        sampling = SamplingParams(temperature=0.0, max_tokens=1, logit_bias=((75, 50.0),), repeat_last_n=back)
        *_, end = news = list(model.complete(prompt, replace(sampling, presence_penalty=100.0)))
        assert isinstance(end, Finished)
        assert (news[0].tokens == (75,)) == (not is_penalised)  # type: ignore[union-attr]
