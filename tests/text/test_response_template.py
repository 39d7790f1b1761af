"""Response templates are read as transformers reads them, or refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from mistralrs.errors import LoadError
from mistralrs.text.response.delimiters import literal_texts
from mistralrs.text.response.response_template import MAX_CHARACTERS, ResponseTemplate
from mistralrs.text.response.shipped_templates import SHIPPED, shipped_template
from tests.text.response_scripts import declaration, reference

FIELD = {"open": "<a>", "close": "</a>"}


def with_field(name: str = "tool_calls", **changes: Any) -> dict[str, Any]:
    return {"start_anchor": "X", "fields": {name: {**FIELD, **changes}}}


def without(key: str, given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name != key}


BROKEN: list[tuple[str, dict[str, Any]]] = [
    ("version 2", {**with_field(), "version": 2}),
    ("more: not known", {**with_field(), "more": 1}),
    ("fields", {"start_anchor": "X"}),
    ("fields", {"start_anchor": "X", "fields": {}}),
    ("fields", {"start_anchor": "X", "fields": []}),
    ("start_anchor", without("start_anchor", with_field())),
    ("both start_anchor and", {**with_field(), "start_anchor_pattern": "X"}),
    ("defaults", {**with_field(), "defaults": []}),
    ("fields.content: it is no object", {"start_anchor": "X", "fields": {"content": "text"}}),
    ("fields.content: shut: not known", with_field("content", shut="x")),
    ("the content type 'yaml'", with_field(content="yaml")),
    ("both open and open_pattern", with_field(open_pattern="a")),
    ("open is no text", with_field(open=[])),
    ("open is no text", with_field(open=["a", ""])),
    ("open is no text", with_field(open=3)),
    ("close_pattern: the pattern", {"start_anchor": "X", "fields": {"content": {"open": "a", "close_pattern": "(a"}}}),
    ("join is a text", with_field("content", join="x")),
    ("join is a text", with_field("content", join=1, repeats=True)),
    ("transform_each is 'yes'", with_field(transform_each="yes", transform={})),
    ("no transform", with_field(transform_each=True)),
    ("named groups name", {"start_anchor": "X", "fields": {"tool_calls": {"open_pattern": "(?P<name>a)"}}}),
    ("beside a placeholder", with_field(transform={"a": ["x {content}"]})),
    ("only one may", {"start_anchor": "X", "fields": {"content": {}, "thinking": {}}}),
]
"""Broken for transformers too."""
UNSUPPORTED: list[tuple[str, dict[str, Any]]] = [
    ("fields.citations: an answer has no such part", with_field("citations")),
    ("more than one of the fields thinking", {"start_anchor": "X", "fields": {"thinking": FIELD, "reasoning": FIELD}}),
    ("optional is false", with_field(optional=False)),
    ("content is text", with_field("content", content="json")),
    ("reasoning is text", with_field("thinking", transform={"text": "{content}"})),
    ("content_args is no object", with_field(content_args=[])),
    ("trim: not known", with_field("content", content_args={"trim": True})),
    ("string_delims", with_field(content="json", content_args={"string_delims": ["'"]})),
    ("tag_pattern is no text", with_field(content="xml-inline")),
    ("no group named key", with_field(content="xml-inline", content_args={"tag_pattern": "a"})),
    ("value_parser", with_field(content="kv-lines", content_args={"value_parser": {"name": "yaml"}})),
    ("defaults.content", {**with_field("content"), "defaults": {"content": "Hi"}}),
    ("defaults.role", {**with_field("content"), "defaults": {"role": "user"}}),
    ("defaults.tool_calls", {**with_field(), "defaults": {"tool_calls": [1]}}),
    ("repeats is 1", with_field(repeats=1)),
    ("characters", with_field(open="a" * 3000)),
    ("characters", {"start_anchor": "X", "fields": {"content": {"open_pattern": "a" * 3000}}}),
    (str(MAX_CHARACTERS), with_field(transform={"a": "x" * MAX_CHARACTERS})),
]


@pytest.mark.parametrize(("reason", "declared"), BROKEN, ids=[reason for reason, _ in BROKEN])
def test_broken_templates_are_refused_as_in_transformers(reason: str, declared: dict[str, Any]) -> None:
    with pytest.raises(LoadError, match=r"^response_template: ") as caught:
        ResponseTemplate.parse(declared)
    assert reason in caught.value.message
    assert caught.value.hint
    with pytest.raises(ValueError):
        reference(declared, "")


@pytest.mark.parametrize(("reason", "declared"), UNSUPPORTED, ids=[reason for reason, _ in UNSUPPORTED])
def test_templates_that_are_not_supported_are_refused_by_name(reason: str, declared: dict[str, Any]) -> None:
    with pytest.raises(LoadError, match=r"^response_template: ") as caught:
        ResponseTemplate.parse(declared)
    assert reason in caught.value.message


def test_deep_templates_are_refused() -> None:
    transform: Any = "{content}"
    for _ in range(5000):
        transform = [transform]
    with pytest.raises(LoadError, match=r"JSON value|inside each other"):
        ResponseTemplate.parse(with_field(transform=transform))


@pytest.mark.parametrize("declared", [None, [], "text"])
def test_other_values_are_refused(declared: Any) -> None:
    with pytest.raises(LoadError, match="no object"):
        ResponseTemplate.parse(declared)


@pytest.mark.parametrize(
    ("pattern", "texts"),
    [
        (r"\s*<tool_call>\s*", ["<tool_call>"]),
        (
            r"<\|channel\|>commentary to=functions\.(?P<name>\w+).*?<\|message\|>",
            ["<|channel|>commentary to=functions.", "<|message|>"],
        ),
        (r"(?:<a>|<b>)?c", ["<a>", "<b>", "c"]),
        (r"<a+>x{2,3}", ["<", "a", ">", "x"]),
        (r"[<(\]]<d>(?=<e>)(?<!<f>)$", ["<d>", "<e>", "<f>"]),
        (r"\x3cg\u003e\n\d\p{L}<h>", ["<g>\n", "<h>"]),
        (r"(?i)(?P=x)(?#note)\[J\]", ["[J]"]),
        ("", []),
    ],
)
def test_the_literal_texts_of_a_pattern_are_found(pattern: str, texts: list[str]) -> None:
    assert list(literal_texts(pattern)) == texts


def test_markers_have_the_names_of_all_tokens_that_the_template_reads() -> None:
    harmony = {"<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|return|>", "<|call|>"}
    assert harmony <= shipped_template("harmony").markers
    assert {"[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]"} <= shipped_template("mistral-v11").markers
    assert {"<escape>", "<start_function_call>"} <= shipped_template("functiongemma").markers
    assert {"<think>", "</think>", "<tool_call>", "</tool_call>"} <= shipped_template("hermes").markers
    declared = with_field(open="<|a|>call<|b|>", content="json", content_args={"string_delims": [['<|"|>', '<|"|>']]})
    assert ResponseTemplate.parse(declared).markers == {"<|a|>call<|b|>", "<|a|>", "<|b|>", "</a>", '<|"|>'}


def test_a_template_says_which_parts_it_has() -> None:
    assert (shipped_template("hermes").has_tool_calls, shipped_template("hermes").has_reasoning) == (True, True)
    assert (shipped_template("think").has_tool_calls, shipped_template("think").has_reasoning) == (False, True)
    assert (shipped_template("phi-4").has_tool_calls, shipped_template("phi-4").has_reasoning) == (True, False)


@pytest.mark.parametrize("name", sorted({each.name for each in SHIPPED}))
def test_shipped_templates_are_valid_for_transformers(name: str) -> None:
    assert reference(declaration(name), "Hi").content == "Hi"


def test_a_template_without_patterns_does_not_load_the_package_for_them() -> None:
    declared = json.dumps({"start_anchor": "X", "fields": {"thinking": {"open": "<t>", "close": "</t>"}}})
    code = f"""
import json, sys
from mistralrs.text.response.response_parser import ResponseParser
from mistralrs.text.response.response_template import ResponseTemplate
parser = ResponseParser(ResponseTemplate.parse(json.loads({declared!r})), prompt_end="X")
assert len(parser.push("<t>a</t>b") + parser.finish()) == 2
assert not {{"regex", "torch", "transformers", "numpy"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
