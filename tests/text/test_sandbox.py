"""Templates cannot reach Python, loop for ever or write without end; allowed templates render as in Jinja."""

from __future__ import annotations

from datetime import datetime

import pytest

from mistralrs.errors import LoadError, RequestError
from mistralrs.text import sandbox
from mistralrs.text.chat_template import ChatTemplate
from mistralrs.text.rendering import Renderer

MESSAGES = [{"role": "user", "content": "<b> é"}]


def render(source: str, **variables: object) -> str:
    return ChatTemplate(source, bos="<s>", eos="</s>").render(MESSAGES, **variables)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ messages | tojson }}", '[{"role": "user", "content": "<b> é"}]'),
        ("{{ messages[0] | tojson(indent=1, sort_keys=true) }}", '{\n "content": "<b> é",\n "role": "user"\n}'),
        ("{{ {'a': 1} | tojson(separators=(',', ':'), ensure_ascii=true) }}", '{"a":1}'),
        ("{% generation %}{% set x = 1 %}{{ messages[0].content }}{% endgeneration %}{{ x }}", "<b> é"),
        ("{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}"
         "{% endfor %}", "02"),
        ("{% for i in [1, 2, 3] %}{{ loop.index }}/{{ loop.length }}{{ loop.last }} {% endfor %}",
         "1/3False 2/3False 3/3True "),
        ("{% for i in range(9) if i % 4 == 0 %}{{ i }}{{ loop.revindex }}{% else %}none{% endfor %}", "034281"),
        ("{% for k, v in messages[0].items() recursive %}{{ k }}{% endfor %}", "rolecontent"),
        ("{% for i in nothing %}{{ i }}{% else %}none{% endfor %}", "none"),
        ("{{ tools is none }}{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ add_generation_prompt }}",
         "True<s></s>True"),
        ("  {% if true %}\nx\n  {% endif %}\n", "x\n"),
        ("{{ 'ab' * 3 }}{{ 2 ** 10 }}{{ [1] * 2 }}", "ababab1024[1, 1]"),
    ],
)  # fmt: skip
def test_allowed_templates(source: str, text: str) -> None:
    assert render(source) == text


def test_the_date_is_today() -> None:
    before, shown, after = datetime.now(), render("{{ strftime_now('%Y-%m-%d') }}"), datetime.now()
    assert shown in {before.strftime("%Y-%m-%d"), after.strftime("%Y-%m-%d")}


def test_variables_take_priority() -> None:
    assert render("{{ bos_token }}{{ name }}", bos_token="B", name="N") == "BN"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "more than 20000 steps"),
        ("{% set r = range(99999) %}{% for a in r %}{% for b in r if false %}{% endfor %}{% endfor %}", "steps"),
        ("{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}", "steps"),
        ("{{ range(10 ** 9) }}", "Range too big"),
        ("{{ 'x' * 10 ** 9 }}", "a repeated text is too long"),
        ("{{ 10 ** 9 * [1, 2] }}", "a repeated text is too long"),
        ("{{ 7 ** (10 ** 9) }}", "a power is too large"),
        ("{% set t = 'x' * 60000000 %}{{ t }}{{ t }}", "more than 67108864 characters"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ messages[0].update({'a': 1}) }}", "unsafe"),
        ("{{ messages[0].content.nothing.more }}", "has no attribute 'nothing'"),
        ("{{ 1 // 0 }}", "division"),
        ("{{ 1 + 'a' }}", "unsupported operand"),
        ("{{ lipsum() }}", "'lipsum' is undefined"),
    ],
)  # fmt: skip
def test_limits_stop_a_template(source: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_STEPS", 20_000)  # for a fast test
    template = Renderer(source, {})
    with pytest.raises(RequestError, match=f"the chat template failed on the messages: .*{reason}") as caught:
        template.render(MESSAGES, {}, add_generation_prompt=True)
    assert caught.value.param == "messages"


def test_a_long_talk_is_no_abuse() -> None:
    talk = [{"role": "user", "content": "x"}] * 1000
    chat = ChatTemplate("{% for m in messages %}{{ m.content.strip().upper() }}{% endfor %}", bos="", eos="")
    assert chat.render(talk) == "X" * 1000


def test_a_refusal_has_the_templates_message() -> None:
    with pytest.raises(RequestError, match=r"refuses the messages: only \[odd\] turns$"):
        render("{{ raise_exception('only [odd] turns') }}")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% if x", "expected"),
        ("{% endfor %}", "endfor"),
        ("{{ x | mystery }}", "No filter named 'mystery'"),
        ("{% for i in x %}" * 200 + "{% endfor %}" * 200, "compile"),
    ],
)
def test_a_template_that_does_not_compile(source: str, reason: str) -> None:
    with pytest.raises(LoadError, match=f"does not compile.*{reason}|{reason}"):
        ChatTemplate(source, bos="", eos="")
