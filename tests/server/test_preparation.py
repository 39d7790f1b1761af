"""The work on a body before it reaches the engine holds up no other request, whatever body, template or tokenizer."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from mistralrs.api.served_model import ServedModel
from mistralrs.errors import RequestError
from mistralrs.grammar import compile_grammar
from mistralrs.server import preparation
from mistralrs.server.preparation import (
    COMPILING,
    LARGE_BODY,
    MAX_CONTAINERS,
    MAX_STRINGS,
    MAX_VALUES,
    PREPARING,
    Preparation,
    check_shape,
)
from mistralrs.server.responses import to_json, to_json_in_slices
from mistralrs.server.tokens import MAX_TEXT_BYTES
from mistralrs.text.chat_template import ChatTemplate
from mistralrs.text.tokenizer import Tokenizer
from mistralrs.text.worker import CancelledError, check_cancelled
from tests.server.fake import FakeEngine
from tests.server.harness import CHAT, COMPLETIONS, QUESTION, Served, fault, until
from tests.text.test_components import fields, split
from tests.text.test_worker import ENDLESS, hurried

pytestmark = pytest.mark.anyio
__all__ = ["hurried"]

DIGITS = "7" * 4_000_000
TOO_LONG: dict[str, dict[str, Any]] = {
    CHAT: {"messages": DIGITS},
    COMPLETIONS: {"prompt": ["7", DIGITS]},
    "/v1/embeddings": {"input": DIGITS},
}


@pytest.mark.parametrize("path", TOO_LONG)
async def test_a_prompt_that_is_far_too_long_is_refused_in_openais_words(server: Served, path: str) -> None:
    response = await server.post(path, TOO_LONG[path])
    assert response.status_code == 400
    error = fault(response)
    assert error["code"] == "context_length_exceeded"
    assert "resulted in at least" in error["message"]
    assert error["param"] == next(iter(TOO_LONG[path]))


@pytest.mark.parametrize(
    "body", [{"content": DIGITS}, {"messages": DIGITS}, {"prompt": "é" * (MAX_TEXT_BYTES // 2 + 1)}]
)
async def test_what_is_tokenized_at_once_is_bounded(server: Served, body: dict[str, Any]) -> None:
    response = await server.post("/tokenize", body)
    assert response.status_code == 413
    assert f"more than {MAX_TEXT_BYTES} are not tokenized at once" in fault(response)["message"]


async def test_the_longest_that_is_tokenized(server: Served, model: ServedModel) -> None:
    answer = (await server.post("/tokenize", {"content": "the 7" * (MAX_TEXT_BYTES // 5)})).json()
    assert (
        answer["count"]
        == len(answer["tokens"])
        == MAX_TEXT_BYTES // 5 * len(model.tokenizer.encode("the 7", special=False))
    )


async def test_truncation_keeps_the_end_of_what_is_far_too_long(engine: FakeEngine) -> None:
    from mistralrs.server.settings import ServerSettings

    server = Served(engine, ServerSettings(truncate=True))
    response = await server.post(COMPLETIONS, {"prompt": DIGITS + "the end", "max_tokens": 2, "echo": True})
    [request] = engine.submitted
    assert engine.model.tokenizer.decode(request.prompt).endswith("777the end")
    assert len(request.prompt) == engine.model.max_len - 2
    assert 0 < int(response.headers["x-mistralrs-truncated"]) < 4_000_007
    assert len(response.json()["choices"][0]["text"]) < 10 * engine.model.max_len


async def test_a_template_that_explodes_is_an_error_of_the_request(model: ServedModel, hurried: None) -> None:
    server = Served(FakeEngine(replace(model, template=ChatTemplate(ENDLESS, bos="", eos=""))))
    for path, body in ((CHAT, QUESTION), ("/apply-template", QUESTION), ("/tokenize", QUESTION)):
        response = await server.post(path, body)
        assert response.status_code == 400
        assert "the chat template took more than 0.5 s" in fault(response)["message"]
    assert (await server.post(COMPLETIONS, {"prompt": "hi"})).status_code == 200


async def test_a_tokenizer_that_panics_is_an_error_of_the_request(model: ServedModel) -> None:
    tokenizer = Tokenizer.from_json(json.dumps(fields(pre_tokenizer=split("(a+)+$"))))
    server = Served(FakeEngine(replace(model, tokenizer=tokenizer)))
    for path, body in ((CHAT, {"messages": "a" * 200 + "b"}), ("/tokenize", {"content": "a" * 200 + "b"})):
        response = await server.post(path, body)
        assert response.status_code == 400
        assert "retry-limit-in-match" in fault(response)["message"]
    assert (await server.post(CHAT, {"messages": "b"})).status_code == 200


async def test_others_are_served_meanwhile(model: ServedModel) -> None:
    server = Served(FakeEngine(replace(model, template=ChatTemplate(ENDLESS, bos="", eos=""))))
    asked = [asyncio.create_task(server.chat()) for _ in range(2 * PREPARING)]
    await asyncio.sleep(0.3)
    for _ in range(20):
        assert (await server.get("/health")).status_code == 200
    assert not any(each.done() for each in asked)
    for each in asked:
        each.cancel()
    await asyncio.gather(*asked, return_exceptions=True)


def asking_for(text: str) -> dict[str, Any]:
    return {"grammar": {"type": "regex", "value": text}}


@pytest.fixture
def slow_grammars(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Grammars whose text begins with ``slow`` are checked for as long as the event is not set."""
    release = threading.Event()
    check = compile_grammar.validate_grammar

    def validate(kind: str, text: str, **options: Any) -> tuple[str, ...]:
        if text.startswith("slow"):
            release.wait(60)
        return check(kind, text, **options)

    monkeypatch.setattr(compile_grammar, "validate_grammar", validate)
    yield release
    release.set()


