"""X-LoRA behind the engine: an answer depends on its request alone, and no KV is shared that must not be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from mistralrs.engine.config import EngineConfig, Request, SamplingParams
from mistralrs.engine.engine import Engine
from mistralrs.engine.events import Delta, Embedding, Finished, Scalings, Stream, TokenLogprob, Usage
from mistralrs.engine.kv.kv_disk_tier import KvDiskTier
from mistralrs.engine.ngram_proposer import NgramProposer
from tests.adapters.test_xlora import running, tokens
from tests.adapters.xlora_files import axis_of, write_xlora
from tests.architectures import VARIANTS, write_folder
from tests.gguf_of import write_gguf
from tests.parity.running import Running
from tests.tiny import TOKENIZER_SIZE

pytestmark = pytest.mark.native

BLOCK = 16
GREEDY = SamplingParams(temperature=0.0, max_tokens=44, logprobs=3, ignore_eos=True)
DRAWN = SamplingParams(temperature=0.9, seed=11, max_tokens=44, logprobs=3, ignore_eos=True)
PROMPTS = (tokens(40), tokens(1, seed=2), [*tokens(40), *tokens(9, seed=3)], tokens(12, seed=4) * 3, tokens(33, seed=9))
REQUESTS = [Request(tuple(prompt), sampling) for prompt in PROMPTS for sampling in (GREEDY, DRAWN)]


@dataclass(frozen=True, slots=True)
class Answer:
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class Served:
    """A model with an X-LoRA, and how many of an answer's tokens may share KV."""

    running: Running
    non_granular: int | None

    @contextmanager
    def engine(self, *, disk: Path | None = None, **changes: Any) -> Iterator[Engine]:
        model = self.running.model
        config = EngineConfig(
            kv_groups=model.limits.kv_groups,
            max_model_len=model.max_model_len,
            max_seqs=8,
            max_batch_tokens=512,
            max_prompt_logits=8,
            shared_answer_tokens=self.non_granular,
        )
        tier = None if disk is None else KvDiskTier(disk, limit=1 << 30, fingerprint="model")
        executor, tokenizer = self.running.runner, model.tokenizer
        with closing(Engine(executor, tokenizer, replace(config, **changes), disk_tier=tier)) as engine:
            yield engine
            engine._core.scheduler.check_integrity()


@pytest.fixture(
    scope="module",
    params=[("llama", None), ("llama", 0), ("mistral", 2), ("llama", 20), ("qwen2-window", 1), ("mixtral", None)],
    ids=str,
)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """With a window in every layer, in some and in none; Mixtral is a quantized file in the default precision."""
    name, non_granular = request.param
    path = tmp_path_factory.mktemp(name)
    folder = write_folder(path / "model", VARIANTS[name])
    settings: dict[str, Any] = {"layerwise_scalings": True, "scaling_pass_value": 0.2}
    xlora = write_xlora(path / "xlora", folder, axis_of(name), **settings)
    if name == "mixtral":
        file = write_gguf(path / "model.gguf", folder, type_="Q8_0")
        return Served(running(file, xlora, isa=None, precision="default"), None)
    return Served(running(folder, xlora, isa=None, non_granular=non_granular), non_granular)


@pytest.fixture(scope="module")
def expected(served: Served) -> list[Answer]:
    """Each request alone, from its first token on."""
    with served.engine(prefix_cache_n=0) as engine:
        return [answer(engine, request)[0] for request in REQUESTS]


def collect(stream: Stream) -> tuple[Answer, Usage]:
    deltas: list[Delta] = []
    for event in stream:
        if isinstance(event, Finished):
            found = Answer(
                tuple(token for delta in deltas for token in delta.tokens),
                tuple(logprob for delta in deltas for logprob in delta.logprobs),
            )
            return found, event.usage
        assert isinstance(event, Delta), event
        deltas.append(event)
    raise AssertionError("the stream ended without an end")


def answer(engine: Engine, request: Request) -> tuple[Answer, Usage]:
    return collect(engine.submit(request))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"max_batch_tokens": 7},
        {"max_seqs": 2, "max_batch_tokens": 16},
        {"no_kv_cache": True},
        {"blocks": 12},
        {"blocks": 12, "max_seqs": 4, "max_batch_tokens": 16},
    ],
    ids=str,
)
def test_an_answer_depends_on_its_request_alone(
    changes: dict[str, Any], served: Served, expected: list[Answer]
) -> None:
    """In a batch, in chunks, without KV cache, preempted, and after cache hits: the same bits."""
    few = changes.get("blocks")
    changes = {name: value for name, value in changes.items() if name != "blocks"}
    if few is not None:
        groups = served.running.model.limits.kv_groups
        changes["kv_groups"] = tuple(replace(group, num_blocks=few) for group in groups)
    assert len({found.tokens for found in expected}) == len(REQUESTS)
    with served.engine(**changes) as engine:
        for _ in range(2):
            streams = [engine.submit(request) for request in REQUESTS]
            assert [collect(stream)[0] for stream in streams] == expected
        stats = engine.stats()
        assert (stats.cached_tokens > 0) == (not changes.get("no_kv_cache"))
        if few is not None and "max_seqs" not in changes:
            assert stats.preemptions > 0


