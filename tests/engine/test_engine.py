"""The engine's laws: an answer depends on its request alone, every stream ends, and no block is in use afterwards."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from mistralrs.engine.batch import Batch, CancelFlag
from mistralrs.engine.config import EngineConfig, Request, SamplingParams
from mistralrs.engine.engine import Engine
from mistralrs.engine.events import Delta, Event, Failed, Finished, Stream
from mistralrs.engine.prefill_budget import PrefillBudget
from mistralrs.errors import ContextLengthError, EngineDeadError, EngineError, LoadError, RequestError, UsageError
from mistralrs.ops.kv_groups import KvGroup
from tests.engine.fakes import EOS, VOCAB, FakeRunner, FakeTokenizer, Turnstile, history_logits

CONFIG = EngineConfig(kv_groups=(KvGroup(60),), max_model_len=120, max_seqs=6, max_batch_tokens=32, block_size=4)
SAMPLED = SamplingParams(temperature=1.5, top_k=30, top_p=0.95, frequency_penalty=0.4, max_tokens=24)
PROMPT = tuple(range(20, 45))


@contextmanager
def serving(
    config: EngineConfig = CONFIG, *, eos_bias: float = -100.0, habit: float = 0.0, delivers_beside: bool = False
) -> Iterator[tuple[Engine, FakeRunner]]:
    windows = [group.window for group in config.kv_groups]
    runner = FakeRunner(block_size=config.block_size, windows=windows, eos_bias=eos_bias, habit=habit)
    tokenizer: Any = FakeTokenizer()
    with closing(Engine(runner, tokenizer, config, delivers_beside=delivers_beside)) as engine:
        yield engine, runner
        engine._core.scheduler.check_integrity()


def collect(stream: Stream) -> tuple[str, list[int], Finished | Failed]:
    events: list[Event] = list(stream)
    deltas = [event for event in events if isinstance(event, Delta)]
    end = events[-1]
    assert len(deltas) == len(events) - 1
    assert isinstance(end, Finished | Failed)
    assert list(stream) == []
    return "".join(d.text for d in deltas), [token for d in deltas for token in d.tokens], end


def answer(engine: Engine, request: Request) -> tuple[list[int], str]:
    _, tokens, end = collect(engine.submit(request))
    assert isinstance(end, Finished), end
    return tokens, end.reason


def requests() -> list[Request]:
    """Different prompts, lengths, options and seeds, some with a common beginning."""
    base = [replace(SAMPLED, seed=seed, max_tokens=5 + 3 * seed) for seed in range(5)]
    base += [replace(SAMPLED, temperature=0.0), replace(SAMPLED, top_k=0, top_p=1.0, seed=9)]
    return [Request(PROMPT[: 25 - 3 * i] + (50 + i,) * (i % 3), sampling) for i, sampling in enumerate(base)]


def expected_answers(config: EngineConfig = CONFIG) -> list[tuple[list[int], str]]:
    """Each request alone, in an engine of its own, without any reuse and with its prompt in one chunk."""
    answers = []
    for request in requests():
        with serving(replace(config, prefix_cache_n=0)) as (engine, _):
            answers.append(answer(engine, request))
    return answers


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prefix_cache_n": 0},
        {"max_batch_tokens": 7},
        {"max_batch_tokens": 1, "max_seqs": 1},
        {"max_seqs": 2},
        {"kv_groups": (KvGroup(14),)},
        {"block_size": 1, "kv_groups": (KvGroup(70),)},
        {"no_kv_cache": True},
        {"no_kv_cache": True, "max_batch_tokens": 9, "kv_groups": (KvGroup(16),)},
    ],
    ids=str,
)
def test_an_answer_depends_on_its_request_alone(changes: dict[str, Any]) -> None:
    """Batched equals alone, chunked equals whole, hit equals miss, preempted equals not, uncached equals cached."""
    assert_same_answers(CONFIG, changes)


@pytest.mark.parametrize("full", [(), (KvGroup(60),)], ids=["windows", "mixed"])
@pytest.mark.parametrize(
    "changes", [{}, {"prefix_cache_n": 0}, {"max_seqs": 1}, {"max_batch_tokens": 3}, {"no_kv_cache": True}], ids=str
)
def test_an_answer_depends_on_its_request_alone_with_windows(
    changes: dict[str, Any], full: tuple[KvGroup, ...]
) -> None:
    """With many blocks, and with so few that sequences are preempted or wait."""
    config = replace(CONFIG, max_batch_tokens=8, kv_groups=(*full, KvGroup(60, 5), KvGroup(60, 12)))
    few = {"kv_groups": (*full, KvGroup(4, 5), KvGroup(6, 12))}
    for kv_groups in ({}, few):
        assert_same_answers(config, {**kv_groups, **changes})


def assert_same_answers(config: EngineConfig, changes: dict[str, Any]) -> None:
    """Every request gets in company, twice, with ``changes`` of the limits, what it gets alone with ``config``."""
    expected = expected_answers(config)
    with serving(replace(config, **changes)) as (engine, _):
        for _ in range(2):  # the second time prefixes are found in the cache
            streams = [engine.submit(request) for request in requests()]
            ends = [collect(stream) for stream in streams]
            assert [(tokens, end.reason) for _, tokens, end in ends if isinstance(end, Finished)] == expected
        stats = engine.stats()
        assert (stats.running, stats.waiting, stats.free_blocks) == (0, 0, stats.num_blocks)
        assert stats.completion_tokens == 2 * sum(len(tokens) for tokens, _ in expected)
        assert (stats.cached_tokens > 0) == (engine.config.prefix_cache_n > 0 and not engine.config.no_kv_cache)


def test_greedy_follows_the_model() -> None:
    with serving() as (engine, _):
        tokens, reason = answer(engine, Request(PROMPT, SamplingParams(temperature=0.0, max_tokens=30)))
    history = list(PROMPT)
    for _ in range(30):
        logits = history_logits([(token, position) for position, token in enumerate(history)], eos_bias=-100.0)
        history.append(int(logits.argmax()))
    assert (tokens, reason) == (history[len(PROMPT) :], "length")


def test_the_second_turn_computes_only_what_is_new() -> None:
    with serving() as (engine, runner):
        tokens, _ = answer(engine, Request(PROMPT, SAMPLED))
        turn = (*PROMPT, *tokens, 60, 61)
        runner.batches.clear()
        _, _, end = collect(engine.submit(Request(turn, SAMPLED)))
        # The last token sampled in the first turn was never computed.
        cached = (len(PROMPT) + len(tokens) - 1) // 4 * 4
        assert end.usage.cached_tokens == cached
        assert len(runner.batches[0].tokens) == len(turn) - cached
        assert engine.stats().cached_tokens == cached


@pytest.mark.parametrize("max_tokens", [1, 2, 17])
def test_max_tokens_is_exact(max_tokens: int) -> None:
    with serving() as (engine, runner):
        _, tokens, end = collect(engine.submit(Request(PROMPT, replace(SAMPLED, max_tokens=max_tokens))))
        assert isinstance(end, Finished)
        assert (len(tokens), end.reason, end.usage.completion_tokens) == (max_tokens, "length", max_tokens)
        assert len(runner.batches) == max_tokens


def test_a_full_context_ends_the_answer() -> None:
    with serving() as (engine, _):
        tokens, reason = answer(engine, Request(PROMPT, replace(SAMPLED, max_tokens=None)))
        assert (len(PROMPT) + len(tokens), reason) == (CONFIG.max_model_len, "length")


def test_the_end_token_ends_without_text_unless_ignored() -> None:
    endings = set()
    with serving(eos_bias=2.0) as (engine, _):
        for seed in range(20):
            sampling = replace(SAMPLED, seed=seed, temperature=1.0)
            text, tokens, end = collect(engine.submit(Request(PROMPT, sampling)))
            assert isinstance(end, Finished)
            endings.add(end.reason)
            ended = end.reason == "stop"
            assert end.usage.completion_tokens == len(tokens) + ended
            assert EOS not in tokens
            assert text == b"".join(map(FakeTokenizer().token_bytes, tokens)).decode("utf-8", "replace")
        assert endings == {"stop", "length"}
        ignoring = replace(sampling, ignore_eos=True, logit_bias=((EOS, 50.0),), max_tokens=7)
        assert answer(engine, Request(PROMPT, ignoring)) == ([EOS] * 7, "length")


def test_streamed_pieces_are_whole_text() -> None:
    tokenizer, halves = FakeTokenizer(), 0
    with serving() as (engine, _):
        for seed in range(10):
            sampling = replace(SAMPLED, seed=seed, logit_bias=tuple((token, 3.0) for token in range(1, 16)))
            deltas = [event for event in engine.submit(Request(PROMPT, sampling)) if isinstance(event, Delta)]
            halves += any(delta.text == "" for delta in deltas)
            data = b"".join(tokenizer.token_bytes(token) for delta in deltas for token in delta.tokens)
            assert "".join(delta.text for delta in deltas) == data.decode("utf-8", "replace")
    assert halves


def test_stop_strings_across_tokens_are_never_shown() -> None:
    with serving() as (engine, _):
        request = Request(PROMPT, replace(SAMPLED, logit_bias=tuple((token, -99.0) for token in range(16))))
        whole, tokens, _ = collect(engine.submit(request))
        for start in (0, 3, 9):
            stop = whole[start : start + 3]
            stopping = replace(request.sampling, stop=("never", stop))
            events = list(engine.submit(replace(request, sampling=stopping)))
            end = events[-1]
            shown = "".join(event.text for event in events if isinstance(event, Delta))
            assert shown == whole[: whole.index(stop)]
            assert isinstance(end, Finished)
            # Letters are tokens here: the answer ends with the token that completes the stop string.
            assert (end.reason, end.usage.completion_tokens) == ("stop", whole.index(stop) + 3)
            assert end.stop_string == stop
            assert engine.stats().free_blocks == engine.stats().num_blocks
        almost = replace(request.sampling, stop=(whole[-2:] + "!",))
        assert collect(engine.submit(replace(request, sampling=almost)))[:2] == (whole, tokens)


@pytest.mark.parametrize("beside", [False, True])
def test_a_token_becomes_text_once(beside: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the thread that delivers; where a stop string may end the answer, in the engine's, to the same pieces."""
    bytes_of, readers = FakeTokenizer.token_bytes, []

    def token_bytes(self: FakeTokenizer, token: int) -> bytes:
        readers.append(threading.current_thread().name)
        return bytes_of(self, token)

    monkeypatch.setattr(FakeTokenizer, "token_bytes", token_bytes)
    biased = replace(SAMPLED, logit_bias=tuple((token, 3.0) for token in range(1, 16)))
    pieces: list[list[tuple[str, tuple[int, ...]]]] = []
    with serving(delivers_beside=beside) as (engine, _):
        for stop in ((), ("\0 never", "never")):
            readers.clear()
            events = list(engine.submit(Request(PROMPT, replace(biased, stop=stop))))
            pieces.append([(event.text, event.tokens) for event in events if isinstance(event, Delta)])
            thread = "mistralrs-delivery" if beside and not stop else "mistralrs-engine"
            assert readers == [thread] * len(readers)
            assert len(readers) == SAMPLED.max_tokens
    assert pieces[0] == pieces[1]
    assert any(text == "" for text, _ in pieces[0]), "no character has two tokens"


