"""Adapters of requests: no KV is shared between different ones, and an answer depends on its request alone."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistralrs.engine.batch import CancelFlag
from mistralrs.engine.config import EngineConfig, Request, RequestAdapter, SamplingParams
from mistralrs.engine.engine import Engine
from mistralrs.engine.events import Embedding, Event, Finished, PromptLogprobs
from mistralrs.engine.kv.kv_disk_tier import KvDiskTier
from mistralrs.engine.model_runner import ModelRunner
from mistralrs.engine.sequence import Sequence as EngineSequence
from mistralrs.errors import EngineError, RequestError, UsageError
from mistralrs.ops.kv_groups import KvGroup
from mistralrs.ops.linear import AdapterUse
from mistralrs.ops.workspace import Sizes, StepArgs, Workspace
from tests.engine.fakes import FakeRunner, FakeTokenizer, Turnstile

BLOCK = 4
CONFIG = EngineConfig(
    kv_groups=(KvGroup(120),), max_model_len=120, max_seqs=6, max_batch_tokens=32, block_size=BLOCK, max_adapters=4
)
A, B, C, D = (bytes([letter]) * 16 for letter in b"ABCD")
INVOCATION = (91, 92)
PROMPT = (*range(20, 38), *INVOCATION, *range(40, 45))


def placed(digest: bytes, weight: float = 1.0, *, slot: int | None = None, alora: bool = False) -> RequestAdapter:
    """An adapter in the slot of its letter, or in another."""
    return RequestAdapter(digest[0] - A[0] if slot is None else slot, digest, weight, INVOCATION if alora else ())


def block_hashes(tokens: Sequence[int], adapters: Sequence[RequestAdapter] = (), **changes: Any) -> list[bytes]:
    request = Request(tuple(tokens), SamplingParams(), adapters=tuple(adapters), **changes)
    sequence = EngineSequence.of(0, request, list(tokens), limit=999, eos_ids=frozenset())
    return sequence.block_hashes(len(tokens) // BLOCK, BLOCK)


# Block hashes


def test_hashes_without_adapters_are_those_of_blocks_that_lie_on_disk() -> None:
    """The expected values come from the code before there were adapters."""
    salted = [
        "835e07af4d9d6e5ae049e32a2ac9db33",
        "7180b16ebc61a4f0b908e8626f54827a",
        "461562fec2f0c1185777975ad0261398",
    ]
    plain = ["6ccf06996a939572554bffcead945b16", "f1b09658a2f837dbdb4c43cdf1b3d376", "686f0a07aff935d6a983772db92f7572"]
    assert [block_hash.hex() for block_hash in block_hashes(range(12), cache_salt="owner")] == salted
    assert [block_hash.hex() for block_hash in block_hashes(range(12))] == plain


weights = st.one_of(st.sampled_from([0.0, -0.0, 1.0, 1.0 + 2**-52, -1.0]), st.floats(-4, 4))
contents = st.dictionaries(st.sampled_from([A, B, C]), weights, max_size=3)
texts = st.lists(st.integers(0, 1), min_size=BLOCK, max_size=2 * BLOCK)


def in_some_order(acting: dict[bytes, float], order: Random) -> list[RequestAdapter]:
    """In any slots, in any order."""
    slots = order.sample(range(4), len(acting))
    return order.sample(
        [placed(digest, weight, slot=slot) for (digest, weight), slot in zip(acting.items(), slots, strict=True)],
        len(acting),
    )


@settings(max_examples=300, deadline=None)
@given(first=contents, second=contents, tokens=texts, others=texts, same=st.booleans(), order=st.randoms())
def test_hashes_are_equal_if_and_only_if_contents_weights_and_tokens_are(
    first: dict[bytes, float], second: dict[bytes, float], tokens: list[int], others: list[int], same: bool, order: Any
) -> None:
    """A weight of 0 is no use; neither slots nor the order count."""
    if same:
        second, others = first, tokens
    hashes = block_hashes(tokens, in_some_order(first, order))
    other_hashes = block_hashes(others, in_some_order(second, order))
    acting, other_acting = ({d: w.hex() for d, w in some.items() if w} for some in (first, second))
    for count, (one, other) in enumerate(zip(hashes, other_hashes, strict=False), 1):
        alike = acting == other_acting and tokens[: count * BLOCK] == others[: count * BLOCK]
        assert (one == other) == alike
    if not acting:
        assert hashes == block_hashes(tokens)


@settings(max_examples=300, deadline=None)
@given(
    before=st.lists(st.sampled_from([1, 2, *INVOCATION]), max_size=20),
    after=st.lists(st.integers(1, 2), max_size=20),
    digest=st.sampled_from([A, B]),
    mixed=st.booleans(),
)
def test_blocks_before_an_invocation_are_those_of_the_base(
    before: list[int], after: list[int], digest: bytes, mixed: bool
) -> None:
    """Its last occurrence counts; with another adapter in the mix they are that adapter's."""
    tokens = [*before, *INVOCATION, *after]
    beside = [placed(C, 0.5)] if mixed else []
    base = block_hashes(tokens, beside)
    hashes = block_hashes(tokens, [placed(digest, alora=True), *beside])
    untouched = len(before) // BLOCK
    assert hashes[:untouched] == base[:untouched]
    assert not set(hashes[untouched:]) & set(base)
    assert not set(hashes[untouched:]) & set(block_hashes(tokens, [placed(D, alora=True), *beside]))
    assert not set(hashes[untouched:]) & set(block_hashes(tokens, [placed(digest, 0.5, alora=True), *beside]))
    later = [*tokens, *INVOCATION]  # the same tokens are the base's if the invocation comes again
    assert not set(hashes[untouched:]) & set(block_hashes(later, [placed(digest, alora=True), *beside]))


