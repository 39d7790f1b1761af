"""Stages in any order: against llama.cpp, `transformers`, a plain reading of their rules, and the fast path."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from transformers import TypicalLogitsWarper

from mistralrs.engine.config import SAMPLERS, SamplingParams
from mistralrs.engine.sampling.dry_penalty import Dry
from mistralrs.engine.sampling.logits_processors import apply_mask, apply_penalties
from mistralrs.engine.sampling.sampler_plan import FAST_PATH_STAGES, sampler_plan
from mistralrs.engine.sampling.sampler_stages import sample_staged, truncate
from mistralrs.engine.sampling.sampling_input import SampledToken, SamplingInput, uniform
from tests.buffers import buffer_of
from tests.engine.samplers import bits_of, each_sampler, new_sampler
from tests.engine.test_sampling import OPTIONS, plain_sample, plain_scores, random_logits, sample_one

__all__ = ["each_sampler"]  # a fixture that runs each test with both samplers

CASES = json.loads((Path(__file__).parent / "golden" / "samplers.json").read_text(encoding="utf-8"))["cuts"]
LLAMA_CPP = ("penalties", "dry", "top_k", "typical_p", "top_p", "min_p", "xtc", "temperature")
"""The order in which llama.cpp has them."""
ALL_ON = SamplingParams(
    temperature=1.4,
    top_k=300,
    top_p=0.9,
    min_p=0.01,
    typical_p=0.8,
    xtc_probability=0.5,
    xtc_threshold=0.04,
    repetition_penalty=1.2,
    frequency_penalty=0.3,
)


def kept(logits: torch.Tensor, params: SamplingParams, stages: tuple[str, ...], tokens: list[int]) -> list[int]:
    ids: list[int] = truncate(logits, SamplingInput(params, tokens), stages)[0].tolist()
    return ids


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['stage']} {case['params']}")
def test_llama_cpp_keeps_the_same(case: dict[str, Any]) -> None:
    params = SamplingParams(**case["params"], xtc_probability=1.0)
    assert kept(torch.tensor(case["logits"]), params, (case["stage"],), [1]) == case["kept"]


@pytest.mark.parametrize("mass", [0.05, 0.3, 0.9, 0.99])
def test_transformers_keeps_the_same_typical_tokens(mass: float) -> None:
    warper = TypicalLogitsWarper(mass=mass)
    for seed in range(20):
        logits = random_logits(seed, spread=0.5 + seed / 5)
        expected = warper(torch.empty(1, 0, dtype=torch.long), logits[None])[0].isfinite().nonzero().squeeze(1).tolist()
        assert kept(logits, SamplingParams(typical_p=mass), ("typical_p",), [1]) == expected


# A plain reading of the stages, token by token


def plain_cut(
    scores: list[float], params: SamplingParams, stages: tuple[str, ...], tokens: list[int]
) -> dict[int, float]:
    """Probabilities, by token, of those that the stages leave."""
    left = set(range(len(scores)))
    for stage in stages:
        if stage == "penalties":
            scores = plain_scores(torch.tensor(scores, dtype=torch.float64), replace(params, logit_bias=()), tokens)
        elif stage == "temperature":
            scores = [score / params.temperature for score in scores]
        else:
            highest = max(scores[token] for token in left)
            total = sum(math.exp(scores[token] - highest) for token in left)
            ranked = [(math.exp(scores[t] - highest) / total, -t) for t in left]
            all_of_them = sum(math.exp(score - highest) for score in scores) / total
            left = {-t for _, t in plain_stage(stage, sorted(ranked, reverse=True), params, all_of_them, len(tokens))}
    highest = max(scores[token] for token in left)
    weights = {token: math.exp(scores[token] - highest) for token in sorted(left)}
    total = sum(weights.values())
    return {token: weight / total for token, weight in weights.items()}


def plain_stage(
    stage: str, ranked: list[tuple[float, int]], params: SamplingParams, all_of_them: float, position: int
) -> list[tuple[float, int]]:
    """The (probability, -token) that a stage leaves, best first; ``all_of_them``: the mass of all tokens, left or
    not."""
    match stage:
        case "top_k":
            return ranked[: params.top_k]
        case "min_p":
            return [entry for entry in ranked if entry[0] >= params.min_p * ranked[0][0]]
        case "top_p":
            return reach(ranked, params.top_p * all_of_them)
        case "typical_p" if params.typical_p == 0:
            return ranked[:1]
        case "typical_p":
            entropy = -sum(p * math.log(p) for p, _ in ranked)
            return reach(sorted(ranked, key=lambda entry: abs(-math.log(entry[0]) - entropy)), params.typical_p)
        case _:
            likely = [entry for entry in ranked if entry[0] >= params.xtc_threshold]
            happens = uniform(params.seed, position, "xtc") < params.xtc_probability
            return ranked[max(len(likely) - 1, 0) :] if happens else ranked


def reach(ranked: list[tuple[float, int]], target_mass: float) -> list[tuple[float, int]]:
    mass, count = 0.0, 0
    while count < len(ranked) and (count == 0 or mass < target_mass):
        mass += ranked[count][0]
        count += 1
    return ranked[:count]


def test_stages_in_any_order_are_what_the_plain_rules_say() -> None:
    stages = tuple(stage for stage in SAMPLERS if stage != "dry")
    random = Random(4)
    sizes = set()
    for seed in range(120):
        order = tuple(random.sample(stages, random.randint(1, len(stages))))
        params = replace(ALL_ON, seed=seed, samplers=order)
        logits = random_logits(seed, spread=2.0, vocab_size=500)
        tokens = logits.topk(12).indices.tolist()
        expected = plain_cut(logits.tolist(), params, order, tokens)
        ids, weights = truncate(logits, SamplingInput(params, tokens), order)
        assert ids.tolist() == list(expected), order
        assert (weights / weights.sum()).tolist() == pytest.approx(list(expected.values()), rel=1e-5)
        token = plain_sample(list(expected.items()), uniform(seed, len(tokens)))
        assert sample_one(logits, params, tokens).token == token, order
        sizes.add(len(ids))
    assert len(sizes) > 40


def test_a_mass_of_zero_leaves_the_most_likely_candidate() -> None:
    logits = random_logits(1, spread=2.0)
    for stage in ("top_p", "typical_p"):
        params = SamplingParams(temperature=2.0, top_k=20, **{stage: 0.0})
        assert kept(logits, params, ("temperature", "top_k", stage), [1]) == [int(logits.argmax())]
        assert kept(logits, params, (stage, "temperature", "top_k"), [1]) == [int(logits.argmax())]
        for seed in range(20):
            assert sample_one(logits, replace(params, seed=seed), [1]).token == int(logits.argmax())
            left_out = replace(params, seed=seed, samplers=("temperature", "top_k"))
            assert (
                sample_one(logits, left_out, [1]).token
                == sample_one(logits, replace(left_out, **{stage: 1.0}), [1]).token
            )
    zeros = torch.zeros(1000)
    for stage in ("top_p", "typical_p"):
        assert kept(zeros, SamplingParams(**{stage: 0.0}), (stage,), [1]) == [0]
        assert sample_one(zeros, SamplingParams(**{stage: 0.0}), [1]).token == 0


# The same as the fast path


@pytest.mark.parametrize("name", OPTIONS)
def test_the_fast_path_samples_the_same(name: str) -> None:
    for seed in range(30):
        params = replace(OPTIONS[name], seed=seed)
        assert sampler_plan(params).truncations is None
        logits = random_logits(seed)
        tokens = random_logits(seed + 1000).topk(8).indices.tolist()
        sampling_input, scores = SamplingInput(params, tokens), logits.clone()
        if sampler_plan(params).has_penalties:
            apply_penalties(scores[None], [(0, sampling_input)])
        apply_mask(scores, sampling_input)
        on = tuple(stage for stage in FAST_PATH_STAGES if stage != "top_p" or params.top_p < 1)
        on = tuple(stage for stage in on if stage != "top_k" or params.top_k > 0)
        assert sample_staged(scores, sampling_input, on) == sample_one(logits, params, tokens).token


def test_usual_stages_take_the_fast_path() -> None:
    every_stage = replace(OPTIONS["everything"], dry_multiplier=1.0)
    assert sampler_plan(every_stage).truncations is None
    assert sampler_plan(every_stage).logits_processors == ("dry",)
    assert sampler_plan(every_stage).effective_params is None
    assert sampler_plan(replace(every_stage, samplers=("dry", "penalties", "min_p"))).logits_processors == (
        "dry",
        "penalties",
    )
    assert sampler_plan(replace(every_stage, samplers=("dry", "penalties", "min_p"))).truncations is None
    assert sampler_plan(replace(ALL_ON, temperature=0.0)).truncations is None  # one token is left
    assert sampler_plan(replace(ALL_ON, temperature=0.0, samplers=LLAMA_CPP)).truncations is not None
    for params in (SamplingParams(typical_p=0.9), SamplingParams(xtc_probability=0.1), replace(ALL_ON, typical_p=1.0)):
        assert sampler_plan(params).truncations is not None
    assert sampler_plan(SamplingParams(samplers=LLAMA_CPP, top_k=3)).truncations is None
    assert sampler_plan(SamplingParams(samplers=LLAMA_CPP, top_k=3, temperature=0.5)).truncations == (
        "top_k",
        "temperature",
    )


OFF_AND_ON: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "penalties": ({"repetition_penalty": 1.0, "frequency_penalty": 0.0}, {"repetition_penalty": 1.5}),
    "dry": ({"dry_multiplier": 0.0}, {"dry_multiplier": 2.0}),
    "temperature": ({"temperature": 1.0}, {"temperature": 3.0}),
    "top_k": ({"top_k": 0}, {"top_k": 3}),
    "typical_p": ({"typical_p": 1.0}, {"typical_p": 0.2}),
    "top_p": ({"top_p": 1.0}, {"top_p": 0.2}),
    "min_p": ({"min_p": 0.0}, {"min_p": 0.7}),
    "xtc": ({"xtc_probability": 0.0}, {"xtc_probability": 1.0, "xtc_threshold": 0.01}),
}


@pytest.mark.parametrize("stage", SAMPLERS)
def test_a_stage_that_is_left_out_is_off(stage: str) -> None:
    spell = bytes([97]).__mul__
    off, on = OFF_AND_ON[stage]
    everything = replace(ALL_ON, **{"dry_multiplier": 1.0, "typical_p": 0.95, "top_k": 100, **on})
    without = replace(everything, **off)
    samplers = tuple(name for name in SAMPLERS if name != stage)
    differs = 0
    for seed in range(60):
        logits = random_logits(seed, spread=1.5)
        tokens = logits.topk(6).indices.tolist() * 3
        drawn = []
        for params in (replace(everything, samplers=samplers), without, everything):
            sampling_input = SamplingInput(replace(params, seed=seed), tokens, dry=Dry(params, spell))
            [result] = new_sampler(len(logits)).sample(buffer_of(logits[None]), [sampling_input])
            assert isinstance(result, SampledToken)
            drawn.append(result.token)
        assert drawn[0] == drawn[1]
        differs += drawn[0] != drawn[2]
    assert differs


# Distributions


@pytest.mark.parametrize("order", [SAMPLERS, LLAMA_CPP, ("xtc", "temperature", "typical_p")], ids="-".join)
def test_sampled_tokens_follow_the_distribution(order: tuple[str, ...]) -> None:
    """Chi-square over 4000 positions, where XTC's coin falls both ways: the mean plus 4.5 deviations at most."""
    count = 4000
    logits = random_logits(8, spread=1.3, vocab_size=40)
    params = replace(ALL_ON, top_k=25, seed=3, samplers=order, repeat_last_n=0, xtc_probability=0.3)
    order = tuple(stage for stage in order if stage not in ("penalties", "dry"))
    shares: Counter[int] = Counter()
    for probability, chance in ((1.0, 0.3), (0.0, 0.7)):
        certain = replace(params, xtc_probability=probability)
        for token, share in plain_cut(logits.tolist(), certain, order, [0]).items():
            shares[token] += chance * share  # type: ignore[assignment]
    sampler, seen = new_sampler(40), Counter[int]()
    for position in range(1, count + 1):
        [result] = sampler.sample(buffer_of(logits[None]), [SamplingInput(params, range(position))])
        assert isinstance(result, SampledToken)
        seen[result.token] += 1
    assert set(seen) <= set(shares)
    statistic = sum((seen[token] - count * share) ** 2 / (count * share) for token, share in shares.items())
    freedom = len(shares) - 1
    assert freedom >= 5
    assert statistic <= freedom + 4.5 * math.sqrt(2 * freedom)