def test_seeds_repeat_and_choices_differ() -> None:
    with serving() as (engine, _):
        streams = [engine.submit(Request(PROMPT, replace(SAMPLED, seed=seed))) for seed in (1, 2, 3, 1, 2, 3)]
        texts = [collect(stream)[0] for stream in streams]
    assert texts[:3] == texts[3:]
    assert len(set(texts)) == 3


def test_logprobs_come_with_their_tokens() -> None:
    with serving() as (engine, _):
        sampling = replace(SAMPLED, frequency_penalty=0.0, logprobs=2, max_tokens=4)
        deltas = [event for event in engine.submit(Request(PROMPT, sampling)) if isinstance(event, Delta)]
    history = list(PROMPT)
    for delta in deltas:
        logits = history_logits([(token, position) for position, token in enumerate(history)], eos_bias=-100.0)
        values, ids = logits.log_softmax(0).topk(2)
        (entry,) = delta.logprobs
        assert (entry.token,) == delta.tokens
        assert entry.logprob == pytest.approx(logits.log_softmax(0)[entry.token].item(), abs=1e-4)
        assert [top.token for top in entry.top] == ids.tolist()
        assert [top.logprob for top in entry.top] == pytest.approx(values.tolist(), abs=1e-4)
        assert entry.data == FakeTokenizer().token_bytes(entry.token)
        history += delta.tokens