async def test_a_slow_grammar_holds_up_new_grammars_only(
    server: Served, engine: FakeEngine, slow_grammars: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = asking_for("known")
    assert (await server.chat(**known)).status_code == 200
    asked = [asyncio.create_task(server.chat(**asking_for("slow"))) for _ in range(COMPILING + PREPARING + 1)]
    await asyncio.sleep(0.1)
    new = asyncio.create_task(server.chat(**asking_for("new")))
    for asking, status in (({}, 200), (known, 200), ({"grammar": 3}, 400)):
        assert (await server.chat(**asking)).status_code == status
    assert (await server.post(COMPLETIONS, {"prompt": "hi"})).status_code == 200
    assert not any(each.done() for each in (*asked, new))
    monkeypatch.setattr(preparation, "MAX_COMPILING", len(asked) + 1)
    refused = await server.chat(**asking_for("one more"))
    assert (refused.status_code, fault(refused)["code"], refused.headers["retry-after"]) == (429, "queue_full", "1")
    slow_grammars.set()
    assert [(await each).status_code for each in (*asked, new)] == [200] * (len(asked) + 1)
    grammars = [request.grammar.text for request in engine.submitted if request.grammar]
    assert sorted(grammars) == sorted(["known", "known", "new", *["slow"] * len(asked)])


async def test_who_leaves_does_not_wait_for_a_grammar(
    server: Served, engine: FakeEngine, slow_grammars: threading.Event
) -> None:
    asked = [asyncio.create_task(server.chat(**asking_for("slow too"))) for _ in range(COMPILING + 1)]
    await asyncio.sleep(0.1)
    for each in asked:
        each.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    slow_grammars.set()
    assert (await server.chat(**asking_for("another"))).status_code == 200
    assert len(engine.submitted) == 1


# threads


async def test_who_goes_away_frees_the_thread_and_who_waits_is_never_served() -> None:
    threads = Preparation()
    ended, begun = threading.Event(), []

    def work() -> None:
        begun.append(1)
        try:
            while True:
                check_cancelled()
                time.sleep(0.01)
        except CancelledError:
            ended.set()
            raise

    asked = [asyncio.create_task(threads.run(work, size=1)) for _ in range(PREPARING + 1)]
    await until(lambda: len(begun) == PREPARING)
    for each in reversed(asked):
        each.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    await until(ended.is_set)
    assert await threads.run(lambda: 7, size=1) == 7
    assert len(begun) == PREPARING


async def test_small_bodies_do_not_wait_for_large_ones() -> None:
    threads = Preparation()
    release = threading.Event()
    large = [asyncio.create_task(threads.run(release.wait, size=LARGE_BODY)) for _ in range(3)]
    assert await threads.run(lambda: 7, size=LARGE_BODY - 1) == 7
    release.set()
    assert await asyncio.gather(*large) == [True] * 3


# shapes


def listed(item: str, count: int) -> bytes:
    return ("[" + ",".join([item] * count) + "]").encode()


@pytest.mark.parametrize(
    ("body", "things"),
    [
        (listed("{}", MAX_CONTAINERS), "objects and lists"),
        (b"[" * (MAX_CONTAINERS + 1), "objects and lists"),
        (listed("1", MAX_VALUES + 2), "values"),
        (listed('""', MAX_STRINGS + 30_000) + b"[" * MAX_CONTAINERS, "strings"),
        (listed('"\\"{"', 30_000) + listed("{}", MAX_CONTAINERS), "objects and lists"),
    ],
)
def test_a_body_of_too_many_values_is_refused(body: bytes, things: str) -> None:
    with pytest.raises(RequestError, match=rf"the body holds more than \d+ {things}$"):
        check_shape(body)


@pytest.mark.parametrize(
    "body",
    [
        listed("{}", MAX_CONTAINERS - 1),
        listed("1", MAX_VALUES),
        json.dumps({"prompt": '{["\\' * 100_000}).encode(),
        json.dumps({"prompt": "a, b" * 800_000}).encode(),
        b"{" + b'"' * 100 + b"{" * 10,
    ],
)
def test_texts_may_hold_what_they_like(body: bytes) -> None:
    check_shape(body)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"a": 1, "b": "x", "c": None},
        {"tokens": list(range(100_000)), "count": 7},
        {"data": [{"id": number, "piece": [1.5, "é"]} for number in range(1000)], "x": []},
    ],
)
def test_json_in_slices_is_json(body: dict[str, object]) -> None:
    assert to_json_in_slices(body) == to_json(body)
