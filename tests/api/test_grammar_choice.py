"""Grammars in bodies: each field that clients use asks the engine for the same, and every other value is refused."""

from __future__ import annotations

import itertools
import json
import pickle
from typing import Any

import pytest

from mistralrs import ChatCompletionRequest, CompletionRequest
from mistralrs.api import checked_grammars
from mistralrs.api.checked_grammars import CheckedGrammars
from mistralrs.api.schemas.grammar_fields import GrammarFields
from mistralrs.api.schemas.request_bodies import ChatCompletionBody, CompletionBody, parse
from mistralrs.api.serving.engine_requests import chat_request
from mistralrs.api.serving.grammars.grammar_choice import has_new_grammar
from mistralrs.api.serving.prepare import Prepared, prepare_chat, prepare_completion
from mistralrs.engine.config import SamplingParams
from mistralrs.errors import RequestError
from mistralrs.grammar.compile_grammar import KINDS
from mistralrs.grammar.grammar_text import GRAMMAR_KINDS, GrammarText
from tests.api.served import POLICY, byte_tokenizer, served

MODEL = served()
SCHEMA = {"type": "object", "properties": {"é": {"type": "integer"}}, "required": ["é"]}
BROKEN = {"properties": {"a/b": {"not": {}}}}
BROKEN_PLACE = "/properties/a~1b/not"
GBNF, LARK, YACC = 'root ::= "a"', 'start: "a"', "%%\nS: 'a' ;"
TAG = {"structures": [{"begin": "<f>", "schema": SCHEMA, "end": "</f>"}], "triggers": ["<f>"]}
TAGGED = {"type": "structural_tag", **TAG}
AMBIGUOUS = "%%\nE: E '+' E | 'x' ;"


def chat(**fields: Any) -> Prepared:
    return prepare_chat(parse(ChatCompletionBody, json.dumps({"messages": "hi", **fields}).encode()), MODEL, POLICY)


def complete(**fields: Any) -> Prepared:
    return prepare_completion(parse(CompletionBody, json.dumps({"prompt": "hi", **fields}).encode()), MODEL, POLICY)


def grammar(fields: dict[str, Any]) -> GrammarText | None:
    """The grammar that both endpoints ask the engine for."""
    found = [prepare(**fields).requests[0].grammar for prepare in (chat, complete)]
    assert found[0] == found[1]
    return found[0]


def refusal(fields: dict[str, Any]) -> RequestError:
    """The error with which both endpoints refuse the fields."""
    errors = []
    for prepare in (chat, complete):
        with pytest.raises(RequestError) as refused:
            prepare(**fields)
        errors.append(refused.value)
    assert errors[0].args == errors[1].args
    assert (errors[0].param, errors[0].code) == (errors[1].param, errors[1].code)
    return errors[0]


def outcome(prepare: Any, fields: dict[str, Any]) -> Prepared | RequestError:
    try:
        return prepare(**fields)  # type: ignore[no-any-return]
    except RequestError as error:
        return error