def test_the_random_number_of_xtc_is_independent_of_the_token() -> None:
    pairs = [(uniform(seed, place), uniform(seed, place, "xtc")) for seed in range(4) for place in range(1000)]
    correlation = sum((a - 0.5) * (b - 0.5) for a, b in pairs) / len(pairs) * 12
    assert abs(correlation) < 4 / math.sqrt(len(pairs))
    assert sum(coin for _, coin in pairs) / len(pairs) == pytest.approx(0.5, abs=4 / math.sqrt(12 * len(pairs)))


# Properties of all rows


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    inputs, logits = [], []
    settings = [*OPTIONS.values(), ALL_ON, replace(ALL_ON, samplers=LLAMA_CPP), SamplingParams(typical_p=0.5)]
    for index, params in enumerate(settings):
        inputs.append(SamplingInput(replace(params, seed=index, logprobs=3), list(range(index, index + 30))))
        logits.append(random_logits(index, spread=4.0))
    alone = [
        new_sampler(len(one)).sample(buffer_of(one[None]), [sampling_input])[0]
        for one, sampling_input in zip(logits, inputs, strict=True)
    ]
    sampler = new_sampler(len(logits[0]))
    assert sampler.sample(buffer_of(torch.stack(logits)), inputs) == alone
    assert sampler.sample(buffer_of(torch.stack(logits[::-1])), inputs[::-1]) == alone[::-1]


