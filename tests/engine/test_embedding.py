"""Embeddings: the model's final hidden states, pooled, independent of chunks and of other requests in the steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.local_model import LocalModel
from mistralrs.engine.admission import check_request
from mistralrs.engine.config import EngineConfig, Request, SamplingParams
from mistralrs.engine.engine import Engine
from mistralrs.engine.events import Embedding, Failed, Finished, PromptLogprobs, Stream
from mistralrs.errors import RequestError
from mistralrs.ops.kv_groups import KvGroup
from tests.architectures import VARIANTS, reference, write_folder
from tests.engine.fakes import SIZE, FakeRunner, FakeTokenizer, history_logits
from tests.parity.running import random_tokens
from tests.tiny import TOKENIZER_SIZE, StorageTypes, TinyConfig, write_tiny

CONFIG = EngineConfig(kv_groups=(KvGroup(60),), max_model_len=120, max_seqs=6, max_batch_tokens=32, block_size=4)
SAMPLED = SamplingParams(temperature=1.5, top_k=30, max_tokens=12, ignore_eos=True)
PROMPT = tuple(range(20, 75))
POOLINGS: tuple[Literal["mean", "last"], ...] = ("mean", "last")
OFF = 2e-6
"""Tolerance of a vector of length 1 against `transformers` with float weights and a float cache."""
LENGTHS = (150, 33, 16, 1)


@contextmanager
def serving(config: EngineConfig = CONFIG) -> Iterator[tuple[Engine, FakeRunner]]:
    runner = FakeRunner(block_size=config.block_size)
    with closing(Engine(runner, FakeTokenizer(), config)) as engine:  # type: ignore[arg-type]
        yield engine, runner
        engine._core.scheduler.check_integrity()


def embedding(stream: Stream) -> tuple[float, ...]:
    found, end = stream
    assert isinstance(found, Embedding)
    assert isinstance(end, Finished)
    assert (end.reason, end.usage.completion_tokens) == ("stop", 0)
    assert math.hypot(*found.values) == pytest.approx(1.0, abs=1e-12)
    return found.values


def pooled(states: torch.Tensor, pooling: str) -> torch.Tensor:
    vector = states[-1].double() if pooling == "last" else states.double().mean(0)
    unit: torch.Tensor = vector / vector.norm()
    return unit


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"max_batch_tokens": 7},
        {"max_batch_tokens": 1, "max_seqs": 1},
        {"kv_groups": (KvGroup(34),)},
        {"no_kv_cache": True, "max_batch_tokens": 9},
    ],
    ids=str,
)
def test_an_embedding_depends_on_its_prompt_alone(pooling: Literal["mean", "last"], changes: dict[str, int]) -> None:
    prompts = [PROMPT, PROMPT[:30], PROMPT[10:50], PROMPT[:1], (PROMPT * 3)[:120]]
    with serving() as (engine, _):
        alone = [embedding(engine.submit(Request(prompt, SAMPLED, pooling=pooling))) for prompt in prompts]
    for prompt, values in zip(prompts, alone, strict=True):
        pairs = [(token, position) for position, token in enumerate(prompt)]
        states = torch.stack([history_logits([pair], eos_bias=0.0)[:SIZE] for pair in pairs])
        assert values == pytest.approx(pooled(states, pooling).tolist(), abs=1e-12)
    with serving(replace(CONFIG, **changes)) as (engine, _):  # type: ignore[arg-type]
        for _ in range(2):
            others = [engine.submit(Request(prompt[:40], SAMPLED)) for prompt in prompts]
            streams = [engine.submit(Request(prompt, SAMPLED, pooling=pooling)) for prompt in prompts]
            assert [embedding(stream) for stream in streams] == alone
            assert all(isinstance(list(other)[-1], Finished) for other in others)
        stats = engine.stats()
        assert (stats.running, stats.free_blocks) == (0, stats.num_blocks)
        assert stats.prompt_tokens == 2 * sum(len(prompt) + len(prompt[:40]) for prompt in prompts)


def test_only_the_last_state_may_come_after_a_prefix_hit() -> None:
    with serving() as (engine, _):
        list(engine.submit(Request(PROMPT, SAMPLED)))
        for pooling, cached in (("mean", 0), ("last", (len(PROMPT) - 1) // 4 * 4)):
            _, end = engine.submit(Request(PROMPT, SAMPLED, pooling=pooling))  # type: ignore[arg-type]
            assert isinstance(end, Finished)
            assert end.usage.cached_tokens == cached
        _, end = engine.submit(Request(PROMPT, SAMPLED, pooling="last", reuse=False))
        assert isinstance(end, Finished)
        assert end.usage.cached_tokens == 0


def test_a_prompt_can_be_scored_and_pooled() -> None:
    with serving() as (engine, _):
        expected = embedding(engine.submit(Request(PROMPT, SAMPLED, pooling="mean")))
        events = list(engine.submit(Request(PROMPT, SAMPLED, pooling="mean", prompt_logprobs=0)))
        assert [type(event) for event in events] == [PromptLogprobs, Embedding, Finished]
        assert events[1] == Embedding(expected)


def test_truncation_leaves_no_room_for_an_answer() -> None:
    with serving() as (engine, _):
        prompt = (PROMPT * 3)[:150]
        values = embedding(engine.submit(Request(prompt, SAMPLED, truncate=True, pooling="mean")))
        assert values == embedding(engine.submit(Request(prompt[-120:], SAMPLED, pooling="mean")))


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_a_vector_without_a_direction_fails_alone(value: float) -> None:
    class Poisoned(FakeRunner):
        def states(self, start: int, stop: int) -> torch.Tensor:
            states = super().states(start, stop)
            return states * value if 33 in self.batches[-1].tokens[start:stop] else states

    with closing(Engine(Poisoned(block_size=4), FakeTokenizer(), CONFIG)) as engine:  # type: ignore[arg-type]
        streams = [engine.submit(Request(prompt, SAMPLED, pooling="mean")) for prompt in (PROMPT[:20], PROMPT[:12])]
        [failed] = streams[0]
        assert isinstance(failed, Failed)
        assert "not finite" in failed.error.message
        embedding(streams[1])
        assert engine.stats().free_blocks == engine.stats().num_blocks


@pytest.mark.parametrize("isa", [pytest.param(None, id="native", marks=pytest.mark.native), "torch"])
@pytest.mark.parametrize("name", ["llama", "gemma", "phi2"])
def test_transformers_has_the_same_states(name: str, isa: str | None, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / name, VARIANTS[name])
    prompts = [tuple(random_tokens(TOKENIZER_SIZE, count, seed=count)) for count in LENGTHS]
    options = LoadOptions(dtype="f32", threads=1, isa=isa, max_seqs=4, max_batch_tokens=64)
    with LocalModel.load(ModelSource(None, folder, None, None), options) as model:
        for pooling in POOLINGS:
            streams = [model.engine.submit(Request(prompt, SAMPLED, pooling=pooling)) for prompt in prompts]
            for prompt, stream in zip(prompts, streams, strict=True):
                with torch.inference_mode():
                    states = reference(folder)(torch.tensor([prompt]), output_hidden_states=True).hidden_states[-1][0]
                assert embedding(stream) == pytest.approx(pooled(states, pooling).tolist(), rel=0, abs=OFF)


@pytest.mark.native
@pytest.mark.parametrize("pooling", POOLINGS)
def test_chunked_is_whole_bit_for_bit(pooling: Literal["mean", "last"], tmp_path: Path) -> None:
    """On kernels with quantized weights, alone, beside others, and in pieces."""
    config = TinyConfig(types=StorageTypes.all("Q8_0"))
    source = ModelSource(None, write_tiny(tmp_path / "tiny.gguf", config).path, None, None)
    prompts = [tuple(random_tokens(TOKENIZER_SIZE, count, seed=count)) for count in LENGTHS]
    found = []
    for tokens in (512, 37):
        with LocalModel.load(source, LoadOptions(threads=2, max_batch_tokens=tokens)) as model:
            found.append([embedding(model.engine.submit(Request(p, SAMPLED, pooling=pooling))) for p in prompts])
            streams = [model.engine.submit(Request(prompt, SAMPLED, pooling=pooling)) for prompt in prompts]
            found.append([embedding(stream) for stream in streams])
    assert all(values == found[0] for values in found)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_hidden_states_do_not_depend_on_chunks(pooling: Literal["mean", "last"]) -> None:
    """One for each prompt token, also where another request has left its prefix in the cache."""
    found = set()
    for max_batch_tokens in (100, 32, 7, 1):
        with serving(replace(CONFIG, max_batch_tokens=max_batch_tokens)) as (engine, _):
            for _ in range(2):
                event, _ = engine.submit(Request(PROMPT, SAMPLED, pooling=pooling, hidden_states=True))
                assert isinstance(event, Embedding)
                assert len(event.hidden_states) == 4 * SIZE * len(PROMPT)
                found.add(event)
            list(engine.submit(Request(PROMPT, SAMPLED)))
    assert len(found) == 1


def test_hidden_states_are_refused_without_an_embedding() -> None:
    with pytest.raises(RequestError, match="hidden_states"):
        check_request(Request(PROMPT, SAMPLED, hidden_states=True), 96, max_adapters=0)
