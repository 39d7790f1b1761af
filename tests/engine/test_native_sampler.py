"""The sampler of the kernels against the one of torch: the same tokens for the same numbers."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mistralrs.engine.config import SAMPLERS, SamplingParams
from mistralrs.engine.sampling.dry_penalty import Dry
from mistralrs.engine.sampling.native_sampler import NativeSampler
from mistralrs.engine.sampling.sampler import Sampler
from mistralrs.engine.sampling.sampling_input import SampledToken, SamplingInput, TokenSampler
from mistralrs.ops.native_backend import NativeBackend
from tests.buffers import buffer_of
from tests.engine.samplers import MAKERS, bits_of, native_sampler
from tests.ops.harness import ISAS, step_args

pytestmark = pytest.mark.skipif("native" not in MAKERS, reason="built without kernels")


def random_params(random: Random, vocab_size: int) -> SamplingParams:
    """Any stages in any order, each of them on or off."""
    stages = [stage for stage in SAMPLERS if random.random() < 0.9]
    if random.random() < 0.5:
        random.shuffle(stages)

    def maybe(on: float, off: float) -> float:
        return on if random.random() < 0.5 else off

    return SamplingParams(
        temperature=maybe(random.choice([0.0, 0.3, 0.8, 1.5, 1e30]), 1.0),
        top_k=int(maybe(random.choice([1, 2, 40, vocab_size - 1, vocab_size, vocab_size + 5]), 0)),
        top_p=maybe(random.choice([0.0, 0.1, 0.9, 0.999]), 1.0),
        min_p=maybe(random.choice([0.01, 0.3, 1.0]), 0.0),
        typical_p=maybe(random.choice([0.0, 0.2, 0.95]), 1.0),
        xtc_probability=maybe(random.choice([0.5, 1.0]), 0.0),
        xtc_threshold=random.choice([0.0, 0.05, 0.1]),
        repetition_penalty=maybe(1.3, 1.0),
        frequency_penalty=maybe(0.4, 0.0),
        presence_penalty=maybe(-0.7, 0.0),
        repeat_last_n=random.choice([0, 3, 64, 10_000]),
        dry_multiplier=maybe(0.8, 0.0),
        logit_bias=((3, 2.5), (7, -100.0), (3, 0.5)) if random.random() < 0.3 else (),
        logprobs=random.choice([None, 0, 3, 20]),
        seed=random.randrange(1 << 40),
        samplers=tuple(stages),
    )


def random_inputs(random: Random, count: int, vocab_size: int) -> tuple[torch.Tensor, list[SamplingInput]]:
    logits = torch.randn(count, vocab_size, generator=torch.Generator().manual_seed(random.randrange(1 << 30)))
    logits *= random.choice([0.1, 1.0, 4.0, 30.0])
    if random.random() < 0.2:
        logits = logits.round()  # many are equal
    inputs = []
    for _ in range(count):
        params = random_params(random, vocab_size)
        tokens = [random.randrange(vocab_size) for _ in range(random.randrange(1, 40))] * random.choice([1, 2])
        allowed = torch.rand(vocab_size) < 0.3 if random.random() < 0.3 else None
        if allowed is not None:
            allowed[random.randrange(vocab_size)] = True
        inputs.append(
            SamplingInput(
                params,
                tokens,
                None if allowed is None else bits_of(allowed),
                banned=(1, 2) if random.random() < 0.2 and allowed is None else (),
                dry=Dry(params, lambda token: bytes([97 + token % 20])),
            )
        )
    return logits, inputs


@pytest.mark.parametrize("vocab_size", [40, 1000, 4096])
def test_both_sample_the_same(vocab_size: int) -> None:
    random = Random(vocab_size)
    reference, native = Sampler(vocab_size), native_sampler(vocab_size)
    compared = 0
    for _ in range(120):
        logits, inputs = random_inputs(random, 8, vocab_size)
        expected = reference.sample(buffer_of(logits), inputs)
        for index, (wanted, found) in enumerate(zip(expected, native.sample(buffer_of(logits), inputs), strict=True)):
            assert isinstance(wanted, SampledToken), wanted
            assert isinstance(found, SampledToken), found
            assert found.token == wanted.token, inputs[index]
            if wanted.logprob is not None:
                assert found.logprob == pytest.approx(wanted.logprob, abs=1e-9)
                assert [value for _, value in found.top] == pytest.approx([value for _, value in wanted.top], abs=1e-9)
            compared += 1
    assert compared == 960


def test_a_program_samples_what_a_call_of_its_own_does() -> None:
    """Prepared before the logits are there; the program has no other operation."""
    random = Random(11)
    backend = NativeBackend(threads=2)
    sampler = NativeSampler(1000, backend.row_sampler(), lambda: Sampler(1000))
    args = step_args(tokens=1)
    program = backend.program([], args)
    for _ in range(30):
        logits, inputs = random_inputs(random, 5, 1000)
        written = buffer_of(logits)
        expected = sampler.sample(written, inputs)
        later = buffer_of(torch.full_like(logits, torch.nan))
        prepared = sampler.prepare(later, inputs)
        assert prepared is not None
        later.values[:] = written.values
        args.sampling = prepared.rows
        program()
        assert prepared.results() == [expected]


def test_prepared_rows_keep_their_masks() -> None:
    data = bytearray(b"\xff" * 128)
    prepared = native_sampler(1000).prepare(
        buffer_of(torch.zeros(1, 1000)), [SamplingInput(SamplingParams(), [1], memoryview(data).cast("I"))]
    )
    assert prepared is not None
    gc.collect()
    with pytest.raises(BufferError):  # it is in use
        data.append(0)


def test_rows_with_hooks_are_not_prepared() -> None:
    item = SamplingInput(SamplingParams(), [1], hooks=(lambda tokens, row: None,))
    assert native_sampler(1000).prepare(buffer_of(torch.zeros(2, 1000)), [replace(item, hooks=()), item]) is None


def test_rows_with_hooks_stand_beside_others() -> None:
    def forbid(tokens: Sequence[int], row: NDArray[np.float32]) -> None:
        row[::2] = -np.inf

    random = Random(3)
    for _ in range(20):
        logits, inputs = random_inputs(random, 6, 1000)
        inputs = [replace(item, mask=None, hooks=(forbid,) if random.random() < 0.5 else ()) for item in inputs]
        expected, found = (each.sample(buffer_of(logits), inputs) for each in (Sampler(1000), native_sampler(1000)))
        for item, wanted, here in zip(inputs, expected, found, strict=True):
            assert isinstance(wanted, SampledToken)
            assert isinstance(here, SampledToken)
            assert here.token == wanted.token
            assert not item.hooks or here.token % 2


@pytest.mark.parametrize("isa", ISAS)
def test_all_instruction_sets_sample_the_same(isa: str) -> None:
    random = Random(7)
    best, this = native_sampler(1000), native_sampler(1000, isa)
    for _ in range(30):
        logits, inputs = random_inputs(random, 5, 1000)
        assert this.sample(buffer_of(logits), inputs) == best.sample(buffer_of(logits), inputs)


def test_scores_of_given_tokens_are_the_same() -> None:
    logits = torch.randn(6, 1030, generator=torch.Generator().manual_seed(2)) * 5
    tokens = [0, 5, 999, 3, 3, 77]
    samplers: tuple[TokenSampler, ...] = (Sampler(1000), native_sampler(1000))
    for count in (0, 1, 5):
        expected, found = (sampler.score(buffer_of(logits), tokens, count) for sampler in samplers)
        for wanted, here in zip(expected, found, strict=True):
            assert isinstance(wanted, SampledToken)
            assert isinstance(here, SampledToken)
            assert here.logprob == pytest.approx(wanted.logprob, abs=1e-9)
            assert [token for token, _ in here.top] == [token for token, _ in wanted.top]
    logits[2, 4] = float("nan")
    found = samplers[1].score(buffer_of(logits), tokens, 0)
    assert [isinstance(each, SampledToken) for each in found] == [True, True, False, True, True, True]


def test_no_token_is_made_up_where_all_are_asked_for() -> None:
    params = SamplingParams(logprobs=20)
    logits = torch.randn(1, 5, generator=torch.Generator().manual_seed(1))
    sampler = native_sampler(5)
    for found in (
        *sampler.sample(buffer_of(logits), [SamplingInput(params, [1])]),
        *sampler.score(buffer_of(logits), [2], 20),
    ):
        assert isinstance(found, SampledToken)
        assert [token for token, _ in found.top] == logits[0].argsort(descending=True).tolist()


def test_a_short_mask_is_an_error() -> None:
    params = replace(SamplingParams(), temperature=0.0)
    with pytest.raises(ValueError, match="mask"):
        native_sampler(1000).sample(
            buffer_of(torch.zeros(1, 1000)), [SamplingInput(params, [1], bits_of(torch.ones(64, dtype=torch.bool)))]
        )