def formatted(**json_schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": json_schema}}


def structured(**fields: Any) -> dict[str, Any]:
    return {"structured_outputs": fields}


def typed(kind: str, value: object) -> dict[str, Any]:
    return {"grammar": {"type": kind, "value": value}}


SCHEMAS = {
    "response_format.json_schema.schema": lambda schema: formatted(name="x", schema=schema, strict=True),
    "response_format.schema": lambda schema: {"response_format": {"type": "json_object", "schema": schema}},
    "grammar": lambda schema: typed("json_schema", schema),
    "json_schema": lambda schema: {"json_schema": schema},
    "format": lambda schema: {"format": schema},
    "structured_outputs.json": lambda schema: structured(json=schema),
    "guided_json": lambda schema: {"guided_json": schema},
}
"""The fields of schemas by the name that errors have for them."""
TEXTS = {
    "regex": ("regex", "[0-9]+", ["grammar.regex", "structured_outputs.regex", "guided_regex"]),
    "choice": ("choice", ["ja", "né"], ["grammar.choice", "structured_outputs.choice", "guided_choice"]),
    "yacc": ("yacc", YACC, ["grammar.yacc"]),
    "lark": ("lark", LARK, ["grammar.lark", "structured_outputs.grammar", "guided_grammar"]),
    "gbnf": ("gbnf", GBNF, ["grammar.gbnf", "grammar", "structured_outputs.grammar", "guided_grammar"]),
    "tag": ("structural_tag", TAGGED, ["grammar.structural_tag", "structured_outputs.structural_tag"]),
}


def at(path: str, value: object) -> dict[str, Any]:
    name, _, member = path.partition(".")
    if name == "grammar" and member:
        return typed(member, value)
    return {name: {member: value}} if member else {name: value}


ASKING = {
    **{path: field(SCHEMA) for path, field in SCHEMAS.items()},
    **{path: at(path, value) for _, value, paths in TEXTS.values() for path in paths},
    "response_format": {"response_format": {"type": "json_object"}},
    "structured_outputs.json_object": structured(json_object=True),
    "guided_json_object": {"guided_json_object": True},
    "format.json": {"format": "json"},
}
NOTHING: list[dict[str, Any]] = [
    {},
    {"response_format": {"type": "text"}},
    {"grammar": ""},
    {"format": ""},
    structured(),
    structured(json_object=False, disable_any_whitespace=False, disable_additional_properties=False),
    dict.fromkeys(GrammarFields.model_fields),
    {"guided_json_object": False},
]


def test_every_kind_has_a_name_and_a_translation() -> None:
    assert set(GRAMMAR_KINDS) == set(KINDS)


@pytest.mark.parametrize("written", [lambda schema: schema, json.dumps], ids=["object", "text"])
@pytest.mark.parametrize("path", SCHEMAS)
def test_a_schema_means_the_same_in_every_field(path: str, written: Any) -> None:
    found = grammar(SCHEMAS[path](written(SCHEMA)))
    assert found is not None
    assert (found.kind, list(json.loads(found.text).items())) == ("json_schema", list(SCHEMA.items()))


@pytest.mark.parametrize(
    ("kind", "value", "path"), [(kind, value, path) for kind, value, paths in TEXTS.values() for path in paths]
)
def test_other_grammars_mean_the_same_in_every_field(kind: str, value: Any, path: str) -> None:
    found = grammar(at(path, value))
    assert found is not None
    assert found.kind == kind
    assert (found.text if isinstance(value, str) else json.loads(found.text)) == value


def test_json_without_a_schema() -> None:
    for fields in ({"response_format": {"type": "json_object"}}, {"format": "json"}, typed("json_object", "")):
        assert grammar(fields) == GrammarText("json_object", "")
    for fields in (structured(json_object=True), {"guided_json_object": True}):
        assert grammar(fields) == GrammarText("json_schema", '{"type": "object"}')


def test_a_structural_tag_stands_in_the_response_format() -> None:
    found = grammar({"response_format": TAGGED})
    assert found is not None
    assert (found.kind, json.loads(found.text)) == ("structural_tag", TAGGED)
    assert refusal({"response_format": {**TAGGED, "at_least_one": True}}).param == "response_format/at_least_one"


@pytest.mark.parametrize("fields", NOTHING, ids=map(str, range(len(NOTHING))))
def test_nothing_is_asked_for(fields: dict[str, Any]) -> None:
    assert grammar(fields) is None
    [request] = chat(**fields).requests
    assert request.trim_space


def test_vllms_grammar_is_told_by_its_rules() -> None:
    for text, kind in (
        ('start: "a" // ::=', "lark"),
        ('# ::=\nstart: "a"', "lark"),
        ('# a\nroot ::= "a"', "gbnf"),
    ):
        assert grammar(structured(grammar=text)) == GrammarText(kind, text)


def test_two_at_once_are_refused_by_name() -> None:
    refused = 0
    for first, second in itertools.combinations(ASKING, 2):
        one, other = ASKING[first], ASKING[second]
        both = one | other
        if shared := one.keys() & other.keys():
            if shared != {"structured_outputs"} or set(one["structured_outputs"]) & set(other["structured_outputs"]):
                continue
            both = structured(**one["structured_outputs"], **other["structured_outputs"])
        error = refusal(both)
        names = {path.split(".")[0] if path.startswith(("grammar", "format")) else path for path in (first, second)}
        assert set(error.message.removesuffix(" both say what the answer must match").split(" and ")) == names
        assert (error.param in names, error.hint, error.code) == (True, "send one of them", "invalid_value")
        refused += 1
    assert refused > 150


@pytest.mark.parametrize("written", [lambda schema: schema, json.dumps], ids=["object", "text"])
@pytest.mark.parametrize("path", SCHEMAS)
def test_a_schema_that_cannot_be_obeyed_is_refused_with_field_and_pointer(path: str, written: Any) -> None:
    error = refusal(SCHEMAS[path](written(BROKEN)))
    assert (error.code, error.param) == ("invalid_schema", f"{path}{BROKEN_PLACE}")
    assert error.message.startswith(f"{path} cannot be used: {BROKEN_PLACE}: not is not supported")


@pytest.mark.parametrize(
    ("fields", "param", "code", "words"),
    [
        (formatted(name="x"), "response_format.json_schema.schema", "invalid_value", "is required"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema", "invalid_value", "requ"),
        ({"response_format": {"type": "yaml"}}, "response_format.type", "invalid_value", "must be 'text'"),
        ({"response_format": "json"}, "response_format", "invalid_value", "response_format"),
        (formatted(schema=3), "response_format.json_schema.schema", "invalid_value", "must be a JSON schema"),
        ({"json_schema": [SCHEMA]}, "json_schema", "invalid_value", "must be a JSON schema"),
        ({"json_schema": "{"}, "json_schema", "invalid_schema", "not JSON"),
        ({"format": "yaml"}, "format", "invalid_schema", "not JSON"),
        ({"guided_json": "3"}, "guided_json", "invalid_schema", "neither an object nor a boolean"),
        ({"grammar": 'root ::= "a'}, "grammar", "invalid_grammar", "grammar cannot be used: "),
        (typed("regex", "(?=a)"), "grammar", "invalid_grammar", "grammar cannot be used: "),
        (typed("bnf", "a"), "grammar.type", "invalid_value", "must be 'regex'"),
        ({"grammar": {"type": "regex"}}, "grammar.value", "invalid_value", "is required"),
        (typed("regex", 3), "grammar.value", "invalid_value", "must be a text"),
        (typed("regex", {"a": 1}), "grammar.value", "invalid_value", "a regex is a text"),
        (typed("yacc", "%%\nS: 'a'"), "grammar", "invalid_grammar", "line 2"),
        (structured(regex="["), "structured_outputs.regex", "invalid_grammar", "structured_outputs.regex cannot"),
        (structured(choice=[]), "structured_outputs.choice", "invalid_value", "at least 1"),
        (structured(choice=["a", 3]), "structured_outputs.choice[1]", "invalid_value", "string"),
        (structured(structural_tag="x"), "structured_outputs.structural_tag", "invalid_grammar", "not JSON"),
        (
            structured(json={}, disable_additional_properties=True),
            "structured_outputs.disable_additional_properties",
            "unsupported_parameter",
            "is not supported",
        ),
        ({"guided_grammar": "start: <|nope|>"}, "guided_grammar", "invalid_grammar", "nope"),
    ],
)
def test_refused(fields: dict[str, Any], param: str, code: str, words: str) -> None:
    error = refusal(fields)
    assert (error.param, error.code) == (param, code)
    assert words in error.message


@pytest.mark.parametrize("value", [0, 1.5, True, "", "x", [], ["x"], [3], {}, {"a": 1}, {"type": "regex"}])
@pytest.mark.parametrize("name", GrammarFields.model_fields)
def test_a_field_of_any_shape_is_obeyed_or_refused_by_name(name: str, value: object) -> None:
    for prepare in (chat, complete):
        prepared = outcome(prepare, {name: value})
        if isinstance(prepared, RequestError):
            assert (prepared.param or "").startswith(name)
        else:
            says_nothing = value in ("", False) or (name == "structured_outputs" and isinstance(value, dict))
            assert says_nothing or prepared.requests[0].grammar is not None
            members = value if says_nothing and isinstance(value, dict) else ()
            assert prepared.ignored == tuple(f"{name}.{member}" for member in members)


# Whitespace


def test_whitespace_of_json() -> None:
    for fields, wishes in (
        (structured(json=SCHEMA, whitespace_pattern=" ?"), {"whitespace_pattern": " ?"}),
        (structured(json=json.dumps(SCHEMA), whitespace_pattern=" ?"), {"whitespace_pattern": " ?"}),
        ({"guided_json": SCHEMA, "guided_whitespace_pattern": "\n*"}, {"whitespace_pattern": "\n*"}),
        (structured(json=SCHEMA, whitespace_pattern=""), {"whitespace_flexible": False}),
        (structured(json=SCHEMA, disable_any_whitespace=True), {"whitespace_flexible": False}),
    ):
        found = grammar(fields)
        assert found is not None
        assert json.loads(found.text) == {**SCHEMA, "x-guidance": wishes}
    found = grammar(structured(json_object=True, disable_any_whitespace=True))
    assert found == GrammarText("json_schema", '{"type": "object", "x-guidance": {"whitespace_flexible": false}}')


@pytest.mark.parametrize("prefix", ["structured_outputs.", "guided_"])
def test_whitespace_that_is_none_is_refused_by_its_field(prefix: str) -> None:
    def fields(**members: Any) -> dict[str, Any]:
        return structured(**members) if "." in prefix else {f"{prefix}{name}": each for name, each in members.items()}

    error = refusal(fields(json=SCHEMA, whitespace_pattern=".*"))
    assert (error.param, error.code) == (f"{prefix}whitespace_pattern", "invalid_schema")
    assert error.message == f"{prefix}whitespace_pattern cannot be used: it matches more than whitespace"
    assert error.hint == r"JSON has no other whitespace than [ \n\r\t]"
    error = refusal(fields(regex="a", whitespace_pattern=" "))
    assert error.param == f"{prefix}whitespace_pattern"
    assert f"needs {prefix}json" in error.message


# The request around it


def test_an_answer_begins_as_the_grammar_says() -> None:
    """No space in front is dropped, which the grammar may have asked for."""
    [request] = chat(grammar=GBNF).requests
    assert not request.trim_space
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "I am"}]
    [request] = chat(grammar=GBNF, messages=messages, continue_final_message=True).requests
    assert (request.trim_space, request.grammar) == (False, GrammarText("gbnf", GBNF))