def test_usage_adds_up() -> None:
    with serving() as (engine, _):
        _, tokens, end = collect(engine.submit(Request(PROMPT, replace(SAMPLED, seed=77))))
    usage = end.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.seed) == (len(PROMPT), len(tokens), 77)
    assert 0 < usage.prompt_s <= usage.first_token_s <= usage.prompt_s + usage.completion_s


def test_the_progress_of_a_prompt_is_known_while_it_is_computed() -> None:
    prompt = tuple(20 + place % 20 for place in range(70))
    with serving() as (engine, runner):
        turnstile = Turnstile(runner)
        stream = engine.submit(Request(prompt, replace(SAMPLED, max_tokens=4)))
        seen = []
        for _ in range(3):
            turnstile.wait()
            seen.append(stream.prompt_progress())
            turnstile.let_through()
        turnstile.let_through(1000)
        collect(stream)
        assert seen == [(0, 70), (32, 70), (64, 70)]
        assert stream.prompt_progress() == (70, 70)


# Cancelling


def test_cancel_while_decoding() -> None:
    with serving() as (engine, _):
        stream = engine.submit(Request(PROMPT, replace(SAMPLED, max_tokens=None)))
        events = iter(stream)
        next(events)
        stream.cancel()
        stream.cancel()
        *_, end = events
        assert isinstance(end, Finished)
        assert end.reason == "cancelled"
        assert engine.stats().free_blocks == engine.stats().num_blocks
        assert answer(engine, requests()[0]) == expected_answers()[0]


