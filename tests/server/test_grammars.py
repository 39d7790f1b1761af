"""A real server with the default model: answers match what each field asks for, whole and streamed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.serving import RunningServer

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
QUESTION = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 60}
BEGINNING = {"prompt": "The capital of France is", "max_tokens": 60}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Lyon", "Paris"]}, "millions": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "millions"],
    "additionalProperties": False,
}
YEAR = "(19|20)[0-9]{2}"
SUM = "%%\nS: N | S '+' N ;\nN: '/[1-9][0-9]?/' ;"
CHOICES = ["an Eiffel Tower", "né"]

Check = Callable[[str], bool]


def obeys(text: str) -> bool:
    jsonschema.validate(json.loads(text), SCHEMA)
    return True


def compact(text: str) -> bool:
    return obeys(text) and text == json.dumps(json.loads(text), separators=(",", ":"))


def is_object(text: str) -> bool:
    return isinstance(json.loads(text), dict)


def matches(pattern: str) -> Check:
    return lambda text: re.fullmatch(pattern, text) is not None


def tagged(text: str) -> bool:
    """Every tag that is opened holds JSON of the schema and is closed."""
    return all(obeys(part.partition("</f>")[0]) and "</f>" in part for part in text.split("<f>")[1:])


FIELDS: dict[str, tuple[dict[str, Any], Check]] = {
    "openai": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}},
        obeys,
    ),
    "format": ({"format": json.dumps(SCHEMA)}, obeys),
    "structured": ({"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}}, compact),
    "regex": ({"grammar": {"type": "regex", "value": YEAR}}, matches(YEAR)),
    "yacc": ({"grammar": {"type": "yacc", "value": SUM}, "max_tokens": 12}, matches(r"[1-9][0-9]?(\+[1-9][0-9]?)*")),
    "gbnf": ({"grammar": 'root ::= " Lyon" | "Metz!"'}, matches(" Lyon|Metz!")),
    "lark": ({"guided_grammar": 'start: A\nA: "x"{2,3}'}, matches("xxx?")),
    "choice": ({"guided_choice": CHOICES}, CHOICES.__contains__),
    "control": ({"grammar": {"type": "lark", "value": 'start: "oui" <|im_end|>'}}, matches("oui")),
}
"""Fields, and whether a text is an answer to them; the model would say none of these by itself."""


@pytest.fixture(scope="module")
def server(default_model: Path) -> Iterator[RunningServer]:
    with RunningServer(environment={"MISTRALRS_DEFAULT_MODEL": str(default_model)}) as process:
        yield process
        assert process.until_quiet(20)
        assert process.stop() == 0


def whole(server: RunningServer, path: str, body: dict[str, Any]) -> list[tuple[str, str]]:
    """Texts and finish reasons of the choices."""
    status, answer = server.ask("POST", path, body)
    assert status == 200, answer
    texts = [choice["message"]["content"] if path == CHAT else choice["text"] for choice in answer["choices"]]
    return list(zip(texts, [choice["finish_reason"] for choice in answer["choices"]], strict=True))


def streamed(server: RunningServer, path: str, body: dict[str, Any]) -> list[tuple[str, str]]:
    status, text = server.ask("POST", path, {**body, "stream": True})
    assert status == 200, text
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    for line in text.splitlines():
        if not line.startswith("data: {"):
            continue
        for choice in json.loads(line.removeprefix("data: "))["choices"]:
            piece = choice["delta"].get("content", "") if path == CHAT else choice["text"]
            texts[choice["index"]] = texts.get(choice["index"], "") + piece
            reasons[choice["index"]] = choice["finish_reason"]
    return [(texts[index], reasons[index]) for index in sorted(texts)]


@pytest.mark.parametrize("name", FIELDS)
def test_an_answer_matches_whole_and_streamed(server: RunningServer, name: str) -> None:
    fields, check = FIELDS[name]
    for path, body in ((CHAT, QUESTION), (COMPLETIONS, BEGINNING)):
        asked = {**body, **fields, "temperature": 0.7, "seed": 3, "n": 2}
        answers = whole(server, path, asked)
        assert streamed(server, path, asked) == answers
        assert [reason for text, reason in answers if not (reason == "length" or check(text))] == []
        assert name == "yacc" or [reason for _, reason in answers] == ["stop", "stop"]


def test_objects_and_tags(server: RunningServer) -> None:
    structure = {"begin": "<f>", "schema": SCHEMA, "end": "</f>"}
    for format, check in (
        ({"type": "json_object"}, is_object),
        ({"type": "structural_tag", "structures": [structure], "triggers": ["<f>"]}, tagged),
    ):
        asked = {**QUESTION, "messages": "Write <f>.", "response_format": format, "temperature": 0, "max_tokens": 100}
        assert all(reason == "length" or check(text) for text, reason in whole(server, CHAT, asked))


def test_a_text_around_the_answer_is_not_the_grammars(server: RunningServer) -> None:
    asked = {**BEGINNING, "grammar": {"type": "regex", "value": YEAR}, "echo": True, "suffix": "!", "best_of": 3}
    [(text, reason)] = whole(server, COMPLETIONS, {**asked, "temperature": 1, "seed": 1})
    assert re.fullmatch(re.escape(str(BEGINNING["prompt"])) + YEAR + "!", text)
    assert reason == "stop"
    messages = [*QUESTION["messages"], {"role": "assistant", "content": "It was founded in"}]  # type: ignore[misc]
    asked = {**QUESTION, "messages": messages, "continue_final_message": True, "guided_regex": f" {YEAR}"}
    [(text, reason)] = whole(server, CHAT, asked)
    assert (bool(re.fullmatch(f" {YEAR}", text)), reason) == (True, "stop")


def test_an_answer_that_is_cut_says_so(server: RunningServer) -> None:
    [(text, reason)] = whole(server, CHAT, {**QUESTION, "json_schema": SCHEMA, "max_tokens": 3, "temperature": 0})
    assert (text[:1], reason) == ("{", "length")


def test_different_grammars_run_beside_each_other(server: RunningServer) -> None:
    def ask(number: int) -> tuple[str, str]:
        pattern = f"{number}[a-c]{{4}}" if number % 4 else ".*"
        asked = {**QUESTION, "guided_regex": pattern, "temperature": 1, "seed": number, "max_tokens": 12}
        [(text, reason)] = whole(server, CHAT, asked)
        assert reason == "length" or re.fullmatch(pattern, text)
        return text, reason

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, range(8)))
    assert together == [ask(number) for number in range(8)]


def test_one_that_cannot_be_used_leaves_the_others_alone(server: RunningServer) -> None:
    for fields, param, code in (
        ({"grammar": "root ::= nothing"}, "grammar", "invalid_grammar"),
        ({"format": {"items": {"not": {}}}}, "format/items/not", "invalid_schema"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice", "invalid_value"),
        ({"guided_grammar": "start: <|nobody|>"}, "guided_grammar", "invalid_grammar"),
    ):
        status, answer = server.ask("POST", CHAT, {**QUESTION, **fields})
        assert (status, answer["error"]["param"], answer["error"]["code"]) == (400, param, code)
    assert whole(server, CHAT, {**QUESTION, "temperature": 0}) == [("The capital of France is Paris.", "stop")]