def test_each_candidate_of_each_prompt_has_the_grammar() -> None:
    assert [each.grammar for each in chat(n=3, stream=True, grammar=GBNF).requests] == [GrammarText("gbnf", GBNF)] * 3
    prepared = complete(prompt=["a", "b"], n=2, best_of=3, echo=True, suffix="!", grammar=GBNF)
    assert [each.grammar for each in prepared.requests] == [GrammarText("gbnf", GBNF)] * 6
    assert (prepared.suffix, [echo.text for echo in prepared.echo or ()]) == ("!", ["a", "b"])


@pytest.mark.parametrize(
    ("fields", "ignored"),
    [
        (formatted(schema=SCHEMA, x=1, name="n", description="d", strict=False), ["response_format.json_schema.x"]),
        ({"response_format": {"type": "json_object", "y": 2, "z": None}}, ["response_format.y"]),
        (
            {"response_format": {"type": "text", "schema": SCHEMA, "json_schema": {}, "x": 1}},
            ["response_format.json_schema", "response_format.schema", "response_format.x"],
        ),
        ({"response_format": {**TAGGED, "schema": SCHEMA}}, ["response_format.schema"]),
        (structured(regex="a", disable_fallback=True), ["structured_outputs.disable_fallback"]),
        ({"grammar": {"type": "regex", "value": "a", "x": 1}}, ["grammar.x"]),
    ],
)
def test_members_that_are_not_read_are_named(fields: dict[str, Any], ignored: list[str]) -> None:
    assert list(chat(**fields).ignored) == list(complete(**fields).ignored) == ignored


