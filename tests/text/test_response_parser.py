"""Answers are split as transformers' parser splits them, however their text is cut up."""

from __future__ import annotations

import json
import pickle
from random import Random
from typing import Any

import pytest

from mistralrs.errors import EngineError, LoadError
from mistralrs.text.response.pieces import Content, Piece, Reasoning, ToolCallArguments, ToolCallStart
from mistralrs.text.response.response_parser import ResponseParser
from mistralrs.text.response.response_template import ResponseTemplate
from mistralrs.text.response.shipped_templates import SHIPPED, response_template_of, shipped_template
from tests.text.response_scripts import (
    ASSISTANT,
    FORMATS,
    Message,
    declaration,
    message_of,
    parsed,
    random_cuts,
    reference,
    tools_for,
    with_values,
)

CHUNKINGS = 200
SCRIPTS = 10


def whole(template: ResponseTemplate, text: str, **options: Any) -> Message:
    """The answer, which is the same in single characters."""
    message = parsed(template, [text], **options)
    assert parsed(template, list(text), **options) == message
    return message


def texts(**fields: dict[str, Any]) -> ResponseTemplate:
    return ResponseTemplate.parse({"start_anchor": "X", "fields": fields})


def calls(body: str, *, name: str = "hermes") -> Message:
    return whole(shipped_template(name), body)