def test_cancel_alone_in_the_middle_of_a_prefill_stops_the_step_and_commits_nothing() -> None:
    with serving() as (engine, runner):
        turnstile = Turnstile(runner)
        stream = engine.submit(Request(PROMPT, SAMPLED))
        turnstile.wait()
        stream.cancel()  # only the cancel flag ends the step
        _, tokens, end = collect(stream)
        assert (tokens, end.reason, end.usage.completion_tokens) == ([], "cancelled", 0)  # type: ignore[union-attr]
        assert engine.stats().cached_blocks == 0
        assert engine.stats().free_blocks == engine.stats().num_blocks


def test_cancel_beside_others_does_not_stop_them() -> None:
    expected = expected_answers()
    with serving() as (engine, runner):
        turnstile = Turnstile(runner)
        first = engine.submit(requests()[1])
        turnstile.wait()
        second = engine.submit(requests()[2])
        waiting = engine.submit(requests()[3])
        turnstile.let_through()
        turnstile.wait()  # all three are in this step
        second.cancel()
        turnstile.let_through(1000)
        assert collect(second)[2].reason == "cancelled"  # type: ignore[union-attr]
        for stream, want in ((first, expected[1]), (waiting, expected[3])):
            _, tokens, end = collect(stream)
            assert (tokens, end.reason) == want  # type: ignore[union-attr]


def test_cancel_while_waiting() -> None:
    with serving(replace(CONFIG, max_seqs=1)) as (engine, runner):
        turnstile = Turnstile(runner)
        first = engine.submit(requests()[0])
        turnstile.wait()
        second = engine.submit(requests()[1])
        second.cancel()
        turnstile.let_through(1000)
        _, tokens, end = collect(second)
        assert (tokens, end.reason, end.usage.cached_tokens) == ([], "cancelled", 0)  # type: ignore[union-attr]
        assert collect(first)[1] == expected_answers()[0][0]


def test_cancel_after_the_end_does_nothing() -> None:
    with serving() as (engine, _):
        stream = engine.submit(requests()[0])
        assert isinstance(collect(stream)[2], Finished)
        stream.cancel()
        assert answer(engine, requests()[1]) == expected_answers()[1]