@pytest.mark.parametrize("order", [SAMPLERS, LLAMA_CPP, ("xtc", "top_k", "penalties")], ids="-".join)
def test_logprobs_are_those_before_the_first_choice(order: tuple[str, ...]) -> None:
    logits = random_logits(6)
    tokens = logits.topk(3).indices.tolist()
    params = replace(ALL_ON, samplers=order, logit_bias=((5, 4.0),), logprobs=4)
    penalized = params if order[0] == "penalties" else replace(params, repetition_penalty=1.0, frequency_penalty=0.0)
    expected = torch.tensor(plain_scores(logits, penalized, tokens)).log_softmax(0)
    result = sample_one(logits, params, tokens)
    assert result.logprob == pytest.approx(expected[result.token].item(), abs=1e-5)
    assert [token for token, _ in result.top] == expected.topk(4).indices.tolist()


def test_bias_and_masks_hold_in_any_order() -> None:
    mask = torch.zeros(1000, dtype=torch.bool)
    mask[[3, 5, 7]] = True
    for order in (SAMPLERS, LLAMA_CPP, ("xtc", "penalties", "temperature"), ()):
        drawn = set()
        for seed in range(40):
            params = replace(ALL_ON, seed=seed, samplers=order, logit_bias=((5, 1e30),) if seed % 2 else ())
            sampling_input = SamplingInput(params, [3, 3, 3], bits_of(mask), banned=(7, 9) if seed % 4 < 2 else ())
            [result] = new_sampler(1000).sample(buffer_of(torch.zeros(1, 1000)), [sampling_input])
            assert isinstance(result, SampledToken)
            drawn.add(result.token)
            assert result.token in ({5} if seed % 2 else {3, 5} if seed % 4 < 2 else {3, 5, 7})
        assert drawn == {3, 5, 7}