def test_every_shipped_template_has_a_script() -> None:
    assert {each.name for each in SHIPPED} == set(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_answers_equal_those_of_transformers_however_they_are_cut(name: str) -> None:
    form, template, declared, random = FORMATS[name], shipped_template(name), declaration(name), Random(name)
    markers = [marker for marker in template.markers if marker[0] + marker[-1] in ("<>", "[]")]
    for _ in range(SCRIPTS):
        text = form.spell(random)
        tools = tools_for(random, template)
        message = parsed(template, [text], prompt=form.prompt, tools=tools)
        assert with_values(message) == reference(declared, text, prompt=form.prompt, tools=tools)
        assert not any(marker in message.content + message.reasoning for marker in markers)
        for _ in range(CHUNKINGS // SCRIPTS):
            assert parsed(template, random_cuts(random, text), prompt=form.prompt, tools=tools) == message


@pytest.mark.parametrize("name", FORMATS)
def test_an_answer_that_is_cut_off_gives_its_beginning(name: str) -> None:
    form, template, random = FORMATS[name], shipped_template(name), Random(name)
    grows = any(region.plan for region in template.regions)
    for _ in range(3):
        text = form.spell(random)
        full = parsed(template, [text], prompt=form.prompt)
        for end in random.sample(range(len(text)), min(15, len(text))):
            cut = whole(template, text[:end], prompt=form.prompt)
            assert len(cut.calls) <= len(full.calls)
            assert cut.calls[:-1] == full.calls[: len(cut.calls) - 1] or not cut.calls
            for (begun, arguments), (called, all_arguments) in zip(cut.calls, full.calls, strict=False):
                assert begun == called
                assert all_arguments.startswith(arguments) or not grows


PATTERNS = (
    *(
        r"\s*<a>\s*",
        r"<a\w*>",
        "a+",
        "(?=<a>)",
        "^",
        "$",
        "(?:^|<a>)",
        "a.*?b",
        r"<a>|\Z",
        "b(?!a)",
        "(?<=a)b",
        "a?b?<",
    ),
    *("(?i)AB", "ab{2,3}", "[^<]*<b>", "b(?:a|$)", r"\n?</a>", "a[^b]*b|c"),
)
LITERALS = ("<a>", "</a>", "ab", "abab", "a", "b", "<", "<a", "<ab>", "aba")
EMPTY = {"(?=<a>)", "^", "$", "(?:^|<a>)", r"<a>|\Z", "b(?:a|$)"}
"""Patterns that match the empty text: as the end of leftover text they make transformers lose it."""


def random_texts(random: Random) -> dict[str, Any]:
    """A template of two fields of text, one of which may be for leftover text."""

    def delimiter(key: str) -> dict[str, Any]:
        if random.random() < 0.5:
            return {f"{key}_pattern": random.choice(PATTERNS)}
        return {key: random.choice([random.choice(LITERALS), random.sample(LITERALS, random.randint(1, 3))])}

    fields: dict[str, dict[str, Any]] = {}
    leftover = random.choice(["content", "thinking", None])
    for name in ("content", "thinking"):
        given = {} if name == leftover else delimiter("open")
        if random.random() < 0.85:
            given |= delimiter("close")
        if name == leftover and given.get("close_pattern") in EMPTY:
            del given["close_pattern"]
        strip = {"strip": random.random() < 0.5}
        fields[name] = {**given, "repeats": True, "join": random.choice(["", "|", "\n"]), "content_args": strip}
    return {"start_anchor": "X", "fields": fields}


def test_any_delimiters_split_as_in_transformers() -> None:
    random, endless = Random(11), 0
    for _ in range(500):
        declared = random_texts(random)
        text = "".join(random.choices(["a", "b", "<", "<a>", "</a>", " ", "\n", "c"], k=random.randrange(14)))
        template = ResponseTemplate.parse(declared)
        try:
            message = parsed(template, [text])
        except EngineError:  # transformers would not return
            with pytest.raises(EngineError, match="without end"):
                parsed(template, list(text))
            endless += 1
            continue
        assert parsed(template, list(text)) == parsed(template, random_cuts(random, text)) == message
        assert message == reference(declared, text), (declared, text)
    assert endless < 20


@pytest.mark.parametrize(
    ("kind", "arguments", "bodies"),
    [
        ("json", {"unquoted_keys": True}, ['{a: 1, "b": "x, c: 2"}', "{}", "{längs: {a: []}}"]),
        ("json", {"string_delims": [["<q>", "</q>"]], "unquoted_keys": True}, ['{a: <q>say "hi"\\</q>}']),
        ("json", {}, ['{"a": "\\ud83e\\udd99"}', '{"a": [1e5, -0, 1E+2]}', ' {"a": {"a": {"a": "}"}}} ']),
        (
            "xml-inline",
            {"tag_pattern": "<(?P<key>\\w+)>(?P<value>.*?)</\\w+>", "merge_duplicates": True},
            ["<a>1</a> <b>x</b>\n<a>2</a><a>3</a>", ""],
        ),
        (
            "xml-inline",
            {"tag_pattern": "(?P<key>\\w)=(?P<value>\\w+)", "value_parser": {"name": "int"}},
            ["a=1 b=22"],
        ),
        ("kv-lines", {}, ["a: 1\n\nb : x: y\nnothing", ""]),
        (
            "kv-lines",
            {"line_sep": ";", "kv_sep": "=", "strip": False, "value_parser": {"name": "bool", "args": {"strip": True}}},
            ["a= TRUE ;b=0"],
        ),
    ],
)
def test_each_content_type_reads_arguments_as_transformers_does(
    kind: str, arguments: dict[str, Any], bodies: list[str]
) -> None:
    function = {"name": "{name}", "arguments": "{content}"}
    field = {"open_pattern": "<(?P<name>f)!", "close": "!>", "content": kind, "content_args": arguments}
    field |= {"repeats": True, "transform": {"type": "function", "function": function}}
    declared = {"start_anchor": "X", "fields": {"tool_calls": field}}
    for body in bodies:
        message = whole(ResponseTemplate.parse(declared), f"<f!{body}!>")
        assert with_values(message) == reference(declared, f"<f!{body}!>")
        assert message.calls


CALL_LISTS = (
    *(
        '[f(a="Paris", b=-1.5e3)]',
        "[f(), g.h-i(x=[1, {'k': None}], y=True)]",
        "[ ]",
        '[f(a="\\u00fc\\ud83e\\udd99\\n")]',
    ),
    *("[f(a='it\\'s')]", '[f(a="\\x41")]', "[f(1)]", "[f(a=1,)]", "[f(a=1, a=2)]", "[f(a=b)]", "f(a=1)", "[f(a=1)] x"),
    *("[f(a=01)]", "[f(a=9007199254740992)]", "[f(a=1e999)]", '[f(a="\\ud83e")]', "[f(a='a\nb')]", "[f(a=" + "[" * 101),
    *("[f(a=1.)]", "[f(a={1: 2})]", "[f(a=-)]", "[f(a=null, b=true)]", "[f(a='')]", "[,]", "[f(a=1) g()]"),
)


@pytest.mark.parametrize("body", CALL_LISTS)
def test_lists_of_python_calls_are_read_as_in_transformers(body: str) -> None:
    field = {"open": "<c>", "close": "</c>", "content": "python-call-list"}
    declared = {"start_anchor": "X", "fields": {"tool_calls": field}}
    message = whole(ResponseTemplate.parse(declared), f"<c>{body}</c>")
    try:
        expected = reference(declared, f"<c>{body}</c>")
    except ValueError:
        assert message == Message(body.strip(), "", ())
    else:
        assert with_values(message) == expected


def test_arguments_are_passed_on_as_they_grow() -> None:
    parser = ResponseParser(shipped_template("hermes"))
    pieces: list[list[Piece]] = [parser.push(text) for text in ("<tool_call>\n", '{"name": "f", ', '"arguments": {"a"')]
    pieces += [parser.push(text) for text in (": [1, ", "2]}", "}\n</tool_call>")]
    assert pieces == [
        [],
        [],
        [ToolCallStart(0, "f"), ToolCallArguments(0, '{"a"')],
        [ToolCallArguments(0, ": [1,")],  # space may belong to the marker
        [ToolCallArguments(0, " 2]}")],
        [],
    ]
    assert parser.finish() == []


def test_text_is_passed_on_unless_it_may_become_a_marker() -> None:
    parser = ResponseParser(shipped_template("hermes"))
    pushed = [parser.push(text) for text in ("a <", " b", " <tool", "s>", "<th", "ink>", "c", "</think>", "d")]
    assert pushed == [
        [Content("a")],
        [Content(" < b")],
        [],
        [Content(" <tools>")],
        [],
        [],
        [Reasoning("c")],
        [],
        [Content("\nd")],
    ]


def test_texts_take_the_declared_types_before_they_are_passed_on() -> None:
    properties = {"n": {"type": "integer"}, "s": {"type": "string"}, "l": {"type": "number"}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"properties": properties}}}]
    text = '<tool_call>{"name": "f", "arguments": {"s": "7", "n": "7", "l": ["1.5", {}], "x": "3"}}</tool_call>'
    message = whole(shipped_template("hermes"), text, tools=tools)
    assert message.calls == (("f", '{"s": "7", "n": 7, "l": [1.5, {}], "x": "3"}'),)