def test_equal_tokens_that_are_invoked_at_different_places_of_a_block_differ() -> None:
    """The answer may hold the invocation as well, which invokes nothing."""
    request = Request(INVOCATION, SamplingParams(), adapters=(placed(A, alora=True),))
    early = EngineSequence.of(0, request, list(INVOCATION), limit=99, eos_ids=frozenset())
    early.tokens += INVOCATION
    assert early.block_hashes(1, BLOCK) != block_hashes(INVOCATION * 2, request.adapters)


def test_without_its_invocation_the_base_answers() -> None:
    assert block_hashes((*INVOCATION[:1], 5, 6, 7), [placed(A, alora=True)]) == block_hashes((*INVOCATION[:1], 5, 6, 7))
    assert block_hashes(INVOCATION[1:] * 4, [placed(A, alora=True)]) == block_hashes(INVOCATION[1:] * 4)


# Answers


@contextmanager
def serving(config: EngineConfig = CONFIG, *, disk: Path | None = None, **changes: Any) -> Iterator[Any]:
    """An engine and its model, with A to D in their slots."""
    windows = [group.window for group in config.kv_groups]
    runner = FakeRunner(block_size=BLOCK, windows=windows, **changes)
    runner.slots = dict(enumerate((A, B, C, D)))
    tier = None if disk is None else KvDiskTier(disk, limit=1 << 30, fingerprint="model")
    with closing(Engine(runner, FakeTokenizer(), config, disk_tier=tier)) as engine:  # type: ignore[arg-type]
        yield engine, runner
        engine._core.scheduler.check_integrity()


def collect(stream: Any) -> tuple[list[Event], Finished]:
    *events, end = stream
    assert isinstance(end, Finished), end
    return events, end


def tokens_of(events: list[Event]) -> list[int]:
    return [token for event in events for token in getattr(event, "tokens", ())]


def answer(engine: Engine, request: Request) -> list[int]:
    return tokens_of(collect(engine.submit(request))[0])


def requests() -> list[Request]:
    """Base, A, B, mixes of them in both orders, and aLoRAs, with prompts that begin alike."""
    choices: list[tuple[RequestAdapter, ...]] = [
        (),
        (placed(A),),
        (placed(B),),
        (placed(A, 0.5), placed(B, 2.0)),
        (placed(B, 2.0), placed(A, 0.5)),
        (placed(C, alora=True),),
        (placed(D, alora=True), placed(A)),
        (placed(D, 0.0),),
    ]
    sampling = SamplingParams(temperature=0.7, top_k=30, max_tokens=40)
    return [
        Request(PROMPT[: len(PROMPT) - index % 3], replace(sampling, seed=index % 2), adapters=adapters)
        for index, adapters in enumerate(choices + choices[::-1])
    ]


def solo_answers(**changes: Any) -> list[list[int]]:
    """Each request in an engine of its own, without reuse and with its prompt in one chunk."""
    answers = []
    for request in requests():
        with serving(replace(CONFIG, prefix_cache_n=0), **changes) as (engine, _):
            answers.append(answer(engine, request))
    return answers


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"max_batch_tokens": 7},
        {"max_seqs": 1},
        {"kv_groups": (KvGroup(18),)},
        {"no_kv_cache": True},
        {"max_draft": 4},
        {"max_draft": 4, "kv_groups": (KvGroup(18),)},
    ],
    ids=str,
)
def test_an_answer_depends_on_its_request_alone(changes: dict[str, Any]) -> None:
    """In one batch with other adapters, in chunks, preempted, with draft tokens, and after cache hits."""
    expected = solo_answers(habit=3.0)
    assert len({tuple(tokens) for tokens in expected}) > 8
    with serving(replace(CONFIG, **changes), habit=3.0) as (engine, _):
        for _ in range(2):
            streams = [engine.submit(request) for request in requests()]
            assert [tokens_of(collect(stream)[0]) for stream in streams] == expected
        stats = engine.stats()
        assert (stats.cached_tokens > 0) == (not engine.config.no_kv_cache)
        assert (stats.drafted_tokens > 0) == (engine.config.max_draft > 0)
        assert (stats.preemptions > 0) == ("kv_groups" in changes)


