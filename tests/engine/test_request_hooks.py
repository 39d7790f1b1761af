"""Hooks of a request: they see its tokens, change its logits, end it, and fail it alone."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from mistralrs.engine.admission import check_request
from mistralrs.engine.config import Request, SamplingParams
from mistralrs.engine.events import Delta, Failed, Finished
from mistralrs.engine.request_hooks import HookNames, Hooks, NamedHooks
from mistralrs.errors import EngineError, RequestError
from mistralrs.grammar.grammar_text import GrammarText
from tests.engine.fakes import EOS, VOCAB
from tests.engine.test_engine import CONFIG, collect, serving
from tests.engine.test_speculation import GUESSING

SAMPLED = SamplingParams(temperature=1.5, top_k=30, max_tokens=20)
PROMPT = tuple(range(20, 45))


def hooked(*processors: Any, rules: Sequence[Any] = (), **sampling: Any) -> Request:
    hooks = Hooks(logits_processors=processors, stopping_rules=tuple(rules))
    return Request(PROMPT, replace(SAMPLED, **sampling), hooks=hooks)


def only(wanted: int) -> Any:
    def allow(tokens: Sequence[int], row: Any) -> None:
        kept = row[wanted]
        row[:] = -math.inf
        row[wanted] = kept

    return allow


def test_a_processor_sees_every_token_once_and_changes_the_logits() -> None:
    """Also with an engine that drafts: draft tokens may never come."""
    seen: list[tuple[int, ...]] = []

    def prefer(tokens: Sequence[int], row: Any) -> None:
        assert row.shape == (VOCAB,)
        assert row.dtype.name == "float32"
        seen.append(tuple(tokens))
        row[30 + len(seen) % 2] += 200

    with serving(GUESSING) as (engine, _):
        _, tokens, end = collect(engine.submit(hooked(prefer)))
        assert engine.stats().drafted_tokens == 0
    assert isinstance(end, Finished)
    assert tokens == [31, 30] * 10
    assert seen == [(*PROMPT, *tokens[:count]) for count in range(20)]


def test_processors_come_in_order_and_cannot_widen_a_grammar() -> None:
    def bias(token: int, value: float) -> Any:
        def add(tokens: Sequence[int], row: Any) -> None:
            row[token] += value

        return add

    with serving() as (engine, _):
        assert collect(engine.submit(hooked(only(40), only(40))))[1] == [40] * 20
        grammar = GrammarText("regex", "(ab|cd)+e")
        text, _, end = collect(engine.submit(replace(hooked(bias(40, 900.0), bias(30, 500.0)), grammar=grammar)))
        assert isinstance(end, Finished)
        assert re.fullmatch("(ab|cd)+e?", text) or end.reason == "length"
        closed = collect(engine.submit(replace(hooked(only(40)), grammar=grammar)))[2]
        assert isinstance(closed, Failed)
        assert "every token that the grammar allows is excluded" in closed.error.message


def test_log_probabilities_are_those_before_hooks() -> None:
    with serving() as (engine, _):
        events = list(engine.submit(hooked(only(40), logprobs=3, max_tokens=1)))
        plain = list(engine.submit(Request(PROMPT, replace(SAMPLED, logprobs=3, max_tokens=1))))
    [changed], [same] = ([e.logprobs[0] for e in events_ if isinstance(e, Delta)] for events_ in (events, plain))
    assert changed.token == 40
    assert changed.top == same.top


@pytest.mark.parametrize("max_tokens", [9, 4])
def test_a_rule_ends_the_answer_with_its_token(max_tokens: int) -> None:
    asked: list[int] = []

    def rule(tokens: Sequence[int]) -> bool:
        asked.append(len(tokens) - len(PROMPT))
        return len(tokens) == len(PROMPT) + 4

    with serving() as (engine, _):
        plain = collect(engine.submit(Request(PROMPT, SAMPLED)))
        text, tokens, end = collect(engine.submit(hooked(rules=[lambda tokens: False, rule], max_tokens=max_tokens)))
    assert isinstance(end, Finished)
    assert (tokens, end.reason, asked) == (plain[1][:4], "stop", [1, 2, 3, 4])
    assert end.usage.completion_tokens == 4
    assert len(text) == len(plain[0][: len(text)])


def test_rules_see_forced_tokens() -> None:
    request = replace(
        hooked(rules=[lambda tokens: len(tokens) == len(PROMPT) + 3]), grammar=GrammarText("regex", "abcdef")
    )
    with serving() as (engine, _):
        assert collect(engine.submit(request))[0] == "abc"


def raises(error: BaseException) -> Any:
    def fail(*args: object) -> bool:
        raise error

    return fail


def writes(value: float) -> Any:
    def write(tokens: Sequence[int], row: Any) -> None:
        row[:] = value

    return write


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (hooked(raises(ValueError("no luck"))), "the logits processor fail failed: ValueError: no luck"),
        (hooked(raises(SystemExit(3))), "the logits processor fail failed: SystemExit: 3"),
        (hooked(writes(math.nan)), "the logits processor write failed: ValueError: the largest of its logits is nan"),
        (hooked(writes(-math.inf)), "the largest of its logits is -inf"),
        (hooked(rules=[raises(KeyError("x"))]), "the stopping rule fail failed: KeyError: 'x'"),
    ],
    ids=["value error", "exit", "nan", "infinity", "rule"],
)
def test_a_hook_that_fails_fails_its_request_alone(request_: Request, message: str) -> None:
    plain = Request(PROMPT, SAMPLED)
    with serving() as (engine, _):
        expected = collect(engine.submit(plain))[:2]
        streams = [engine.submit(each) for each in (plain, request_, plain)]
        first, failed, last = (collect(stream) for stream in streams)
        assert first[:2] == last[:2] == expected
        assert isinstance(failed[2], Failed)
        assert isinstance(failed[2].error, EngineError)
        assert failed[2].error.code == "hook_failed"
        assert message in failed[2].error.message


def test_a_row_that_is_kept_changes_nothing_later() -> None:
    rows: list[Any] = []

    def keep(tokens: Sequence[int], row: Any) -> None:
        for old in rows:
            old[:] = math.nan
        rows.append(row)

    with serving() as (engine, _):
        assert collect(engine.submit(hooked(keep)))[:2] == collect(engine.submit(Request(PROMPT, SAMPLED)))[:2]


def test_hooks_and_end_tokens() -> None:
    with serving() as (engine, _):
        _, tokens, end = collect(engine.submit(hooked(only(EOS), rules=[raises(AssertionError("not asked"))])))
        assert isinstance(end, Finished)
        assert (tokens, end.reason) == ([], "stop")


def test_an_embedding_has_no_hooks() -> None:
    with pytest.raises(RequestError, match="embedding"):
        check_request(replace(hooked(), pooling="last"), VOCAB, max_adapters=CONFIG.max_adapters)


def test_named_hooks_are_the_functions() -> None:
    with serving(GUESSING) as (engine, _):
        engine.named_hooks = NamedHooks({"forty": only(40)}, {"thirty": lambda tokens: len(tokens) == 30})
        named = replace(hooked(), hooks=None, hook_names=HookNames(("forty",), ("thirty",)))
        assert collect(engine.submit(named))[1] == [40] * 5
        assert engine.stats().drafted_tokens == 0
        with pytest.raises(RequestError, match="no hook 'other'"):
            engine.submit(replace(named, hook_names=HookNames(("forty", "other"))))
        with pytest.raises(RequestError, match="not both"):
            engine.submit(replace(named, hooks=Hooks()))
        with pytest.raises(RequestError, match="embedding"):
            engine.submit(replace(named, pooling="last"))