def test_equal_logits_are_ranked_by_id() -> None:
    zeros = torch.zeros(1000)
    assert kept(zeros, SamplingParams(top_k=3), ("top_k",), [1]) == [0, 1, 2]
    assert kept(zeros, SamplingParams(top_p=0.0025), ("top_p",), [1]) == [0, 1, 2]
    assert kept(zeros, SamplingParams(typical_p=0.0025), ("typical_p",), [1]) == [0, 1, 2]
    zeros[[4, 6, 8]] = 9.0
    xtc = SamplingParams(xtc_probability=1.0, xtc_threshold=0.1)
    assert kept(zeros, xtc, ("xtc",), [1]) == [token for token in range(1000) if token not in (4, 6)]
    assert kept(zeros, SamplingParams(temperature=0.0), ("temperature",), [1]) == [4]


def test_extreme_values_are_survived() -> None:
    extremes = [
        replace(ALL_ON, temperature=1e300),
        replace(ALL_ON, temperature=1.1e-7),
        replace(ALL_ON, typical_p=0.0, min_p=1.0, top_p=5e-324),
        replace(ALL_ON, xtc_probability=1.0, xtc_threshold=0.0),
        replace(ALL_ON, logit_bias=((3, 1e30), (4, -1e30))),
        replace(ALL_ON, dry_multiplier=1e300, dry_base=1e300),
    ]
    for seed in range(8):
        for params in extremes:
            for order in (SAMPLERS, LLAMA_CPP, SAMPLERS[::-1]):
                sampling_input = SamplingInput(
                    replace(params, seed=seed, samplers=order), [1, 2, 1, 2, 1], dry=Dry(params, lambda token: b"x")
                )
                [result] = new_sampler(1000).sample(
                    buffer_of(random_logits(seed, spread=300.0)[None]), [sampling_input]
                )
                assert isinstance(result, SampledToken), result
