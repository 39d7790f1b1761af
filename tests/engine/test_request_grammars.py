"""Answers under grammars: they match, end where the grammar ends, and depend on their request alone."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistralrs.engine.admission import check_request
from mistralrs.engine.config import EngineConfig, Request, SamplingParams
from mistralrs.engine.engine import Engine
from mistralrs.engine.events import Delta, Failed, Finished, Stream
from mistralrs.engine.grammar_compiler import OnCompiled
from mistralrs.errors import EngineError, RequestError
from mistralrs.grammar.grammar_text import GrammarText
from mistralrs.ops.kv_groups import KvGroup
from tests.engine.fakes import EOS, VOCAB, FakeRunner, FakeTokenizer, Turnstile
from tests.engine.test_engine import CONFIG, collect, serving
from tests.engine.test_speculation import GUESSING, LOOSE, alone, ask

SAMPLED = SamplingParams(temperature=1.5, top_k=30, max_tokens=40)
PROMPT = tuple(range(20, 45))
PATTERNS = ("(ab|cd){2,5}e", "abcdefgh", "[a-m]{3,9}", "(abcde|abcdf)(gh)?", "a+", "(bad|badge|bed){1,3}", "é[ab]*")


def regex(pattern: str) -> GrammarText:
    return GrammarText("regex", pattern)


def request(pattern: str, *, grammar: GrammarText | None = None, **sampling: Any) -> Request:
    return Request(PROMPT, replace(SAMPLED, **sampling), grammar=grammar or regex(pattern))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("logprobs", [None, 1])
def test_a_finished_answer_matches(pattern: str, logprobs: int | None) -> None:
    """Whether forced tokens have steps of their own, as log-probabilities ask for, or not."""
    reasons = set()
    with serving(eos_bias=2.0) as (engine, _):
        for seed in range(12):
            text, tokens, end = collect(engine.submit(request(pattern, seed=seed, logprobs=logprobs)))
            assert isinstance(end, Finished), end
            reasons.add(end.reason)
            assert (end.reason == "stop") == bool(re.fullmatch(pattern, text)), text
            assert end.reason == "stop" or len(tokens) == 40
            assert end.usage.completion_tokens - len(tokens) in (0, 1)
    assert "stop" in reasons


def test_an_answer_ends_at_once_where_nothing_may_follow() -> None:
    """Without an end token, and also where max_tokens would end it; before that it is cut."""
    with serving() as (engine, _):
        for max_tokens, reason in ((None, "stop"), (9, "stop"), (8, "stop"), (7, "length"), (1, "length")):
            text, tokens, end = collect(engine.submit(request("abcdefgh", max_tokens=max_tokens)))
            assert isinstance(end, Finished)
            assert (end.reason, text) == (reason, "abcdefgh"[:max_tokens])
            assert end.usage.completion_tokens == len(tokens)


def test_the_first_token_may_be_the_end() -> None:
    for pattern in ("", "a?"):
        with serving(eos_bias=200.0) as (engine, _):
            text, tokens, end = collect(engine.submit(request(pattern)))
            assert isinstance(end, Finished)
            assert (text, tokens, end.reason, end.usage.completion_tokens) == ("", [], "stop", 1)


def test_forced_tokens_take_no_step_each() -> None:
    with serving() as (engine, runner):
        _, tokens, _ = collect(engine.submit(request("abcdefgh[ab]abcdefgh")))
        assert (len(tokens), len(runner.batches)) == (17, 2)
        assert [len(batch.tokens) for batch in runner.batches] == [len(PROMPT), 8]
        runner.batches.clear()
        _, same, _ = collect(engine.submit(request("abcdefgh[ab]abcdefgh", logprobs=0)))
        assert (same, len(runner.batches)) == (tokens, 17)
        assert (engine.stats().completion_tokens, engine.stats().forced_tokens) == (34, 16)


def test_log_probabilities_are_those_of_the_model() -> None:
    """Forced tokens have some as well, and the grammar does not change them."""
    with serving() as (engine, _):
        events = list(engine.submit(request("abc", logprobs=0)))
        tokens = [token for event in events if isinstance(event, Delta) for token in event.tokens]
        values = [each.logprob for event in events if isinstance(event, Delta) for each in event.logprobs]
        scored = Request((*PROMPT, *tokens), replace(SAMPLED, max_tokens=0), prompt_logprobs=0)
        (prompt, _) = list(engine.submit(scored))
    assert len(tokens) == len(values) == 3
    assert [each.logprob for each in prompt.logprobs[-3:]] == values  # type: ignore[union-attr]


def test_min_tokens_keeps_a_grammar_open_or_fails_by_name() -> None:
    with serving(eos_bias=200.0) as (engine, _):
        text, tokens, _ = collect(engine.submit(request("a*", min_tokens=5)))
        assert (text, len(tokens)) == ("aaaaa", 5)
        for pattern in ("abc", "a?", "[ab]{3}"):
            _, _, end = collect(engine.submit(request(pattern, min_tokens=5)))
            assert isinstance(end, Failed), pattern
            assert isinstance(end.error, RequestError)
            assert (end.error.code, end.error.param) == ("grammar_failed", "min_tokens")
        assert collect(engine.submit(request("abcde", min_tokens=5)))[0] == "abcde"


def test_an_ignored_end_token_is_allowed_only_where_nothing_else_is() -> None:
    with serving(eos_bias=200.0) as (engine, _):
        for pattern, expected, reason in (("a*", "a" * 40, "length"), ("a{3,5}", "a" * 5, "stop"), ("", "", "stop")):
            text, _, end = collect(engine.submit(request(pattern, ignore_eos=True)))
            assert isinstance(end, Finished)
            assert (text, end.reason) == (expected, reason)
        stopping = request("a*", ignore_eos=True, stop_token_ids=(EOS,))
        assert collect(engine.submit(stopping))[0] == ""


def test_a_bias_chooses_among_what_the_grammar_allows() -> None:
    banned = tuple((token, -1e30) for token in range(VOCAB))
    with serving() as (engine, _):
        text, _, end = collect(engine.submit(request("(ab|cd)+e", logit_bias=banned, temperature=0.0)))
        assert isinstance(end, Finished)
        assert re.fullmatch("(ab|cd)+e?", text) or end.reason == "length"


@pytest.mark.parametrize("stop", ["cd", "abcde", "h", "gh"])
def test_stop_strings_end_forced_text_too(stop: str) -> None:
    with serving() as (engine, _):
        text, _, end = collect(engine.submit(request("abcdefgh[ab]", stop=(stop,))))
        assert isinstance(end, Finished)
        assert (text, end.reason) == ("abcdefgh"[: "abcdefgh".index(stop)], "stop")


def test_names_of_spelled_tokens_are_text() -> None:
    """Also of the end token: the model then chooses it where the grammar would end the answer by itself."""
    with serving() as (engine, _):
        spelled = replace(request("abc"), spelled_tokens=frozenset({EOS}))
        text, tokens, end = collect(engine.submit(spelled))
        assert (text, len(tokens), end.usage.completion_tokens) == ("abc<end>", 3, 4)
    with serving(eos_bias=200.0) as (engine, _):
        free = Request(PROMPT, SAMPLED, spelled_tokens=frozenset({EOS}))
        assert collect(engine.submit(free))[:2] == ("<end>", [])


def test_a_grammar_that_does_not_compile_fails_its_request_alone() -> None:
    with serving() as (engine, _):
        streams = [engine.submit(each) for each in (request("a("), request("abc"), request("(?=a)"))]
        first, second, third = (collect(stream) for stream in streams)
        assert second[0] == "abc"
        for _, _, end in (first, third):
            assert isinstance(end, Failed)
            assert isinstance(end.error, RequestError)
            assert end.error.code == "invalid_grammar"


@pytest.mark.parametrize("refused", ["_grammars", "_step_masks"])
def test_a_system_without_another_thread_fails_the_request_alone(refused: str) -> None:
    def submit(*call: object) -> None:
        raise RuntimeError("can't start new thread")

    with serving() as (engine, _):
        place = "_pool" if refused == "_grammars" else "_thread"
        threads = getattr(getattr(engine._core, refused), place)
        usual, threads.submit = threads.submit, submit
        _, _, end = collect(engine.submit(request("abc")))
        assert isinstance(end, Failed)
        assert "can't start new thread" in end.error.message
        threads.submit = usual
        assert collect(engine.submit(request("abc")))[0] == "abc"


def test_an_answer_that_cannot_be_completed_fails_alone() -> None:
    dead = GrammarText("lark", "start: A | B C\nA: /aaa/\nB: /b/\nC: /x/ & /y/")
    with serving() as (engine, _):
        streams = [engine.submit(request("", grammar=dead, seed=seed)) for seed in range(8)]
        streams.append(engine.submit(request("(ab|cd)+e")))
        *ends, last = [collect(stream)[2] for stream in streams]
    assert isinstance(last, Finished)
    failed = [end for end in ends if isinstance(end, Failed)]
    assert 0 < len(failed) < len(ends)
    assert all(isinstance(end.error, RequestError) and end.error.code == "grammar_failed" for end in failed)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("constraint.GrammarConstraint.accept", RequestError("too expensive", code="grammar_failed"), "too expensive"),
        ("constraint.GrammarConstraint.check", RequestError("a dead end", code="grammar_failed"), "a dead end"),
        ("constraint.GrammarConstraint.accept", KeyError("bug"), "KeyError"),
        ("constraint.MaskExecutor.masks", KeyError("bug"), "the masks of the grammar failed: KeyError"),
        ("compile_grammar.GrammarCache.get", KeyError("bug"), "the grammar could not be compiled: KeyError"),
    ],
)
def test_a_grammar_that_raises_fails_its_request_alone(
    monkeypatch: pytest.MonkeyPatch, name: str, error: Exception, message: str
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise error

    with serving() as (engine, _):
        monkeypatch.setattr(f"mistralrs.grammar.{name}", fail)
        streams = [engine.submit(request("[ab]+")), engine.submit(Request(PROMPT, SAMPLED))]
        (text, _, end), (_, tokens, other) = (collect(stream) for stream in streams)
        assert isinstance(end, Failed)
        assert message in end.error.message
        assert text == ""
        assert isinstance(other, Finished)
        assert len(tokens) == 40
        monkeypatch.undo()
        assert collect(engine.submit(request("abc")))[0] == "abc"


@contextmanager
def held(engine: Engine) -> Iterator[threading.Event]:
    """Holds compilations until the event is set."""
    gate, run = threading.Event(), engine._core._grammars._run

    def wait(request: Request, on_compiled: OnCompiled) -> None:
        assert gate.wait(60)
        run(request, on_compiled)

    engine._core._grammars._run = wait  # type: ignore[method-assign]
    yield gate
    gate.set()


def test_others_go_on_while_a_grammar_compiles() -> None:
    with serving() as (engine, _), held(engine) as gate:
        waiting = engine.submit(request("abc"))
        assert len(collect(engine.submit(Request(PROMPT, SAMPLED)))[1]) == 40
        assert (engine.stats().running, engine.stats().waiting) == (0, 1)
        gate.set()
        assert collect(waiting)[0] == "abc"


def test_a_request_can_be_cancelled_while_its_grammar_compiles() -> None:
    with serving() as (engine, _), held(engine) as gate:
        stream = engine.submit(request("abc"))
        stream.cancel()
        _, _, end = collect(stream)
        assert isinstance(end, Finished)
        assert end.reason == "cancelled"
        gate.set()
        assert collect(engine.submit(request("abcd")))[0] == "abcd"
        assert engine.stats().waiting == 0


def test_a_deadline_ends_a_request_whose_grammar_compiles() -> None:
    """An idle engine wakes for it."""
    with serving() as (engine, _), held(engine):
        _, _, end = collect(engine.submit(replace(request("abc"), deadline_s=0.05)))
        assert isinstance(end, Failed)
        assert isinstance(end.error, EngineError)
        assert end.error.code == "deadline_exceeded"


def test_a_closed_engine_ends_requests_whose_grammars_compile() -> None:
    with serving() as (engine, _), held(engine) as gate:
        stream = engine.submit(request("abc"))
        engine.close()
        assert collect(stream)[2].reason == "cancelled"  # type: ignore[union-attr]
        gate.set()


def test_a_cancelled_step_moves_no_grammar() -> None:
    """Of two sequences, one goes on after the other was cancelled in the middle of a step."""
    expected = alone(CONFIG, [request("(ab|cd){9}e")], habit=0.0)
    with serving() as (engine, runner):
        turnstile = Turnstile(runner)
        streams = [engine.submit(request("(ab|cd){9}e")) for _ in range(2)]
        for number in range(400):
            if number == 3:
                streams[1].cancel()
            turnstile.let_through()
        assert collect(streams[0])[0] == expected[0].events[-1].text  # type: ignore[union-attr]


def test_a_model_with_fewer_logits_than_tokens() -> None:
    """Tokens without logits are neither allowed nor forced."""
    for width in (20, 31, 32, 33):
        runner = FakeRunner(block_size=CONFIG.block_size)
        runner.vocab_size = width
        with closing(Engine(runner, FakeTokenizer(), CONFIG)) as engine:  # type: ignore[arg-type]
            grammar = regex("ab" if width > 27 else "d")
            text, tokens, end = collect(engine.submit(Request((18, 19), SAMPLED, grammar=grammar)))
            assert isinstance(end, Finished), end
            assert text == grammar.text
            assert max(tokens) < width


class SpacedTokenizer(FakeTokenizer):
    """Writes a space in front of a text, and has words with one."""

    space_prefix = True

    def token_bytes(self, token: int) -> bytes:
        return b" ab" if token == 40 else super().token_bytes(token)


def test_a_grammar_keeps_the_space_that_an_answer_begins_with() -> None:
    engine = Engine(FakeRunner(block_size=CONFIG.block_size), SpacedTokenizer(), CONFIG)  # type: ignore[arg-type]
    with closing(engine):
        texts = [collect(engine.submit(replace(request(text), trim_space=True)))[0] for text in (" abc", "abc")]
    assert texts == [" abc", "abc"]


def test_an_embedding_has_no_grammar() -> None:
    with pytest.raises(RequestError, match="embedding") as caught:
        check_request(replace(request("a"), pooling="last"), VOCAB, max_adapters=0)
    assert caught.value.param == "grammar"


GRAMMARS = st.one_of(
    st.none(),
    st.sampled_from(PATTERNS).map(regex),
    st.sampled_from(['["abc", "abd", "abcdef"]', '["ab", "m"]']).map(lambda text: GrammarText("choice", text)),
    st.just(GrammarText("lark", 'start: x+ "e"\nx: "ab" x? "cd" | /m[a-c]/')),
)
REQUESTS = st.builds(
    lambda length, grammar, **sampling: Request(
        PROMPT[:length] * 2, replace(SAMPLED, **sampling), grammar=grammar, prompt_logprobs=length % 2 or None
    ),
    st.integers(1, 25),
    GRAMMARS,
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    top_k=st.sampled_from([0, 5]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 50),
    max_tokens=st.integers(1, 40),
    min_tokens=st.sampled_from([0, 0, 1]),
    logprobs=st.sampled_from([None, None, 2]),
    ignore_eos=st.booleans(),
    stop=st.sampled_from([(), (), ("cda",), ("ab",)]),
)


@settings(max_examples=40, deadline=None)
@given(
    requests=st.lists(REQUESTS, min_size=1, max_size=5),
    windows=st.sampled_from([(0,), (0, 5), (7,)]),
    num_blocks=st.sampled_from([60, 38]),
    eos_bias=st.sampled_from([-100.0, 2.0]),
    max_draft=st.sampled_from([0, 3, 15]),
    max_batch_tokens=st.sampled_from([3, 8, 32]),
    max_seqs=st.integers(1, 4),
    prefix_cache_n=st.sampled_from([0, 2]),
    no_kv_cache=st.booleans(),
)
def test_an_answer_depends_on_its_request_alone(
    requests: list[Request], windows: tuple[int, ...], num_blocks: int, eos_bias: float, **changes: Any
) -> None:
    """With drafts and without, beside other grammars, in chunks, preempted, after cache hits."""
    groups = tuple(KvGroup(num_blocks, window) for window in windows)
    config = replace(CONFIG, kv_groups=groups, **changes)
    plain = replace(config, no_kv_cache=False)
    expected = alone(plain, requests, eos_bias=eos_bias, habit=LOOSE)
    assert ask(config, requests, eos_bias=eos_bias, habit=LOOSE)[0] == expected


def test_drafts_are_made_and_accepted_under_grammars() -> None:
    """Checks that the comparison above covers them."""
    requests = [request("[a-h]{59}i", temperature=0.0, max_tokens=60, seed=seed) for seed in range(2)]
    answers, usages, _ = ask(GUESSING, requests, habit=1000.0)
    assert answers == alone(GUESSING, requests, habit=1000.0)
    assert sum(usage.accepted_tokens for usage in usages) > 10


def tokens_of(stream: Stream) -> list[int]:
    return collect(stream)[1]


def test_log_probabilities_change_no_answer() -> None:
    config: EngineConfig = replace(GUESSING, max_draft=7)
    for pattern in PATTERNS:
        with serving(config, eos_bias=2.0) as (engine, _):
            for seed in range(4):
                plain, scored = (engine.submit(request(pattern, seed=seed, logprobs=count)) for count in (None, 0))
                assert tokens_of(plain) == tokens_of(scored)