def test_two_schemas_in_one_format_are_refused() -> None:
    fields = formatted(schema=SCHEMA)
    fields["response_format"]["schema"] = SCHEMA
    assert refusal(fields).param == "response_format.schema"


def test_warnings_come_with_the_request() -> None:
    for prepare in (chat, complete):
        for _ in range(2):  # the second time from memory
            [warning] = prepare(**typed("yacc", AMBIGUOUS)).warnings
            assert "conflicts" in warning
        assert prepare(**typed("yacc", YACC)).warnings == ()


def test_the_terminal_asks_the_engine_for_the_same() -> None:
    wanted = GrammarText("gbnf", GBNF)
    messages, params = [{"role": "user", "content": "hi"}], SamplingParams(seed=0)
    [request] = chat(grammar=GBNF, seed=0).requests
    assert chat_request(messages, params, MODEL, POLICY, grammar=wanted) == (request, None)
    with pytest.raises(RequestError, match="cannot be used"):
        chat_request(messages, params, MODEL, POLICY, grammar=GrammarText("gbnf", 'root ::= "'))


@pytest.mark.parametrize("kind", GRAMMAR_KINDS)
def test_python_asks_for_the_same(kind: str) -> None:
    values: dict[str, Any] = {"json_schema": SCHEMA, "json_object": "", **{each[0]: each[1] for each in TEXTS.values()}}
    body = ChatCompletionRequest("hi", grammar=values[kind], grammar_type=kind).body
    wanted = grammar(typed(kind, values[kind]))
    assert wanted is not None
    assert prepare_chat(body, MODEL, POLICY).requests[0].grammar == wanted
    text = CompletionRequest("hi", grammar=values[kind], grammar_type=kind).body
    assert prepare_completion(text, MODEL, POLICY).requests[0].grammar == wanted
    named = ChatCompletionRequest("hi", response_format={"type": "json_object"}).body
    assert prepare_chat(named, MODEL, POLICY).requests[0].grammar == GrammarText("json_object", "")