def test_many_threads_submit_and_cancel() -> None:
    expected = expected_answers()
    wrong: list[object] = []

    def client(number: int) -> None:
        for turn in range(6):
            index = (number + turn) % len(expected)
            stream = engine.submit(requests()[index])
            if (number + turn) % 3 == 0:
                stream.cancel()
            _, tokens, end = collect(stream)
            if isinstance(end, Failed) or (end.reason != "cancelled" and (tokens, end.reason) != expected[index]):
                wrong.append((index, tokens, end))

    with serving(replace(CONFIG, kv_groups=(KvGroup(30),), max_seqs=3)) as (engine, _):
        threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert wrong == []
        assert engine.stats().free_blocks == 30


def test_a_step_that_was_aborted_by_mistake_is_done_again() -> None:
    """A cancel may come so late that it stops the next step, which serves another request."""

    class Skittish(FakeRunner):
        def logits(self, batch: Batch, cancel_flag: CancelFlag) -> torch.Tensor:
            if len(self.batches) % 3 == 1:
                cancel_flag.set()
                self.batches.append(batch)
                return torch.zeros(len(batch.logits_indices), VOCAB)
            return super().logits(batch, cancel_flag)

    with closing(Engine(Skittish(block_size=4), FakeTokenizer(), CONFIG)) as engine:  # type: ignore[arg-type]
        assert [answer(engine, request) for request in requests()] == expected_answers()


# Failing


def test_a_failing_pass_ends_its_batch_only(caplog: pytest.LogCaptureFixture) -> None:
    expected = expected_answers()

    def fail(batch: Batch, cancel_flag: CancelFlag) -> None:
        if VOCAB - 1 in batch.tokens:
            raise ValueError("out of luck")

    with serving() as (engine, runner):
        runner.before = fail
        poisoned = engine.submit(Request((*PROMPT, VOCAB - 1), SAMPLED))
        end = collect(poisoned)[2]
        assert isinstance(end, Failed)
        assert isinstance(end.error, EngineError)
        assert "out of luck" in end.error.message
        assert engine.stats().cached_blocks == 0
        assert answer(engine, requests()[0]) == expected[0]
    assert "a forward pass failed" in caplog.text


def test_our_own_errors_reach_the_caller_unchanged() -> None:
    fault = LoadError("this backend lacks the type")

    def fail(batch: Batch, cancel_flag: CancelFlag) -> None:
        raise fault

    with serving() as (engine, runner):
        runner.before = fail
        end = collect(engine.submit(requests()[0]))[2]
        assert isinstance(end, Failed)
        assert end.error is fault


def test_an_unusable_row_fails_alone() -> None:
    expected = expected_answers()

    class Poisoned(FakeRunner):
        def logits(self, batch: Batch, cancel_flag: CancelFlag) -> torch.Tensor:
            logits = super().logits(batch, cancel_flag)
            for row, flat in enumerate(batch.logits_indices):
                if batch.tokens[flat] == VOCAB - 1:
                    logits[row, 3] = torch.nan
            return logits

    with closing(Engine(Poisoned(block_size=4), FakeTokenizer(), CONFIG)) as engine:  # type: ignore[arg-type]
        streams = [engine.submit(r) for r in (requests()[0], Request((*PROMPT, VOCAB - 1), SAMPLED), requests()[2])]
        (_, first, _), (_, _, failed), (_, third, _) = map(collect, streams)
        assert [first, third] == [expected[0][0], expected[2][0]]
        assert isinstance(failed, Failed)
        assert "finite" in failed.error.message
        assert engine.stats().free_blocks == engine.stats().num_blocks


