"""The one table of a request's parameters: their names, their endpoints, and their treatment.

A parameter is applied, or refused with a reason, or ignored and named. ``request_bodies`` has the ranges.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from mistralrs.api.schemas.request_bodies import Body
from mistralrs.errors import RequestError

Endpoint = Literal[
    "chat",
    "completions",
    "embeddings",
    "tokenize",
    "detokenize",
    "apply_template",
    "load_lora_adapter",
    "unload_lora_adapter",
    "responses",
    "messages",
    "count_tokens",
]
Use = Literal["applied", "refused", "ignored"]

BOTH: tuple[Endpoint, ...] = ("chat", "completions")
CHAT: tuple[Endpoint, ...] = ("chat",)
COMPLETIONS: tuple[Endpoint, ...] = ("completions",)
RESPONSES: tuple[Endpoint, ...] = ("responses",)
MESSAGES: tuple[Endpoint, ...] = ("messages",)
MESSAGES_PROMPTS: tuple[Endpoint, ...] = ("messages", "count_tokens")
TRANSLATED: tuple[Endpoint, ...] = ("responses", "messages", "count_tokens")
TRANSLATED_SAMPLING: tuple[Endpoint, ...] = ("responses", "messages")
TEMPLATED: tuple[Endpoint, ...] = ("chat", "tokenize", "apply_template")

MAX_NAMES = 32
"""Ignored parameters that are named in a header or a sentence; more are only counted."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A row of the table."""

    name: str
    endpoints: tuple[Endpoint, ...]
    use: Use = "applied"
    why: str = ""
    """The reason why it is not applied; follows the name in messages."""
    aliases: tuple[str, ...] = ()
    harmless: tuple[object, ...] = ()
    """Values of a refused parameter that have no effect and are therefore accepted. null always is."""


_LOCAL = "has no meaning on a local server"
_KEEPS_NOTHING = "is not supported: this server keeps nothing between requests"
_TEXT_ONLY = "is not supported: the answer is text"


def _applied(endpoints: tuple[Endpoint, ...], *names: str) -> Iterator[Parameter]:
    return (Parameter(name, endpoints) for name in names)


def _ignored(endpoints: tuple[Endpoint, ...], why: str, *names: str) -> Iterator[Parameter]:
    return (Parameter(name, endpoints, "ignored", why) for name in names)


def _refused(
    endpoints: tuple[Endpoint, ...], why: str, *names: str, harmless: tuple[object, ...] = ()
) -> Iterator[Parameter]:
    return (Parameter(name, endpoints, "refused", why, harmless=harmless) for name in names)


