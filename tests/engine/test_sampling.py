"""The sampler against a slow, plain reading of its rules, and its tokens against their distributions."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from mistralrs.engine.config import SamplingParams
from mistralrs.engine.sampling.sampling_input import SampledToken, SamplingInput, uniform
from mistralrs.errors import EngineError
from tests.buffers import buffer_of
from tests.engine.samplers import bits_of, each_sampler, new_sampler

VOCAB = 1000  # not a multiple of the tile
GREEDY = SamplingParams(temperature=0.0)

__all__ = ["each_sampler"]  # a fixture that runs each test with both samplers


def random_logits(seed: int, *, spread: float = 3.0, vocab_size: int = VOCAB) -> torch.Tensor:
    return torch.randn(vocab_size, generator=torch.Generator().manual_seed(seed)) * spread


def sample_one(
    logits: torch.Tensor, params: SamplingParams, tokens: list[int], mask: torch.Tensor | None = None
) -> SampledToken:
    (result,) = new_sampler(logits.shape[0]).sample(
        buffer_of(logits[None]), [SamplingInput(params, tokens, None if mask is None else bits_of(mask))]
    )
    assert isinstance(result, SampledToken), result
    return result


def plain_scores(logits: torch.Tensor, params: SamplingParams, tokens: list[int]) -> list[float]:
    """Penalized and biased logits, one token at a time."""
    scores: list[float] = logits.double().tolist()
    window = tokens[len(tokens) - min(params.repeat_last_n, len(tokens)) :]
    for token in set(window):
        penalty = params.repetition_penalty
        scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
        scores[token] -= window.count(token) * params.frequency_penalty + params.presence_penalty
    for token, bias in params.logit_bias:
        scores[token] += bias
    return scores


def plain_kept(scores: list[float], params: SamplingParams) -> list[tuple[int, float]]:
    """(token, probability) of the tokens that top-k, top-p and min-p leave, in order of ids; not renormalized."""
    highest = max(scores)
    weights = [math.exp((score - highest) / params.temperature) for score in scores]
    total = sum(weights)
    ranked = sorted(((weight / total, -token) for token, weight in enumerate(weights)), reverse=True)
    if params.top_k > 0:
        ranked = ranked[: params.top_k]
    if params.top_p == 0:
        ranked = ranked[:1]
    elif params.top_p < 1:
        before, kept = 0.0, 0
        while kept < len(ranked) and before < params.top_p:
            before += ranked[kept][0]
            kept += 1
        ranked = ranked[:kept]
    ranked = [entry for entry in ranked if entry[0] >= params.min_p * ranked[0][0]]
    return sorted((-token, probability) for probability, token in ranked)


def plain_sample(kept: list[tuple[int, float]], share: float) -> int:
    target = share * sum(probability for _, probability in kept)
    for token, probability in kept:
        target -= probability
        if target < 0:
            return token
    return kept[-1][0]


OPTIONS = {
    "temperature": SamplingParams(temperature=0.7),
    "hot": SamplingParams(temperature=5.0),
    "top_k": SamplingParams(top_k=5),
    "top_k of one": SamplingParams(top_k=1),
    "top_k beyond the tiles": SamplingParams(top_k=100),
    "top_k of all": SamplingParams(top_k=VOCAB),
    "top_p": SamplingParams(top_p=0.9),
    "no top_p": SamplingParams(top_p=0.0),
    "no top_p and top_k": SamplingParams(top_p=0.0, top_k=40, temperature=3.0),
    "small top_p": SamplingParams(top_p=0.01),
    "top_p and hot": SamplingParams(top_p=0.97, temperature=4.0),
    "top_k and top_p": SamplingParams(top_k=40, top_p=0.5),
    "min_p": SamplingParams(min_p=0.05),
    "min_p and top_k": SamplingParams(min_p=0.1, top_k=50),
    "min_p and top_p": SamplingParams(min_p=0.1, top_p=0.8),
    "repetition": SamplingParams(repetition_penalty=1.3),
    "frequency": SamplingParams(frequency_penalty=1.5),
    "presence": SamplingParams(presence_penalty=-2.0),
    "short window": SamplingParams(frequency_penalty=2.0, repeat_last_n=3),
    "no window": SamplingParams(frequency_penalty=2.0, repeat_last_n=0),
    "bias": SamplingParams(logit_bias=((7, 9.0), (8, -50.0), (7, 1.0))),
    "chat": SamplingParams(temperature=0.1, top_k=32, top_p=0.1, frequency_penalty=0.1, presence_penalty=0.1),
    "everything": SamplingParams(
        temperature=1.5,
        top_k=200,
        top_p=0.95,
        min_p=0.02,
        repetition_penalty=1.1,
        frequency_penalty=0.3,
        presence_penalty=0.2,
        logit_bias=((3, 5.0),),
    ),
}


@pytest.mark.parametrize("params", OPTIONS.values(), ids=OPTIONS.keys())
def test_a_sampled_token_follows_the_plain_rules(params: SamplingParams) -> None:
    for seed in range(40):
        logits = random_logits(seed)
        tokens = random_logits(seed + 1000).topk(8).indices.tolist() * 2 + logits.topk(4).indices.tolist()
        params = replace(params, seed=seed)
        kept = plain_kept(plain_scores(logits, params, tokens), params)
        assert sample_one(logits, params, tokens).token == plain_sample(kept, uniform(seed, len(tokens)))


@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "min_p", "everything"])
def test_sampled_tokens_follow_the_distribution(name: str) -> None:
    """Over positions 1 to 3000 every token comes as often as its share, to 4.5 standard deviations."""
    count = 3000
    logits = random_logits(3, spread=1.5, vocab_size=70)
    params = replace(OPTIONS[name], top_k=min(OPTIONS[name].top_k, 30), logit_bias=(), repeat_last_n=0, seed=5)
    kept = plain_kept(plain_scores(logits, params, []), params)
    mass = sum(probability for _, probability in kept)
    sampler, seen = new_sampler(70), dict.fromkeys(range(70), 0)
    for position in range(1, count + 1):
        (result,) = sampler.sample(buffer_of(logits[None]), [SamplingInput(params, range(position))])
        assert isinstance(result, SampledToken)
        seen[result.token] += 1
    shares = dict(kept)
    for token, times in seen.items():
        share = shares.get(token, 0.0) / mass
        assert abs(times - count * share) <= 4.5 * math.sqrt(count * share * (1 - share)) + 1e-9


def test_greedy_takes_the_first_of_equal_maxima() -> None:
    logits = random_logits(1)
    logits[[900, 130, 131]] = 50.0
    assert sample_one(logits, GREEDY, [1]).token == 130
    assert sample_one(logits, replace(GREEDY, temperature=9e-8, seed=4), [1]).token == 130


@pytest.mark.parametrize(
    ("params", "allowed"),
    [
        (SamplingParams(top_k=3), {0, 1, 2}),
        (SamplingParams(top_p=0.0025), {0, 1, 2}),
        (SamplingParams(min_p=1.0), None),
    ],
)
def test_equal_logits_are_ranked_by_id(params: SamplingParams, allowed: set[int] | None) -> None:
    drawn = {sample_one(torch.zeros(VOCAB), replace(params, seed=seed), [1]).token for seed in range(60)}
    assert drawn == allowed if allowed else len(drawn) > 50


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    """Same tokens and log-probabilities, bit for bit, alone and at every place of a batch."""
    inputs, logits = [], []
    for index, params in enumerate(OPTIONS.values()):
        inputs.append(SamplingInput(replace(params, seed=index, logprobs=3), list(range(index, index + 30))))
        logits.append(random_logits(index, spread=4.0))
    alone = [new_sampler(VOCAB).sample(buffer_of(one[None]), [row])[0] for one, row in zip(logits, inputs, strict=True)]
    sampler = new_sampler(VOCAB)
    assert sampler.sample(buffer_of(torch.stack(logits)), inputs) == alone
    assert sampler.sample(buffer_of(torch.stack(logits[::-1])), inputs[::-1]) == alone[::-1]
    assert sampler.sample(buffer_of(torch.stack(logits[3:6])), inputs[3:6]) == alone[3:6]
    assert sampler.sample(buffer_of(torch.stack(logits)), inputs[1::2], rows=range(1, len(inputs), 2)) == alone[1::2]


def test_columns_of_padding_are_left_out() -> None:
    logits = torch.nn.functional.pad(torch.stack([random_logits(seed) for seed in range(3)]), (0, 24), value=100.0)
    for params in (GREEDY, SamplingParams(logprobs=2), SamplingParams(top_k=5)):
        inputs = [SamplingInput(params, [1, 2])] * 3
        narrow = new_sampler(VOCAB).sample(buffer_of(logits[:, :VOCAB]), inputs)
        assert new_sampler(VOCAB).sample(buffer_of(logits), inputs) == narrow
        assert new_sampler(VOCAB).sample(buffer_of(logits), inputs[:1], rows=[1]) == narrow[1:2]


def test_logits_are_left_as_they_are() -> None:
    logits = random_logits(2)
    before = logits.clone()
    sample_one(logits, OPTIONS["everything"], [1, 2, 3])
    assert torch.equal(logits, before)


def test_padded_vocabulary_is_never_sampled() -> None:
    logits = random_logits(2)
    logits[500:] = 100.0
    (result,) = new_sampler(500).sample(buffer_of(logits[None]), [SamplingInput(SamplingParams(temperature=50.0), [1])])
    assert isinstance(result, SampledToken)
    assert result.token < 500


@pytest.mark.parametrize("params", [GREEDY, *OPTIONS.values()])
def test_only_allowed_tokens_are_sampled(params: SamplingParams) -> None:
    allowed = torch.zeros(VOCAB, dtype=torch.bool)
    allowed[[0, 31, 32, 700, 999]] = True
    for seed in range(5):
        logits = random_logits(seed)
        token = sample_one(logits, replace(params, seed=seed), [1], allowed).token
        assert allowed[token]
        cut = logits.masked_fill(~allowed, -math.inf)
        if (params.repetition_penalty, params.presence_penalty, params.logit_bias) == (1.0, 0.0, ()):
            assert sample_one(cut, replace(params, seed=seed), [1]).token == token


def test_mask_does_not_touch_logprobs() -> None:
    logits = random_logits(4)
    allowed = torch.zeros(VOCAB, dtype=torch.bool)
    allowed[11] = True
    result = sample_one(logits, SamplingParams(logprobs=2), [1], allowed)
    assert result.token == 11
    assert result.logprob == pytest.approx(logits.log_softmax(0)[11].item(), abs=1e-5)
    assert [token for token, _ in result.top] == logits.topk(2).indices.tolist()


def test_logprobs_are_those_before_temperature_and_truncation() -> None:
    logits = random_logits(6)
    params = SamplingParams(temperature=0.2, top_k=2, presence_penalty=3.0, logit_bias=((5, 4.0),), logprobs=4)
    tokens = logits.topk(3).indices.tolist()
    expected = torch.tensor(plain_scores(logits, params, tokens)).log_softmax(0)
    result = sample_one(logits, params, tokens)
    assert result.logprob == pytest.approx(expected[result.token].item(), abs=1e-5)
    values, ids = expected.topk(4)
    assert [token for token, _ in result.top] == ids.tolist()
    assert [value for _, value in result.top] == pytest.approx(values.tolist(), abs=1e-5)
    assert sample_one(logits, replace(params, logprobs=0), tokens).top == ()
    assert sample_one(logits, replace(params, logprobs=None), tokens).logprob is None


@pytest.mark.parametrize(
    ("value", "reason"), [(math.nan, "not finite"), (math.inf, "not finite"), (-math.inf, "no token may follow")]
)
def test_an_unusable_row_fails_alone(value: float, reason: str) -> None:
    logits = torch.stack([random_logits(1), random_logits(2), random_logits(3)])
    expected = new_sampler(VOCAB).sample(buffer_of(logits), [SamplingInput(SamplingParams(), [1])] * 3)
    logits[1, 400 if value != -math.inf else slice(None)] = value
    first, second, third = new_sampler(VOCAB).sample(buffer_of(logits), [SamplingInput(SamplingParams(), [1])] * 3)
    assert [first, third] == [expected[0], expected[2]]
    assert isinstance(second, EngineError)
    assert reason in f"{second.message} {second.hint}"


def test_extreme_values_are_survived() -> None:
    for seed in range(5):
        for params in (
            SamplingParams(temperature=1e300, top_p=0.5),
            SamplingParams(temperature=1.1e-7, top_k=4, top_p=0.99),
            SamplingParams(temperature=1.1e-7, top_p=0.99, min_p=0.5),
            SamplingParams(top_p=1 - 2**-53),
            SamplingParams(top_p=5e-324),
            SamplingParams(logit_bias=((3, 1e30),), top_p=0.5),
        ):
            token = sample_one(random_logits(seed, spread=300.0), replace(params, seed=seed), [1]).token
            assert 0 <= token < VOCAB


def test_uniform_is_a_function_of_seed_and_position() -> None:
    numbers = [uniform(seed, position) for seed in (0, 1, -1, 2**64 - 2) for position in range(500)]
    assert numbers == [uniform(seed, position) for seed in (0, 1, -1, 2**64 - 2) for position in range(500)]
    assert len(set(numbers)) == len(numbers)
    assert all(0 <= number < 1 for number in numbers)
    assert sum(numbers) / len(numbers) == pytest.approx(0.5, abs=4 / math.sqrt(12 * len(numbers)))
    lag = sum((a - 0.5) * (b - 0.5) for a, b in pairwise(numbers)) / len(numbers)
    assert abs(lag) < 4 / 12 / math.sqrt(len(numbers))