def test_kv_on_disk_is_found_by_content_after_a_restart(tmp_path: Path) -> None:
    """The second engine has the adapters in other slots, where others were before."""
    expected = solo_answers()
    with serving(disk=tmp_path) as (engine, _):
        assert [answer(engine, request) for request in requests()] == expected
    with serving(disk=tmp_path) as (engine, runner):
        runner.slots = {3 - slot: digest for slot, digest in runner.slots.items()}
        moved = [
            replace(request, adapters=tuple(replace(one, slot=3 - one.slot) for one in request.adapters))
            for request in requests()
        ]
        assert [answer(engine, request) for request in moved] == expected
        assert engine.stats().cached_tokens == sum((len(request.prompt) - 1) // BLOCK * BLOCK for request in requests())


def test_a_new_adapter_in_an_old_slot_meets_no_old_kv(tmp_path: Path) -> None:
    """As if it was loaded again under the same name with another content."""
    request = replace(requests()[0], adapters=(placed(A),))
    reloaded = replace(request, adapters=(placed(bytes(16), slot=0),))
    with serving(disk=tmp_path) as (engine, runner):
        old = answer(engine, request)
        runner.slots[0] = bytes(16)
        events, end = collect(engine.submit(reloaded))
        assert end.usage.cached_tokens == 0
    with serving(replace(CONFIG, prefix_cache_n=0)) as (engine, runner):
        runner.slots[0] = bytes(16)
        assert tokens_of(events) == answer(engine, reloaded) != old


def test_an_alora_starts_from_the_kv_of_the_base_and_of_other_aloras() -> None:
    before = PROMPT.index(INVOCATION[0]) // BLOCK * BLOCK
    sampling = SamplingParams(temperature=0.0, max_tokens=4)
    with serving() as (engine, runner):
        base = collect(engine.submit(Request(PROMPT[:-1], sampling)))[1]
        alone = [Request(PROMPT, sampling, adapters=(placed(digest, alora=True),)) for digest in (A, B)]
        ends = [collect(engine.submit(request))[1] for request in alone]
        again = collect(engine.submit(alone[0]))[1]
    assert [end.usage.cached_tokens for end in (base, *ends)] == [0, before, before]
    assert again.usage.cached_tokens == (len(PROMPT) - 1) // BLOCK * BLOCK
    with serving(replace(CONFIG, max_batch_tokens=8)) as (engine, runner):
        collect(engine.submit(alone[0]))
        first = PROMPT.index(INVOCATION[0])
        for batch in runner.batches:  # steps before its first token are plain ones
            assert batch.adapters == ([[AdapterUse(0, 1.0, first)]] if batch.seq_lens[0] > first else [[]])


def test_prompt_logprobs_and_embeddings_are_those_of_the_adapter() -> None:
    adapters: list[tuple[RequestAdapter, ...]] = [(), (placed(A),), (placed(A, alora=True),)]
    sampling = SamplingParams(max_tokens=1)
    scored = [Request(PROMPT, sampling, prompt_logprobs=1, adapters=some) for some in adapters]
    pooled = [Request(PROMPT, sampling, pooling="mean", adapters=some) for some in adapters]
    with serving(replace(CONFIG, max_batch_tokens=7)) as (engine, _):
        streams = [engine.submit(request) for request in (*scored, *pooled)]
        outputs: list[Any] = [collect(stream)[0][0] for stream in streams]
    logprobs, embeddings = outputs[:3], outputs[3:]
    assert all(isinstance(event, PromptLogprobs) for event in logprobs)
    assert all(isinstance(event, Embedding) for event in embeddings)
    assert len({str(event) for event in outputs}) == 6
    first = PROMPT.index(INVOCATION[0])
    base, plain, alora = (event.logprobs for event in logprobs)
    assert alora[: first + 1] == base[: first + 1]  # each entry follows from the tokens before it
    assert all(one != other for one, other in zip(alora[first + 1 :], base[first + 1 :], strict=True))
    assert all(one != other for one, other in zip(plain[1:], base[1:], strict=True))


# Refusing


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        ((placed(A, slot=4),), "slot 4"),
        ((placed(A, slot=-1),), "slot -1"),
        ((placed(A), placed(B, slot=0)), "slot 0 twice"),
        ((placed(A, float("nan")),), "weight of nan"),
        ((placed(A, float("-inf")),), "weight of -inf"),
        ((placed(A, 1e39),), "finite"),
        ((RequestAdapter(0, b"short"),), "digest of 5 bytes"),
    ],
)
def test_impossible_adapters_are_refused(adapters: tuple[RequestAdapter, ...], message: str) -> None:
    with serving() as (engine, runner):
        with pytest.raises(RequestError, match=message) as refused:
            engine.submit(Request(PROMPT, SamplingParams(), adapters=adapters))
        assert (refused.value.param, runner.batches) == ("adapters", [])