PARAMETERS: tuple[Parameter, ...] = (
    *_applied((*BOTH, "embeddings", "tokenize", "detokenize", "apply_template"), "model"),
    *_applied((*BOTH, "embeddings"), "adapter", "adapters", "lora", "adapter_id"),
    *_applied(TEMPLATED, "messages", "add_generation_prompt", "continue_final_message", "chat_template_kwargs"),
    *_applied(("completions", "tokenize"), "prompt"),
    *_applied(BOTH, "stream", "stream_options", "n", "logprobs", "timings_per_token", "cache_prompt", "scalings"),
    *_applied(BOTH, "stop", "stop_token_ids", "ignore_eos", "min_tokens", "seed", "logit_bias"),
    *_applied(BOTH, "temperature", "top_k", "top_p", "min_p", "samplers"),
    Parameter("max_tokens", BOTH, aliases=("n_predict",)),
    Parameter("typical_p", BOTH, aliases=("typ_p",)),
    Parameter("repetition_penalty", BOTH, aliases=("repeat_penalty",)),
    *_applied(BOTH, "presence_penalty", "frequency_penalty", "repeat_last_n", "xtc_probability", "xtc_threshold"),
    *_applied(BOTH, "dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers"),
    *_applied(BOTH, "response_format", "grammar", "json_schema", "format", "structured_outputs"),
    *_applied(BOTH, "guided_json", "guided_json_object", "guided_regex", "guided_choice", "guided_grammar"),
    *_applied(BOTH, "guided_whitespace_pattern"),
    *_applied(CHAT, "max_completion_tokens", "top_logprobs"),
    *_applied(TEMPLATED, "tools", "reasoning_effort"),
    *_applied(CHAT, "tool_choice", "parallel_tool_calls", "functions", "function_call", "thinking_token_budget"),
    *_applied(BOTH, "logits_processors", "stopping_rules"),
    *_applied(COMPLETIONS, "best_of", "echo", "suffix"),
    *_applied(("embeddings",), "input", "encoding_format", "dimensions", "pooling"),
    *_applied(("tokenize",), "content", "add_special", "add_special_tokens", "parse_special", "with_pieces"),
    *_applied(("detokenize",), "tokens"),
    *_applied(("load_lora_adapter", "unload_lora_adapter"), "lora_name"),
    *_applied(("load_lora_adapter",), "lora_path", "load_inplace"),
    *_ignored(("unload_lora_adapter",), "is not needed beside lora_name", "lora_int_id"),
    *_ignored((*BOTH, "embeddings"), _LOCAL, "user"),
    *_ignored(BOTH, _LOCAL, "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "metadata", "store"),
    *_ignored(BOTH, _LOCAL, "service_tier"),
    *_ignored(CHAT, "is not known to this model", "verbosity"),
    *_ignored(CHAT, "only hints at the answer", "prediction"),
    *_refused(BOTH, "is not supported: an answer ends before it", "include_stop_str_in_output", harmless=(False,)),
    *_refused(BOTH, "is not supported: control tokens have no text", "skip_special_tokens", harmless=(True,)),
    *_refused(CHAT, _TEXT_ONLY, "modalities", harmless=(["text"],)),
    *_refused(CHAT, _TEXT_ONLY, "audio"),
    *_refused(CHAT, "is not supported: this server does not search the web", "web_search_options"),
    *_refused(CHAT, "is not supported: only who starts the server chooses the template", "chat_template"),
    *_applied(TRANSLATED, "model", "adapter", "adapters", "lora", "adapter_id", "chat_template_kwargs"),
    *_applied(TRANSLATED, "tools", "tool_choice"),
    *_applied(TRANSLATED_SAMPLING, "stream", "seed", "temperature", "top_k", "top_p", "min_p"),
    *_applied(TRANSLATED_SAMPLING, "presence_penalty", "frequency_penalty", "repetition_penalty"),
    *_applied(RESPONSES, "input", "instructions", "max_output_tokens", "text", "parallel_tool_calls", "reasoning"),
    *_applied(RESPONSES, "top_logprobs", "include", "truncation", "stop", "store"),
    *_ignored(RESPONSES, _LOCAL, "user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    *_ignored(RESPONSES, _LOCAL, "prompt_cache_options", "metadata", "service_tier", "stream_options"),
    *_ignored(RESPONSES, "counts tools that a server runs", "max_tool_calls"),
    *_refused(RESPONSES, _KEEPS_NOTHING, "previous_response_id", "conversation", "prompt"),
    *_refused(RESPONSES, _KEEPS_NOTHING, "context_management", harmless=([],)),
    *_refused(RESPONSES, _KEEPS_NOTHING, "background", harmless=(False,)),
    *_applied(MESSAGES_PROMPTS, "messages", "system", "thinking", "output_config"),
    *_ignored(MESSAGES_PROMPTS, "is not needed: every prompt is cached", "cache_control"),
    *_applied(MESSAGES, "max_tokens", "stop_sequences"),
    *_ignored(MESSAGES, _LOCAL, "metadata", "service_tier", "inference_geo"),
    *_ignored(MESSAGES, "is not needed: a prompt stays whole", "context_management"),
    *_refused(MESSAGES, _KEEPS_NOTHING, "container"),
    *_refused(MESSAGES, "is not supported: this server runs no tools", "mcp_servers", harmless=([],)),
)


def rows(endpoint: Endpoint) -> dict[str, Parameter]:
    """Returns the parameters of an endpoint by name."""
    return {parameter.name: parameter for parameter in PARAMETERS if endpoint in parameter.endpoints}


_ROWS: dict[str, dict[str, Parameter]] = {
    endpoint: rows(endpoint) for parameter in PARAMETERS for endpoint in parameter.endpoints
}
_CANONICAL = {alias: parameter.name for parameter in PARAMETERS for alias in parameter.aliases}


def unserved(endpoint: Endpoint, body: Body) -> tuple[str, ...]:
    """Returns the names of the given fields that change nothing, in their order.

    Raises RequestError for a refused field, and for a parameter that is given under two names.
    """
    known = _ROWS[endpoint]
    names = []
    for name, value in _given(body):
        parameter = known.get(name)
        if parameter is None:
            canonical = _CANONICAL.get(name)
            if canonical in known:  # a declared field would not be among these
                raise RequestError(f"{canonical} and {name} are the same parameter; send one of them", param=name)
            names.append(name)
        elif parameter.use == "ignored":
            names.append(name)
        elif parameter.use == "refused" and value not in parameter.harmless:
            raise RequestError(f"{name} {parameter.why}", code="unsupported_parameter", param=name)
    return tuple(names)


def _given(body: Body) -> Iterator[tuple[str, object]]:
    """Returns the fields that have a value, unknown ones after the known."""
    for name in type(body).model_fields:
        if name in body.model_fields_set and getattr(body, name) is not None:
            yield name, getattr(body, name)
    for name, value in (body.model_extra or {}).items():
        if value is not None:
            yield name, value


def unknown_within(path: str, body: Body | None) -> tuple[str, ...]:
    """Returns the names of a part's fields that are not read, such as ``stream_options.x``."""
    extra = {} if body is None else body.model_extra or {}
    return tuple(f"{path}.{name}" for name, value in extra.items() if value is not None)


def refuse_ignored(names: Iterable[str], *, hint: str = "leave them out, or start the server without --strict") -> None:
    """Raises RequestError if there are ignored parameters: a strict server does this instead of ignoring."""
    listed = tuple(names)
    if listed:
        shown = ignored_header(listed)
        raise RequestError(
            f"these parameters would be ignored: {shown}",
            hint=hint,
            code="unsupported_parameter",
            param=shown.split(", ")[0],
        )


def ignored_header(names: Iterable[str]) -> str:
    """Returns names as the value of the header ``x-mistralrs-ignored``: printable ASCII of bounded length.

    Names may come from the client: a character that is no letter, digit, ``_``, ``.``, ``-``, ``[`` or ``]`` becomes
    ``?``.
    """
    listed = tuple(names)
    shown = [re.sub(r"[^A-Za-z0-9_.\[\]-]", "?", name[:64]) for name in listed[:MAX_NAMES]]
    return ", ".join(shown + [f"and {len(listed) - MAX_NAMES} more"] * (len(listed) > MAX_NAMES))


def capabilities() -> dict[str, object]:
    """Returns the table as ``GET /v1/capabilities`` shows it, by endpoint."""
    return {endpoint: _shown(known) for endpoint, known in _ROWS.items()}


def _shown(known: dict[str, Parameter]) -> dict[str, object]:
    applied = [
        {"name": row.name, "aliases": list(row.aliases)} if row.aliases else {"name": row.name}
        for row in known.values()
        if row.use == "applied"
    ]
    refused = [
        {"name": row.name, "why": row.why, "accepted_values": [None, *row.harmless]}
        for row in known.values()
        if row.use == "refused"
    ]
    ignored = [{"name": row.name, "why": row.why} for row in known.values() if row.use == "ignored"]
    return {"applied": applied, "refused": refused, "ignored": ignored}