@pytest.mark.parametrize(
    ("body", "content"),
    [
        ("nonsense", "nonsense"),
        ('{"name": 3, "arguments": {}}', '{"name": 3, "arguments": {}}'),
        ('{"arguments": {"a": 1}}', '{"arguments": {"a": 1}}'),
        ('{"name": "f", "arguments": [1]}', '{"name": "f", "arguments": [1]}'),
        ('{"name": "f", "arguments": {"a": 1}', None),
        ('{"name": "f", "arguments": {"a": NaN}}', "NaN}}"),
        ('{"name": "f", "arguments": {"a": 1}}}', "}"),
        ('{"name": "f\\nx", "arguments": {}}', '{"name": "f\\nx", "arguments": {}}'),
        ("[]", "[]"),
        ("", ""),
    ],
)
def test_text_that_is_no_call_becomes_content(body: str, content: str | None) -> None:
    message = calls(f"<tool_call>\n{body}\n</tool_call>")
    assert message.content == (content or "")
    assert bool(message.calls) == (content is None or content in ("NaN}}", "}"))


@pytest.mark.parametrize(
    ("name", "text", "arguments"),
    [
        ("hermes", '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool', {"a": 1}),
        ("mistral-v11", '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_', {"a": 1}),
        ("functiongemma", "<start_function_call>call:f{a:1}<end_func", {"a": 1}),
        ("olmo-3", '<function_calls>\nf(a="x")\n</func', {"a": "x"}),
        ("granite-3", '<|tool_call|>[{"name": "f", "arguments": {"a": 1}}]<|end_of', {"a": 1}),
    ],
)
def test_the_mark_that_the_answers_end_cut_is_no_content(name: str, text: str, arguments: dict[str, Any]) -> None:
    for parts in ([text], list(text)):
        found = parsed(shipped_template(name), parts)
        assert (found.content, [(call, json.loads(each)) for call, each in found.calls]) == ("", [("f", arguments)])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("olmo-3", "<function_calls>\nget_w"),
        ("functiongemma", "\n<start_function_call>call:get"),
        ("mistral-v11", "[TOOL_CALLS]get_w"),
        ("harmony", "<|channel|>commentary to=func"),
        ("harmony", "<|channel|>analysis"),
    ],
)
def test_the_beginning_of_a_part_that_was_cut_is_no_content(name: str, text: str) -> None:
    for is_cut in (True, False):
        parser = ResponseParser(shipped_template(name))
        pieces = [*parser.push("Hm."), *parser.push(text), *parser.finish(is_cut=is_cut)]
        assert message_of(pieces).content == ("Hm." if is_cut else f"Hm.{text}"), is_cut


