"""Log-probabilities of a prompt: those of the model, independent of chunks and of other requests in the steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.local_model import LocalModel
from mistralrs.engine.batch import Batch, CancelFlag
from mistralrs.engine.config import EngineConfig, Request, SamplingParams
from mistralrs.engine.engine import Engine
from mistralrs.engine.events import Delta, Event, Failed, Finished, PromptLogprobs
from mistralrs.errors import ContextLengthError, RequestError, UsageError
from mistralrs.ops.kv_groups import KvGroup
from tests.engine.fakes import VOCAB, FakeRunner, FakeTokenizer, history_logits
from tests.parity.running import random_tokens
from tests.tiny import TOKENIZER_SIZE, write_tiny
from tests.tolerances import FLOAT_LOGITS

CONFIG = EngineConfig(kv_groups=(KvGroup(60),), max_model_len=120, max_seqs=6, max_batch_tokens=32, block_size=4)
SAMPLED = SamplingParams(temperature=1.5, top_k=30, seed=3, max_tokens=5, ignore_eos=True)
PROMPT = tuple(range(20, 75))


@contextmanager
def serving(config: EngineConfig = CONFIG) -> Iterator[tuple[Engine, FakeRunner]]:
    runner = FakeRunner(block_size=config.block_size)
    with closing(Engine(runner, FakeTokenizer(), config)) as engine:  # type: ignore[arg-type]
        yield engine, runner
        engine._core.scheduler.check_integrity()


def expected_logprobs(prompt: tuple[int, ...]) -> torch.Tensor:
    """(tokens - 1, VOCAB)"""
    pairs = [(token, position) for position, token in enumerate(prompt)]
    rows = [history_logits(pairs[:count], eos_bias=-100.0) for count in range(1, len(prompt))]
    return torch.stack(rows).double().log_softmax(1)


def check_scores(event: Event, prompt: tuple[int, ...], count: int, expected: torch.Tensor, off: float = 0.0) -> None:
    """``off``: how far numbers may be apart; 0.0 also asks for the same best tokens."""
    assert isinstance(event, PromptLogprobs), event
    first, *others = event.logprobs
    assert first is None
    assert len(others) == len(prompt) - 1
    for token, scored, row in zip(prompt[1:], others, expected, strict=True):
        assert scored is not None
        assert scored.token == token
        assert scored.logprob == pytest.approx(row[token].item(), rel=0, abs=off)
        best = row.topk(count)
        assert [other.logprob for other in scored.top] == pytest.approx(best.values.tolist(), rel=0, abs=off)
        if not off:
            assert [other.token for other in scored.top] == best.indices.tolist()


def texts_of(events: list[Event]) -> list[int]:
    return [token for event in events if isinstance(event, Delta) for token in event.tokens]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"max_batch_tokens": 7},
        {"max_batch_tokens": 1, "max_seqs": 1},
        {"max_prompt_logits": 0},
        {"max_prompt_logits": 3},
        {"kv_groups": (KvGroup(34),)},
        {"no_kv_cache": True},
        {"no_kv_cache": True, "max_batch_tokens": 9, "max_prompt_logits": 2},
    ],
    ids=str,
)
def test_scores_depend_on_the_prompt_alone(changes: dict[str, int]) -> None:
    """Beside others of their kind and beside plain requests, which get the answers that they get otherwise."""
    prompts = [PROMPT, PROMPT[:30], PROMPT[10:50], PROMPT[:2]]
    with serving() as (engine, _):
        answers = [texts_of(list(engine.submit(Request(prompt, SAMPLED)))) for prompt in prompts]
    with serving(replace(CONFIG, **changes)) as (engine, runner):  # type: ignore[arg-type]
        for _ in range(2):  # the second time the cache holds all of it
            streams = []
            for prompt in prompts:
                streams.append(engine.submit(Request(prompt, SAMPLED, prompt_logprobs=3)))
                streams.append(engine.submit(Request(prompt, SAMPLED)))
            for index, stream in enumerate(streams):
                events, prompt = list(stream), prompts[index // 2]
                assert texts_of(events) == answers[index // 2]
                assert sum(isinstance(event, PromptLogprobs) for event in events) == (index % 2 == 0)
                assert isinstance(events[-1], Finished)
                if index % 2 == 0:
                    check_scores(events[0], prompt, 3, expected_logprobs(prompt))
                    assert events[-1].usage.cached_tokens == 0
        for batch in runner.batches:
            assert len(batch.logits_indices) <= len(batch.seq_lens) + engine.config.max_prompt_logits


def test_each_place_is_scored_once() -> None:
    """Also where the prompt is computed again, after each token or because its blocks went to an older sequence."""
    for changes in ({"no_kv_cache": True}, {"kv_groups": (KvGroup(32),), "max_seqs": 4}):
        with serving(replace(CONFIG, **changes)) as (engine, runner):
            sampling = replace(SAMPLED, max_tokens=30)
            streams = [engine.submit(Request(PROMPT, sampling, prompt_logprobs=0)) for _ in range(3)]
            assert all(isinstance(list(stream)[-1], Finished) for stream in streams)
            num_logits = sum(len(batch.logits_indices) for batch in runner.batches)
            assert num_logits == 3 * (len(PROMPT) - 1 + 30)
            assert changes.keys() == {"no_kv_cache"} or engine.stats().preemptions > 0


@pytest.mark.parametrize("length", [1, 2, 55, 120])
def test_no_token_need_follow_the_prompt(length: int) -> None:
    """A prompt may fill the context if ``max_tokens`` is 0. Otherwise there must be room for one token."""
    prompt = (PROMPT * 3)[:length]
    with serving() as (engine, _):
        events = list(engine.submit(Request(prompt, replace(SAMPLED, max_tokens=0), prompt_logprobs=2)))
        [scores, end] = events
        if length == 1:
            assert scores == PromptLogprobs((None,))
        else:
            check_scores(scores, prompt, 2, expected_logprobs(prompt))
        assert isinstance(end, Finished)
        assert (end.reason, end.usage.prompt_tokens, end.usage.completion_tokens) == ("length", length, 0)
        assert engine.stats().prompt_tokens == length
        [end] = engine.submit(Request(prompt, replace(SAMPLED, max_tokens=0)))
        assert isinstance(end, Finished)
        assert end.reason == "length"
        if length == 120:
            with pytest.raises(ContextLengthError):
                engine.submit(Request(prompt, SAMPLED, prompt_logprobs=2))


def test_a_short_prompt_is_scored_before_its_answer() -> None:
    with serving() as (engine, _):
        events = list(engine.submit(Request((5,), SAMPLED, prompt_logprobs=0)))
        assert events[0] == PromptLogprobs((None,))
        assert len(texts_of(events)) == 5


def test_a_prompt_that_cannot_be_scored_fails_alone() -> None:
    class Poisoned(FakeRunner):
        def logits(self, batch: Batch, cancel_flag: CancelFlag) -> torch.Tensor:
            logits = super().logits(batch, cancel_flag)
            for row, place in enumerate(batch.logits_indices):
                if batch.tokens[place] == 33:
                    logits[row] = torch.nan
            return logits

    with closing(Engine(Poisoned(block_size=4), FakeTokenizer(), CONFIG)) as engine:  # type: ignore[arg-type]
        streams = [engine.submit(Request(prompt, SAMPLED, prompt_logprobs=1)) for prompt in (PROMPT, PROMPT[:12])]
        [failed] = streams[0]
        assert isinstance(failed, Failed)
        assert "not finite" in failed.error.message
        assert isinstance(list(streams[1])[-1], Finished)
        plain = list(engine.submit(Request(PROMPT, SAMPLED)))  # a plain request has no logits computed there
        assert isinstance(plain[-1], Finished)
        assert engine.stats().free_blocks == engine.stats().num_blocks


def test_counts_out_of_range_are_refused() -> None:
    with serving() as (engine, _):
        for count in (-1, VOCAB + 1, 1000):
            with pytest.raises(RequestError, match="prompt_logprobs") as refused:
                engine.submit(Request(PROMPT, SAMPLED, prompt_logprobs=count))
            assert refused.value.param == "prompt_logprobs"
    with pytest.raises(UsageError, match="max_prompt_logits"):
        Engine(FakeRunner(block_size=4), FakeTokenizer(), replace(CONFIG, max_prompt_logits=-1))  # type: ignore[arg-type]


@pytest.mark.parametrize("isa", [pytest.param(None, id="native", marks=pytest.mark.native), "torch"])
def test_transformers_scores_the_same(isa: str | None, tmp_path: Path) -> None:
    tiny = write_tiny(tmp_path / "tiny.gguf")
    prompts = [tuple(random_tokens(TOKENIZER_SIZE, count, seed=count)) for count in (200, 40)]
    source = ModelSource(None, tiny.path, None, None)
    options = LoadOptions(dtype="f32", threads=1, isa=isa, max_seqs=2, max_batch_tokens=128)
    sampling = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)
    with LocalModel.load(source, options) as model:
        streams = [model.engine.submit(Request(prompt, sampling, prompt_logprobs=5)) for prompt in prompts]
        scored = [next(iter(stream)) for stream in streams]
    for prompt, event in zip(prompts, scored, strict=True):
        with torch.inference_mode():
            logits = tiny.reference()(torch.tensor([prompt])).logits[0]
        off = 2 * FLOAT_LOGITS * (logits.amax() - logits.amin()).item()  # twice: the sum under the logarithm moves too
        check_scores(event, prompt, 5, logits.double().log_softmax(1)[:-1], off)