def test_draft_tokens_change_no_answer(served: Served, expected: list[Answer], monkeypatch: pytest.MonkeyPatch) -> None:
    """Right ones and wrong ones, also across the last token with scalings of its own."""
    texts = [[*request.prompt, *found.tokens] for request, found in zip(REQUESTS, expected, strict=True)]

    def propose(self: NgramProposer, known: list[int], count: int) -> tuple[int, ...]:
        later = next(text[len(known) :] for text in texts if text[: len(known)] == known)[:count]
        wrong = len(known) % 5
        return (*later[:wrong], *((token + 1) % TOKENIZER_SIZE for token in later[wrong:]))

    monkeypatch.setattr(NgramProposer, "propose", propose)
    with served.engine(max_draft=6) as engine:
        assert [answer(engine, request)[0] for request in REQUESTS] == expected
        streams = [engine.submit(request) for request in REQUESTS[:4]]
        assert [collect(stream)[0] for stream in streams] == expected[:4]
        stats = engine.stats()
        assert stats.drafted_tokens > stats.accepted_tokens > 0


def test_scalings_do_not_depend_on_the_schedule(
    served: Served, expected: list[Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In chunks, preempted, and with draft tokens of which some are wrong: those of the tokens that were kept."""
    asked = [replace(request, wants_scalings=True) for request in REQUESTS]
    with served.engine(prefix_cache_n=0) as engine:
        alone = [scalings_of(engine.submit(request)) for request in asked]
    for request, found, scalings in zip(REQUESTS, expected, alone, strict=True):
        assert [*scalings.tokens] == [*request.prompt, *found.tokens][:-1]
        assert (scalings.start, scalings.omitted_tokens) == (0, 0)
        assert len(scalings.data) == 4 * len(scalings.tokens) * scalings.shape[0] * scalings.shape[1]
    texts = [[*request.prompt, *found.tokens] for request, found in zip(REQUESTS, expected, strict=True)]

    def propose(self: NgramProposer, known: list[int], count: int) -> tuple[int, ...]:
        later = next(text[len(known) :] for text in texts if text[: len(known)] == known)[:count]
        return (*later[:2], *((token + 1) % TOKENIZER_SIZE for token in later[2:]))

    groups = tuple(replace(group, num_blocks=7) for group in served.running.model.limits.kv_groups)
    for changes in ({"kv_groups": groups}, {"max_batch_tokens": 7}):
        with served.engine(prefix_cache_n=0, **changes) as engine:
            streams = [engine.submit(request) for request in asked]
            assert [scalings_of(stream) for stream in streams] == alone
            assert (engine.stats().preemptions > 0) == ("kv_groups" in changes)
    monkeypatch.setattr(NgramProposer, "propose", propose)
    with served.engine(max_draft=6, prefix_cache_n=0) as engine:
        assert [scalings_of(engine.submit(request)) for request in asked] == alone
        stats = engine.stats()
        assert stats.drafted_tokens > stats.accepted_tokens > 0


def scalings_of(stream: Stream) -> Scalings:
    [found] = [event for event in stream if isinstance(event, Scalings)]
    return found


def test_the_next_turn_starts_from_what_it_may_share(served: Served, expected: list[Answer], tmp_path: Path) -> None:
    """KV of tokens behind the last one with scalings of its own stays with its sequence, in memory and on disk."""
    prompt, said = PROMPTS[0], expected[0].tokens
    turn = Request((*prompt, *said, *tokens(5, seed=7)), GREEDY)
    with served.engine(prefix_cache_n=0) as engine:
        alone, usage = answer(engine, turn)
        assert usage.cached_tokens == 0
    k = served.non_granular
    own = len(prompt) + (len(said) - 1 if k is None else min(k, len(said) - 1))
    with served.engine(disk=tmp_path) as engine:
        answer(engine, REQUESTS[0])
        found, usage = answer(engine, turn)
        assert (found, usage.cached_tokens) == (alone, own // BLOCK * BLOCK)
    with served.engine(disk=tmp_path) as engine:
        assert answer(engine, REQUESTS[0])[0] == expected[0]
        assert answer(engine, turn)[0] == alone
        assert engine.stats().cached_tokens > 0


def test_prompts_are_embedded_by_the_full_pass(served: Served) -> None:
    """In chunks as at once."""
    pooled = Request(tuple(PROMPTS[0]), replace(GREEDY, max_tokens=1), pooling="mean")
    found = []
    for step in (512, 7):
        with served.engine(max_batch_tokens=step) as engine:
            [event] = [event for event in engine.submit(pooled) if isinstance(event, Embedding)]
            found.append(event)
    assert str(found[0]) == str(found[1])