def test_a_dead_engine_says_so(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as (engine, runner):
        turnstile = Turnstile(runner)
        streams = [engine.submit(request) for request in requests()[:2]]
        turnstile.wait()
        monkeypatch.setattr(engine._core.scheduler, "commit", lambda plan, sampled: 1 / 0)
        turnstile.let_through(10)
        for stream in streams:
            end = collect(stream)[2]
            assert isinstance(end, Failed)
            assert isinstance(end.error, EngineDeadError)
            assert "ZeroDivisionError" in end.error.message
        engine._thread.join(60)
        with pytest.raises(EngineDeadError, match="ZeroDivisionError"):
            engine.submit(requests()[0])
        monkeypatch.undo()
    assert "died" in caplog.text


def test_close_ends_open_streams_and_refuses_new_ones() -> None:
    with serving(replace(CONFIG, max_seqs=1)) as (engine, runner):
        turnstile = Turnstile(runner)
        streams = [engine.submit(request) for request in requests()[:3]]
        turnstile.wait()
        engine.close()
        engine.close()
        assert [collect(stream)[2].reason for stream in streams] == ["cancelled"] * 3  # type: ignore[union-attr]
        assert not engine._thread.is_alive()
        with pytest.raises(EngineError, match="closed"):
            engine.submit(requests()[0])


# Refusing


@pytest.mark.parametrize(
    ("param", "values"),
    [
        ("temperature", (-0.1, 100.1, float("nan"), float("inf"))),
        ("top_k", (-1,)),
        ("top_p", (-1.0, 1.01, float("nan"))),
        ("min_p", (-0.1, 1.5, float("nan"))),
        ("repetition_penalty", (0.0, -1.0, 1e-300, float("inf"))),
        ("frequency_penalty", (float("nan"), 100.1, -101.0)),
        ("presence_penalty", (float("inf"),)),
        ("repeat_last_n", (-1,)),
        ("seed", (2**64, -(2**63) - 1)),
        ("max_tokens", (-1,)),
        ("min_tokens", (-1, 25)),
        ("stop_token_ids", ((VOCAB,), (3, -1))),
        ("typical_p", (-0.1, 1.1, float("nan"))),
        ("xtc_probability", (-0.1, 1.1)),
        ("xtc_threshold", (-0.1, 1.1)),
        ("dry_multiplier", (-0.1, float("inf"))),
        ("dry_base", (0.9, float("nan"))),
        ("dry_allowed_length", (0,)),
        ("dry_last_n", (-1,)),
        ("dry_breakers", (("a", ""), ("a" * 65,), ("a",) * 65)),
        ("samplers", (("top_k", "mirostat"), ("top_k", "top_p", "top_k"))),
        ("stop", (("a", ""),)),
        ("logit_bias", (((VOCAB, 1.0),), ((-1, 1.0),), ((3, float("nan")),), ((3, 1e39),))),
        ("logprobs", (-1, VOCAB + 1)),
    ],
)
def test_parameters_out_of_range_are_refused_by_name(param: str, values: tuple[object, ...]) -> None:
    with serving() as (engine, runner):
        for value in values:
            with pytest.raises(RequestError, match=param) as refused:
                engine.submit(Request(PROMPT, replace(SAMPLED, **{param: value})))  # type: ignore[arg-type]
            assert refused.value.param == param
        assert runner.batches == []


@pytest.mark.parametrize("prompt", [(), (1, VOCAB), (-1,)])
def test_impossible_prompts_are_refused(prompt: tuple[int, ...]) -> None:
    with serving() as (engine, _), pytest.raises(RequestError) as refused:
        engine.submit(Request(prompt, SAMPLED))
    assert refused.value.param == "prompt"


@pytest.mark.parametrize(
    "changes",
    [{"max_seqs": 0}, {"kv_groups": (KvGroup(60), KvGroup(0, 8))}, {"max_batch_tokens": 0}, {"prefix_cache_n": -1}],
)
def test_impossible_limits_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(changes))):
        Engine(FakeRunner(block_size=4), FakeTokenizer(), replace(CONFIG, **changes))  # type: ignore[arg-type]


def test_a_prompt_that_is_too_long_is_refused() -> None:
    with serving() as (engine, _), pytest.raises(ContextLengthError, match=r"120 tokens.*121 tokens"):
        engine.submit(Request((5,) * 121, SAMPLED))
    with serving(replace(CONFIG, kv_groups=(KvGroup(10),))) as (engine, _), pytest.raises(ContextLengthError):
        engine.submit(Request((5,) * 41, SAMPLED))  # it could never have blocks


