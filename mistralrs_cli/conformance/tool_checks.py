"""Checks of tool calls."""

from __future__ import annotations

import json
from typing import Any

from mistralrs.parsing import parse_nested
from mistralrs_cli.conformance.answer_checks import choice, stream_choices
from mistralrs_cli.conformance.checked_server import TOOLS, CheckedServer, Fault, NotChecked, Reply

_NAME = TOOLS[0]["function"]["name"]  # type: ignore[index]


def call(server: CheckedServer) -> None:
    """A call in one piece has an id, a type, a name and its arguments as text."""
    message = choice(_answered(server.tool_call).answer()).get("message")
    calls = message.get("tool_calls") if isinstance(message, dict) else None
    if not isinstance(calls, list) or not calls:
        raise Fault("tool_choice is required, and there is no call")
    for each in calls:
        _read_call(each)


def call_reason(server: CheckedServer) -> None:
    """An answer with a call ends with the reason 'tool_calls', in one piece and as a stream."""
    reason = choice(_answered(server.tool_call).answer()).get("finish_reason")
    reasons = [each["finish_reason"] for each in stream_choices(server.tool_stream) if each.get("finish_reason")]
    if reason != "tool_calls" or reasons != ["tool_calls"]:
        raise Fault(f"the reasons are {reason!r}, and {reasons} in the stream")


def streamed_call(server: CheckedServer) -> None:
    """The pieces of a call have its index; id, type and name stand in the first of them alone."""
    calls: dict[int, dict[str, Any]] = {}
    for each in stream_choices(_answered(server.tool_stream)):
        delta = each.get("delta")
        for piece in (delta.get("tool_calls") if isinstance(delta, dict) else None) or []:
            _add(piece, calls)
    if not calls:
        raise Fault("tool_choice is required, and the stream has no call")
    if sorted(calls) != list(range(len(calls))):
        raise Fault(f"the indices of the calls are {sorted(calls)}")
    for found in calls.values():
        _read_call(found)


def _add(piece: Any, calls: dict[int, dict[str, Any]]) -> None:
    index = piece.get("index") if isinstance(piece, dict) else None
    if not isinstance(index, int):
        raise Fault("a piece of a call has no index")
    function = piece.get("function") or {}
    if index not in calls:
        calls[index] = {**piece, "function": {"arguments": "", **function}}
        return
    for name, value in (("id", piece.get("id")), ("name", function.get("name"))):
        if value is not None:
            raise Fault(f"the {name} of a call is repeated")
    more = function.get("arguments", "")
    known = calls[index]["function"]
    if not isinstance(more, str) or not isinstance(known["arguments"], str):
        raise Fault("arguments are no text")
    known["arguments"] += more


def _read_call(found: Any) -> None:
    function = found.get("function") if isinstance(found, dict) else None
    if not isinstance(function, dict) or function.get("name") != _NAME:
        raise Fault(f"a call does not name the function {_NAME}")
    if not isinstance(found.get("id"), str) or not found["id"]:
        raise Fault("a call has no id")
    if found.get("type") != "function":
        raise Fault(f"the type of a call is {found.get('type')!r}")
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        raise Fault(f"arguments are a {type(arguments).__name__}, not a text")
    try:
        parse_nested(json.loads, arguments)
    except ValueError:
        raise Fault(f"arguments are no JSON: {arguments[:60]}") from None


def _answered(reply: Reply) -> Reply:
    if 400 <= reply.status < 500:
        raise NotChecked("the server refuses tools, or to require one")
    return reply