# What was checked


def test_control_tokens_are_those_of_the_model() -> None:
    text = 'start: "a" <|im_end|>'
    assert grammar(typed("lark", text)) == GrammarText("lark", text)
    assert "im_nope" in refusal(typed("lark", 'start: "a" <|im_nope|>')).message
    assert grammar(typed("lark", 'start: "<|im_nope|>"')) is not None


def test_a_vocabulary_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_tokenizer(), "eos_ids", frozenset())
    error = refusal(typed("regex", "never checked before"))
    assert (error.code, error.param) == ("unsupported_grammar", "grammar")


def test_what_was_checked_is_not_new() -> None:
    model = served()
    body = parse(ChatCompletionBody, json.dumps({"messages": "hi", **typed("regex", "[a-f]+")}).encode())
    assert has_new_grammar(body, model)
    prepare_chat(body, model, POLICY)
    assert not has_new_grammar(body, model)
    assert not has_new_grammar(parse(ChatCompletionBody, b'{"messages": "hi"}'), served())
    assert has_new_grammar(body, pickle.loads(pickle.dumps(model)))


def test_few_grammars_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked_grammars, "MAX_CHECKED", 3)
    monkeypatch.setattr(checked_grammars, "MAX_CHECKED_CHARACTERS", 20)
    checked = CheckedGrammars()
    grammars = [GrammarText("regex", letter) for letter in "abcd"]
    for each in (*grammars[:3], grammars[0], grammars[3]):
        checked.check(each, byte_tokenizer())
    assert [checked.knows(each) for each in grammars] == [True, False, True, True]
    long = GrammarText("regex", "x" * 18)
    checked.check(long, byte_tokenizer())
    assert [checked.knows(each) for each in (*grammars, long)] == [True, False, False, True, True]