def test_a_malformed_call_among_others_becomes_content() -> None:
    message = calls(
        '[TOOL_CALLS][{"name": "f", "arguments": {}}, {"x": 1}, {"name": "g", "arguments": {}}]', name="mistral-v3"
    )
    assert message == Message(', {"x": 1}', "", (("f", "{}"), ("g", "{}")))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [("null", "{}"), ('"{\\"a\\": 1}"', '{"a": 1}'), (None, "{}")],
)
def test_arguments_may_be_missing_or_a_text(arguments: str | None, expected: str) -> None:
    member = "" if arguments is None else f', "arguments": {arguments}'
    assert calls(f'<tool_call>{{"name": "f"{member}}}</tool_call>').calls == (("f", expected),)


def test_the_prompt_may_have_begun_the_answer() -> None:
    template = shipped_template("hermes")
    assert whole(template, "a</think>b", prompt=ASSISTANT + "<think>\n") == Message("b", "a", ())
    assert whole(template, "b", prompt=ASSISTANT + "<think>\n\n</think>\n\n") == Message("b", "", ())
    earlier = "<|im_start|>assistant\n<think>open for ever<|im_end|>\n" + ASSISTANT
    assert whole(template, "b", prompt=earlier) == Message("b", "", ())
    assert whole(template, "b", prompt="no anchor, but <think>") == Message("b", "", ())
    begun = (
        ASSISTANT + '<tool_call>{"name": "f", "arguments": {}}</tool_call><tool_call>{"name": "g", "arguments": {"a"'
    )
    assert whole(template, ": 1}}</tool_call>", prompt=begun) == Message("", "", (("g", '{"a": 1}'),))


def test_a_field_that_comes_again_adds_to_the_text() -> None:
    template = texts(thinking={"open": "<t>", "close": "</t>"}, content={})
    assert whole(template, " a <t>b</t> c <t>d</t>\ne\n") == Message("a  c \ne", "b\nd", ())


def test_leftover_text_is_content_unless_there_is_a_field_for_it() -> None:
    template = texts(thinking={"open": "<t>", "close": "</t>"})
    assert whole(template, "<t>b</t> c") == Message("c", "b", ())
    template = texts(content={"open": "<c>", "close": "</c>"})
    assert whole(template, "x<c>b</c>y") == Message("b", "", ())


def test_without_tools_calls_are_content() -> None:
    template = shipped_template("llama-3").without_tool_calls()
    assert (template.has_tool_calls, template.has_reasoning) == (False, False)
    text = '{"name": "f", "parameters": {}}'
    assert whole(template, text) == Message(text, "", ())
    template = shipped_template("hermes").without_tool_calls()
    assert "<tool_call>" not in template.markers
    assert whole(template, "<think>a</think>b") == Message("b", "a", ())
    only_calls = texts(tool_calls={"open": "<c>", "close": "</c>", "content": "json"})
    assert whole(only_calls.without_tool_calls(), "a <c>b") == Message("a <c>b", "", ())


def test_long_answers_keep_little_text() -> None:
    parser = ResponseParser(shipped_template("hermes"))
    pieces = [piece for _ in range(3000) for piece in parser.push("word and word ")]
    assert len(parser._text) < 10_000
    assert message_of([*pieces, *parser.finish()]).content == ("word and word " * 3000).rstrip()


def test_long_answers_are_split_within_the_time_for_patterns() -> None:
    call = '<tool_call>{"name": "f", "arguments": {"a": "a long text, a long text, a long text"}}</tool_call>\n'
    message = parsed(shipped_template("hermes"), [call * 3000])
    assert len(message.calls) == 3000
    assert message.content == ""


