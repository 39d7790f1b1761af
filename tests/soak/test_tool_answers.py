"""A short round of the drill over answers with calls; ``make soak`` makes the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.tool_answers import TOOLS, drill, faults

pytestmark = pytest.mark.native


@pytest.mark.parametrize("form", ["hermes", "functiongemma"])
def test_a_short_round_finds_nothing(form: str, tmp_path: Path) -> None:
    result = drill(10, tmp_path, form=form)
    assert result.findings == []
    assert result.report().endswith("Nothing.\n")
    assert result.calls > 1
    assert result.thoughts > 3 or form == "functiongemma"  # which has none


def test_faults_are_found() -> None:
    tools = [{"type": "function", "function": {"name": "now", "parameters": TOOLS["now"], "strict": True}}]
    body = {"tools": tools, "tool_choice": "required", "thinking_token_budget": 3}
    usage = {"completion_tokens_details": {"reasoning_tokens": 3}}
    call = {"name": "now", "arguments": "{}"}
    good = {"content": "", "calls": [call], "end": "tool_calls", "usage": usage}
    assert faults(body, good) == []
    for wrong in (
        {"content": "<tool_call>"},
        {"calls": []},
        {"end": "stop"},
        {"calls": [{"name": "now", "arguments": '{"a"'}]},
        {"calls": [{"name": "now", "arguments": '{"a": 1}'}]},
        {"usage": {"completion_tokens_details": {"reasoning_tokens": 60}}},
        {"error": "x"},
    ):
        assert faults(body, {**good, **wrong}), wrong