@pytest.mark.parametrize("max_tokens", [None, 1, 500])
def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused(max_tokens: int | None) -> None:
    with serving() as (engine, runner):
        sampling = replace(SAMPLED, max_tokens=max_tokens)
        with pytest.raises(ContextLengthError, match=r"is 120 tokens.*in 120 tokens, which leaves no room"):
            engine.submit(Request((5,) * 120, sampling))
        assert runner.batches == []
        _, tokens, end = collect(engine.submit(Request((5,) * 119, sampling)))
        assert isinstance(end, Finished)
        assert (len(tokens), end.reason) == (1, "length")


def test_a_prompt_that_nothing_follows_may_fill_the_context() -> None:
    """To be scored, pooled or only counted."""
    nothing = replace(SAMPLED, max_tokens=0)
    with serving() as (engine, _):
        for request in (
            Request((5,) * 120, nothing),
            Request((5,) * 120, nothing, prompt_logprobs=0),
            Request((5,) * 120, SAMPLED, pooling="mean"),
        ):
            *news, end = engine.submit(request)
            assert isinstance(end, Finished)
            assert (end.usage.prompt_tokens, end.usage.completion_tokens) == (120, 0)
            assert len(news) == (request.prompt_logprobs is not None or request.pooling is not None)
            with pytest.raises(ContextLengthError, match=r"in 121 tokens\."):
                engine.submit(replace(request, prompt=(5,) * 121))


@pytest.mark.parametrize(
    ("length", "max_tokens", "left"),
    [
        (119, 50, 119),
        (120, 50, 70),
        (120, None, 110),
        (121, None, 110),
        (150, 24, 96),
        (150, 119, 1),
        (150, 120, 110),
        (150, 500, 110),
    ],
)
def test_truncation_drops_the_first_tokens(
    length: int, max_tokens: int | None, left: int, caplog: pytest.LogCaptureFixture
) -> None:
    prompt = tuple(i % 80 + 10 for i in range(length))
    with serving() as (engine, runner):
        sampling = replace(SAMPLED, max_tokens=max_tokens)
        end = collect(engine.submit(Request(prompt, sampling, truncate=True)))[2]
        assert end.usage.prompt_tokens == left
        computed = [token for batch in runner.batches for token in batch.tokens]
        assert length == left or tuple(computed[:left]) == prompt[-left:]
    assert ("the first" in caplog.text) == (left != length)


def test_a_context_too_small_to_truncate_into_is_refused() -> None:
    with serving(replace(CONFIG, max_model_len=9)) as (engine, _), pytest.raises(ContextLengthError):
        engine.submit(Request((5,) * 20, replace(SAMPLED, max_tokens=None), truncate=True))


# Start, prefill budget and log


def test_the_engine_is_imported_without_torch() -> None:
    code = "import sys, mistralrs.engine.engine; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_prefill_beside_streams_is_as_long_as_the_budget_allows() -> None:
    budget = PrefillBudget()
    assert budget.limit(512) == 512
    budget.measure(15, 100.0)
    assert budget.limit(512) == 512
    budget.measure(400, 2.0)
    assert budget.limit(512) == 50
    budget.measure(400, 1.0)
    assert budget.limit(512) == 65
    budget.measure(16, 60.0)
    for _ in range(50):
        budget.measure(16, 60.0)
    assert budget.limit(512) == PrefillBudget.MIN_TOKENS
    for _ in range(50):
        budget.measure(512, 0.001)
    assert budget.limit(512) == 512


def test_the_prefill_budget_never_exceeds_the_batch() -> None:
    budget = PrefillBudget()
    budget.measure(512, 60.0)
    assert budget.limit(7) <= 16


def test_steps_are_logged_at_debug_level(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="mistralrs"), serving() as (engine, _):
        answer(engine, Request(PROMPT, replace(SAMPLED, max_tokens=2)))
    lines = [record.getMessage().rsplit(" - ", 1) for record in caplog.records if record.levelno == logging.DEBUG]
    assert [line for line, _ in lines] == ["Prompt[25] Completion[]", "Prompt[] Completion[26]"]
    assert all(milliseconds.removesuffix("ms").isdigit() for _, milliseconds in lines)
