"""The checks, in the order in which they are made, each with the clients that a fault breaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from mistralrs_cli.conformance import answer_checks, error_checks, tool_checks
from mistralrs_cli.conformance.checked_server import CheckedServer, Fault, NotChecked

ALL = "every client"


@dataclass(frozen=True, slots=True)
class Check:
    """One check. ``run`` raises ``Fault`` or ``NotChecked``."""

    name: str
    run: Callable[[CheckedServer], None]
    breaks: str
    """The clients that a fault breaks."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a check."""

    name: str
    state: Literal["ok", "fault", "not checked"]
    said: str
    """The fault, or the reason why nothing was checked."""
    breaks: str


CHECKS = (
    Check("models have ids", answer_checks.models, "clients that list models"),
    Check("message: role and text", answer_checks.message, "langchain, llama-index, litellm"),
    Check("id, object, time, model", answer_checks.identity, "openai's stream helper"),
    Check("finish_reason", answer_checks.finish_reason, "agents that read it"),
    Check("usage", answer_checks.usage, "litellm, llama-index: counts are lost or guessed"),
    Check("stream: choices in every event", answer_checks.choices, "openai, llama-index: TypeError"),
    Check("stream: role once", answer_checks.role, "openai's stream helper: assistantassistant"),
    Check("stream: deltas and one reason", answer_checks.last_delta, "openai, langchain"),
    Check("stream: no usage unasked", answer_checks.no_usage, "clients that read choices[0]"),
    Check("stream: usage when asked", answer_checks.asked_usage, "langchain: counts are summed or lost"),
    Check("stream: [DONE]", answer_checks.end, "clients that wait for it"),
    Check("stream: choice 0 first", answer_checks.order, "openai: IndexError; others merge texts"),
    Check("logprobs", answer_checks.logprobs, "llama-index, litellm"),
    Check("thought under both names", answer_checks.reasoning, "clients that read the other name"),
    Check("tool call", tool_checks.call, "openai, langchain, litellm"),
    Check("tool call: finish_reason", tool_checks.call_reason, "agents that read it"),
    Check("tool call: stream", tool_checks.streamed_call, "openai, llama-index: doubled or lost calls"),
    Check("error: body", error_checks.error_body, ALL),
    Check("error: 4xx for bad input", error_checks.bad_input, "clients try 5xx three times"),
    Check("error: unknown path", error_checks.unknown_path, "clients that look for features"),
    Check("error: context length", error_checks.context_length, "langchain, and agents that shorten"),
)


def run_checks(server: CheckedServer) -> Iterator[Outcome]:
    """Yields the result of each check. Raises ``UnreachableError`` for a server that cannot be reached."""
    for check in CHECKS:
        try:
            check.run(server)
        except Fault as fault:
            yield Outcome(check.name, "fault", str(fault), check.breaks)
        except NotChecked as reason:
            yield Outcome(check.name, "not checked", str(reason), check.breaks)
        else:
            yield Outcome(check.name, "ok", "", check.breaks)