def test_a_model_without_slots_takes_no_adapter() -> None:
    with serving(replace(CONFIG, max_adapters=0)) as (engine, _), pytest.raises(RequestError, match="0 adapter slots"):
        engine.submit(Request(PROMPT, SamplingParams(), adapters=(placed(A),)))
    with pytest.raises(UsageError, match="max_adapters"):
        Engine(FakeRunner(block_size=4), FakeTokenizer(), replace(CONFIG, max_adapters=-1))  # type: ignore[arg-type]


# The step


def test_the_model_runner_names_adapters_only_if_one_acts() -> None:
    sizes = Sizes(
        max_tokens=32, max_seqs=6, max_logits=6, max_blocks=30, hidden=4, q=4, kv=4, ffn=4, vocab=96, rotary=(2,),
        adapter_slots=4,
    )  # fmt: skip
    work = Workspace(sizes)
    decoder: Any = SimpleNamespace(args=StepArgs(sizes), forward=lambda: None, logits=work.logits)
    with serving() as (engine, runner):
        streams = [engine.submit(request) for request in requests()[:4]]
        for stream in streams:
            collect(stream)
        collect(engine.submit(requests()[0]))
    model, steps = ModelRunner(decoder, vocab_size=96), []
    for batch in runner.batches:
        model.forward(batch, CancelFlag())
        uses = decoder.args.uses
        steps.append([] if uses is None else list(zip(uses.slots, uses.weights, strict=True)))
        assert (uses is None) == (not any(batch.adapters))
    assert steps[-1] == []
    assert {(0, 0.5), (1, 2.0)} <= set(itertools.chain(*steps))


# Calls between two steps


def test_calls_are_made_in_order_and_never_inside_a_step() -> None:
    made: list[tuple[str, str]] = []
    with serving() as (engine, runner):
        turnstile = Turnstile(runner)
        first = engine.submit(requests()[1])
        turnstile.wait()
        record: Callable[[str], None] = lambda name: made.append((name, threading.current_thread().name))  # noqa: E731
        futures: list[Future[Any]] = [engine.between_steps(lambda name=name: record(name)) for name in "xy"]  # type: ignore[misc]
        failed = engine.between_steps(lambda: 1 // 0)
        size = engine.between_steps(lambda: len(runner.batches))
        assert made == []
        turnstile.let_through(100)
        for future in futures:
            future.result(10)
        assert made == [("x", "mistralrs-engine"), ("y", "mistralrs-engine")]
        assert size.result(10) == 1
        with pytest.raises(ZeroDivisionError):
            failed.result(10)
        assert answer(engine, requests()[2])
        collect(first)
        assert engine.between_steps(lambda: 7).result(10) == 7  # nothing else wakes the engine now


def test_a_call_is_made_before_the_first_step_of_a_later_request() -> None:
    """Though the request itself arrives in the middle of a step."""
    with serving() as (engine, runner):
        turnstile = Turnstile(runner)
        first = engine.submit(requests()[0])
        turnstile.wait()
        written = engine.between_steps(lambda: runner.slots.update({0: D}))
        second = engine.submit(replace(requests()[0], adapters=(placed(D, slot=0),)))
        turnstile.let_through(100)
        written.result(10)
        collect(first)
        tokens = tokens_of(collect(second)[0])
    with serving() as (engine, _):
        assert answer(engine, replace(requests()[0], adapters=(placed(D),))) == tokens


def test_a_call_that_comes_in_the_last_step_is_made_after_it() -> None:
    with serving() as (engine, runner):
        turnstile = Turnstile(runner)
        engine.submit(Request(PROMPT, SamplingParams(max_tokens=1)))
        turnstile.wait()
        made = engine.between_steps(lambda: 7)
        turnstile.let_through()
        assert made.result(10) == 7


def test_calls_that_an_ended_engine_never_made_fail() -> None:
    with serving() as (engine, runner):
        turnstile = Turnstile(runner)
        engine.submit(requests()[0])
        turnstile.wait()
        waiting = engine.between_steps(lambda: 7)
        engine.close()
        for future in (waiting, engine.between_steps(lambda: 7)):
            with pytest.raises(EngineError, match="closed"):
                future.result(10)