def test_a_pattern_that_takes_too_long_fails_the_answer_by_name() -> None:
    template = texts(thinking={"open_pattern": "(?:a|aa)+[^ab]", "close": "!"}, content={})
    parser = ResponseParser(template)
    parser._clock.left_s = 0.05
    with pytest.raises(EngineError, match="takes too long") as caught:
        parser.push("a" * 60 + "b")
    assert caught.value.code == "response_template_too_slow"


def test_patterns_that_are_slow_at_every_character_fail_the_answer_too() -> None:
    parser = ResponseParser(texts(thinking={"open_pattern": "(?:a|aa){16}[^ab]|c", "close": "!"}, content={}))
    parser._clock.left_s = 0.05
    with pytest.raises(EngineError, match="takes too long"):
        parser.push("a" * 4000 + "bc")


def test_a_slow_pattern_in_a_content_type_fails_the_answer_too() -> None:
    arguments = {"tag_pattern": "(?P<key>(?:a|aa)+)[^ab]"}
    field = {"open": "<c>", "close": "</c>", "content": "xml-inline", "content_args": arguments}
    parser = ResponseParser(texts(tool_calls={**field, "transform": {"name": "f", "arguments": "{content}"}}))
    parser._clock.left_s = 0.05
    with pytest.raises(EngineError, match="takes too long"):
        parser.push(f"<c>{'a' * 60}b</c>")


def test_empty_regions_without_end_fail_the_answer_by_name() -> None:
    template = texts(thinking={"open_pattern": "(?=a)", "close_pattern": "(?=a)"}, content={})
    with pytest.raises(EngineError, match="without end"):
        parsed(template, ["ba", "b"])


def mutated(random: Random, value: Any) -> Any:
    """The value with something in it replaced, left out or added."""
    if isinstance(value, dict) and value and random.random() < 0.97:
        key = random.choice(list(value))
        changed = {**value, random.choice([key] * 9 + ["join"]): mutated(random, value[key])}
        return {name: each for name, each in changed.items() if name != key or random.random() < 0.95}
    if isinstance(value, str) and random.random() < 0.9:
        place = random.randrange(len(value) + 1)
        return value[:place] + random.choice("()[]{}*+?|\\^$a<>{content}") + value[place + random.randrange(3) :]
    return random.choice([None, True, 1, "", "a", "{content}", "(?=a)", "$", [], ["<"], {}, {"name": "{name}"}, [[]]])


def test_damaged_templates_are_refused_or_split_without_losing_their_way() -> None:
    random, loaded = Random(8), 0
    for _ in range(300):
        name = random.choice(list(FORMATS))
        declared = mutated(random, declaration(name))
        text = FORMATS[name].spell(random)
        try:
            template = ResponseTemplate.parse(declared)
        except LoadError:
            continue
        loaded += 1
        try:
            message = parsed(template, [text])
        except EngineError as error:
            assert error.code in ("response_template_too_slow", "response_template_endless")  # noqa: PT017
        else:
            assert len(message.content) + len(message.reasoning) <= 2 * len(text)
            assert parsed(template, random_cuts(random, text)).calls == message.calls
    assert loaded > 50


def test_a_pickled_template_splits_alike() -> None:
    for name, form in FORMATS.items():
        template = pickle.loads(pickle.dumps(shipped_template(name)))
        text = form.spell(Random(3))
        assert parsed(template, [text]) == parsed(shipped_template(name), [text])


@pytest.mark.parametrize("name", FORMATS)
def test_a_chat_template_has_the_response_template_of_its_markers(name: str) -> None:
    assert response_template_of(FORMATS[name].chat_template, None) is shipped_template(name)


def test_a_chat_template_without_markers_has_none_and_the_own_one_counts_most() -> None:
    assert response_template_of("<|im_start|>{{ role }}<|im_end|>", None) is None
    declared = {"start_anchor": "X", "fields": {"thinking": {"open": "<mm>", "close": "</mm>"}}}
    own = response_template_of(FORMATS["hermes"].chat_template, json.loads(json.dumps(declared)))
    assert own is not None
    assert own.markers == {"<mm>", "</mm>"}
