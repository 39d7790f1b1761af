"""Grammars on a real model: what an answer is does not depend on how it was served, bit for bit."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.local_model import LocalModel
from mistralrs.engine.config import Request, SamplingParams, ThinkingBudget
from mistralrs.engine.engine import Engine
from mistralrs.engine.events import Usage
from mistralrs.grammar.grammar_text import GrammarText
from tests.engine.fakes import after_each_step
from tests.parity.test_engine_laws import Answer, collect

pytestmark = [pytest.mark.native, pytest.mark.model]

SAMPLING = SamplingParams(temperature=0.9, top_p=0.95, max_tokens=40)
PERSON = {
    "type": "object",
    "properties": {
        "first_name": {"type": "string", "maxLength": 12},
        "profession": {"enum": ["carpenter", "chemist", "choreographer"]},
        "year_of_birth": {"type": "integer", "minimum": 1900, "maximum": 2020},
        "country_of_residence": {"const": "The United Kingdom"},
    },
    "required": ["first_name", "profession", "year_of_birth", "country_of_residence"],
    "additionalProperties": False,
}
SQL = 'start: "SELECT " name (", " name)* " FROM " name\nname: /[a-z]{2,8}/'
GRAMMARS: list[GrammarText | None] = [
    None,
    GrammarText("json_schema", json.dumps(PERSON)),
    GrammarText("regex", r"(\d{3}-){2}\d{4}"),
    GrammarText("choice", '["yes", "no", "yes, of course", "no, never"]'),
    GrammarText("lark", SQL),
    GrammarText("regex", "The quick brown fox jumps over the lazy (dog|cat|fox)\\."),
    GrammarText("json_object", ""),
    GrammarText("gbnf", 'root ::= "- " word ("\\n- " word){2,4}\nword ::= [a-zé]+'),
]
PREFIX = "Tell me in two sentences why the sky is blue and the grass is green."


@pytest.fixture(scope="module")
def requests(default_model: Path) -> list[Request]:
    """Sixteen: every grammar drawn and greedy, with another prompt each, some with log-probabilities, some thinking."""
    with load(default_model) as model:
        closing = tuple(model.served.tokenizer.encode("\n</think>\n\n", special=False))
        budget = ThinkingBudget(6, "<think>", "</think>", closing)
        prompts = [
            model.tokens_of([{"role": "user", "content": f"{PREFIX} {number}, {number}, {number}"}])
            for number in range(16)
        ]
    return [
        Request(
            prompt,
            replace(
                SAMPLING, seed=number, temperature=0.0 if number >= 8 else 0.9, logprobs=(None, None, 2)[number % 3]
            ),
            grammar=GRAMMARS[number % 8],
            thinking=replace(budget, is_open=number >= 8) if number % 8 == 0 else None,
        )
        for number, prompt in enumerate(prompts)
    ]


def load(path: Path, **options: Any) -> LocalModel:
    plain = LoadOptions(threads=2, prefix_cache_n=0, max_draft=0)
    return LocalModel.load(ModelSource(None, path, None, None), replace(plain, **options))


def preempting(engine: Engine) -> Callable[[], None]:
    """Returns a call after each step that preempts every fifth step: nobody can say when blocks run out."""
    last = 0

    def after_step() -> None:
        nonlocal last
        steps, scheduler = engine.stats().steps, engine._core.scheduler
        if steps >= last + 5 and len(scheduler.running) > 1:
            last = steps
            scheduler._preempt(scheduler.running[-1])

    return after_step


def ask_at_once(model: LocalModel, requests: list[Request]) -> list[tuple[Answer, Usage]]:
    streams = [model.engine.submit(request) for request in requests]
    return [collect(stream) for stream in streams]


@pytest.fixture(scope="module")
def expected(default_model: Path, requests: list[Request]) -> Iterator[list[Answer]]:
    """Every request alone, without draft tokens and reuse, its prompt in one chunk."""
    with load(default_model) as model:
        yield [collect(model.engine.submit(request))[0] for request in requests]


def test_answers_match_their_grammars(expected: list[Answer], requests: list[Request]) -> None:
    finished = 0
    for answer, request in zip(expected, requests, strict=True):
        assert answer.reason in ("stop", "length")
        assert request.sampling.logprobs is None or len(answer.logprobs) == len(answer.tokens)
        if request.thinking is not None and request.thinking.is_open:
            assert "\n</think>\n\n" in answer.text
        if answer.reason == "length" or request.grammar is None:
            continue
        finished += 1
        match request.grammar.kind:
            case "json_schema":
                assert list(json.loads(answer.text)) == PERSON["required"]
            case "json_object":
                assert isinstance(json.loads(answer.text), dict)
            case "choice":
                assert answer.text in json.loads(request.grammar.text)
            case "regex":
                assert re.fullmatch(request.grammar.text, answer.text)
    assert finished > 6


@pytest.mark.parametrize(
    "options",
    [
        {"max_draft": 3, "max_batch_tokens": 17, "prefix_cache_n": 16},
        {"max_draft": 7},
    ],
    ids=["chunks", "preempted"],
)
def test_an_answer_depends_on_its_request_alone(
    default_model: Path, requests: list[Request], expected: list[Answer], options: dict[str, Any]
) -> None:
    """In a batch of 16 with eight grammars, with draft tokens, in chunks, after cache hits, and preempted."""
    preempts = "prefix_cache_n" not in options
    with load(default_model, **options) as model:
        if preempts:
            after_each_step(model.engine, preempting(model.engine))
        for _ in range(2):  # the second time all grammars are compiled, so that all requests run at once
            results = ask_at_once(model, requests)
            assert [answer for answer, _ in results] == expected
        stats = model.stats()
    assert (stats.preemptions > 0) is preempts
    assert (sum(usage.cached_tokens for _, usage in results) > 0) is not preempts


def test_drafts_alone(default_model: Path, requests: list[Request], expected: list[Answer]) -> None:
    """One sequence has the most room for draft tokens."""
    with load(default_model, max_draft=15) as model:
        for request, answer in list(zip(requests, expected, strict=True))[::3]:
            assert collect(model.engine.submit(request))[0] == answer
        assert model.stats().drafted_tokens > 0
