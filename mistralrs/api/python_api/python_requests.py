"""Requests of a Python caller to a ``Runner``: messages, and requests with the argument order of mistral.rs.

A request becomes the body that the server reads (``request_bodies``), which holds the only rules. Fields without an
argument go by the body's own name: ``seed=1``, ``min_p=0.1``, ``stream_options={"include_usage": True}``.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import PydanticSerializationError, to_json

from mistralrs.api.python_api.closed_json_schema import ClosedJsonSchema
from mistralrs.api.python_api.function_tools import tool_from
from mistralrs.api.schemas import parameter_table, request_bodies
from mistralrs.engine.request_hooks import Hooks, LogitsProcessor, StoppingRule
from mistralrs.errors import RequestError
from mistralrs.grammar.grammar_text import GRAMMAR_KINDS

_PYTHON_NAMES = {"n": "n_choices", "stop": "stop_seqs", "echo": "echo_prompt"}
"""The argument's name by the body's name, where the two differ."""

Body = TypeVar("Body", bound=request_bodies.Body)


class Role(enum.StrEnum):
    """The author of a message."""

    System = "system"
    User = "user"
    Assistant = "assistant"
    Tool = "tool"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: ``Message(Role.User, "Hello!")``. It is checked by the request that it becomes a part of."""

    role: Role | str
    content: str | Sequence[Mapping[str, Any]] | None
    """A text, or parts of type ``text``. None: the message of an assistant that called tools."""
    name: str | None = field(default=None, kw_only=True)
    tool_calls: Sequence[Mapping[str, Any]] | None = field(default=None, kw_only=True)
    tool_call_id: str | None = field(default=None, kw_only=True)


Messages = Sequence[Message | Mapping[str, Any] | BaseModel]
"""A conversation: messages, dicts as the server reads them, and messages of answers."""


class ChatCompletionRequest:
    """Asks for the answer to a conversation."""

    body: request_bodies.ChatCompletionBody
    """The same request as the server would read it."""
    response_adapter: TypeAdapter[Any] | None
    """The reader of the answer's value; None: the answer is any text."""
    hooks: Hooks | None
    """The functions that take part in sampling."""

    def __init__(
        self,
        messages: str | Messages,
        model: str | None = None,
        logprobs: bool = False,
        n_choices: int = 1,
        logit_bias: Mapping[int, float] | Mapping[str, float] | None = None,
        top_logprobs: int | None = None,
        max_tokens: int | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        stop_seqs: str | Sequence[str] | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        stream: bool = False,
        grammar: str | Mapping[str, Any] | Sequence[str] | None = None,
        grammar_type: str | None = None,
        *,
        tools: Sequence[Callable[..., object] | Mapping[str, Any]] | None = None,
        response_model: type[Any] | None = None,
        logits_processors: Sequence[LogitsProcessor] = (),
        stopping_rules: Sequence[StoppingRule] = (),
        **fields: Any,
    ) -> None:
        """``messages``: a conversation, or the text of one user. ``model``: the runner's, or one of its adapters.
        ``grammar_type``: one of ``GRAMMAR_KINDS``. ``tools``: functions or definitions. ``response_model``: a type of
        which the answer is JSON. ``fields``: others of the body, by its names. Raises RequestError, and TypeError.
        """
        given = {
            "messages": messages,
            "model": model,
            "logprobs": logprobs,
            "n": n_choices,
            "logit_bias": logit_bias,
            "top_logprobs": top_logprobs,
            "max_tokens": max_tokens,
            "presence_penalty": presence_penalty,
            "frequency_penalty": frequency_penalty,
            "stop": stop_seqs,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "stream": stream,
            "grammar": _grammar(grammar, grammar_type),
            "tools": None if tools is None else [tool_from(each) if callable(each) else each for each in tools],
        }
        self.hooks = _hooks(logits_processors, stopping_rules)
        self.response_adapter, more = _response_format(response_model, fields)
        self.body = _validated(request_bodies.ChatCompletionBody, "chat", given, fields | more)


class CompletionRequest:
    """Asks for the continuation of a text."""

    body: request_bodies.CompletionBody
    """The same request as the server would read it."""
    hooks: Hooks | None
    """The functions that take part in sampling."""

    def __init__(
        self,
        prompt: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]],
        model: str | None = None,
        best_of: int | None = None,
        echo_prompt: bool = False,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        logit_bias: Mapping[int, float] | Mapping[str, float] | None = None,
        max_tokens: int | None = None,
        n_choices: int = 1,
        stop_seqs: str | Sequence[str] | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        suffix: str | None = None,
        top_k: int | None = None,
        grammar: str | Mapping[str, Any] | Sequence[str] | None = None,
        grammar_type: str | None = None,
        *,
        logits_processors: Sequence[LogitsProcessor] = (),
        stopping_rules: Sequence[StoppingRule] = (),
        **fields: Any,
    ) -> None:
        """``prompt``: a text, token ids, or several of either. ``best_of``: None is ``n_choices``. The others are as in
        ``ChatCompletionRequest``. Raises RequestError for what cannot be served.
        """
        given = {
            "prompt": prompt,
            "model": model,
            "best_of": best_of,
            "echo": echo_prompt,
            "presence_penalty": presence_penalty,
            "frequency_penalty": frequency_penalty,
            "logit_bias": logit_bias,
            "max_tokens": max_tokens,
            "n": n_choices,
            "stop": stop_seqs,
            "temperature": temperature,
            "top_p": top_p,
            "suffix": suffix,
            "top_k": top_k,
            "grammar": _grammar(grammar, grammar_type),
        }
        self.hooks = _hooks(logits_processors, stopping_rules)
        self.body = _validated(request_bodies.CompletionBody, "completions", given, fields)


class EmbeddingRequest:
    """Asks for the embeddings of texts."""

    body: request_bodies.EmbeddingBody
    """The same request as the server would read it."""

    def __init__(
        self,
        input: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]],
        model: str | None = None,
        *,
        pooling: Literal["mean", "last"] | None = None,
        hidden_states: bool = False,
        **fields: Any,
    ) -> None:
        """``input``: a text, token ids, or several of either. ``pooling``: the mean over the tokens, which is the
        default, or the last token. ``hidden_states``: the answer has the hidden states of each token as well.
        ``fields``: others of the body. Raises RequestError for what cannot be served.
        """
        if hidden_states and fields.get("encoding_format") == "base64":
            raise RequestError("hidden_states needs embeddings as numbers", param="encoding_format")
        self.hidden_states = hidden_states
        given = {"input": input, "model": model, "pooling": pooling}
        self.body = _validated(request_bodies.EmbeddingBody, "embeddings", given, fields)


def tokenize_body(text: str | Messages, **fields: Any) -> request_bodies.TokenizeBody:
    """Returns the body that asks for the tokens of a raw text, or of the prompt of messages. Raises RequestError."""
    given = {"prompt" if isinstance(text, str) else "messages": text}
    return _validated(request_bodies.TokenizeBody, "tokenize", given, fields)


def refuse_ignored(names: Sequence[str]) -> None:
    """Raises RequestError if there are any: in Python there is no header that could name ignored parameters."""
    parameter_table.refuse_ignored(names, hint="leave them out")


def _validated(
    kind: type[Body], endpoint: parameter_table.Endpoint, given: Mapping[str, Any], fields: Mapping[str, Any]
) -> Body:
    for name, python_name in _PYTHON_NAMES.items():
        if name in fields:
            raise TypeError(f"{name} is called {python_name} here")
    try:
        # arguments of None are left out, so that another name of the field may be given
        body = kind.model_validate_json(_json({k: v for k, v in given.items() if v is not None} | dict(fields)))
    except ValidationError as error:
        errors = [
            {**each, "loc": (_PYTHON_NAMES.get(str(each["loc"][0]), each["loc"][0]), *each["loc"][1:])}
            for each in error.errors(include_url=False, include_input=False)
        ]
        raise request_bodies.validation_error(errors) from None
    refuse_ignored(parameter_table.unserved(endpoint, body))
    return body


def _json(fields: Mapping[str, Any]) -> bytes:
    """Returns a body as clients send it, so that the same checks hold for all.

    Raises RequestError for data that is no text.
    """
    parts = []
    for name, value in fields.items():
        try:
            parts.append(to_json(name) + b":" + to_json(value))
        except (PydanticSerializationError, UnicodeEncodeError) as error:
            python_name = _PYTHON_NAMES.get(name, name)
            raise RequestError(f"{python_name} cannot be written as JSON: {error}", param=python_name) from error
    return b"{" + b",".join(parts) + b"}"


def _response_format(
    kind: type[Any] | None, fields: Mapping[str, Any]
) -> tuple[TypeAdapter[Any] | None, dict[str, Any]]:
    """Returns the reader of a type's values and the field that asks for JSON of its schema; neither without a type."""
    if kind is None:
        return None, {}
    if "response_format" in fields:
        raise TypeError("response_model and response_format say the same: give one of them")
    # OpenAI's interface accepts letters, digits, _ and - in a name, at most 64
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", getattr(kind, "__name__", "") or str(kind))[:64]
    try:
        adapter = TypeAdapter(kind)
        schema = adapter.json_schema(schema_generator=ClosedJsonSchema)
    except PydanticUserError as error:
        raise TypeError(f"response_model has no JSON schema: {error.message}") from error
    asked = {"name": name, "schema": schema, "strict": True}
    return adapter, {"response_format": {"type": "json_schema", "json_schema": asked}}


def _hooks(processors: Sequence[LogitsProcessor], rules: Sequence[StoppingRule]) -> Hooks | None:
    for name, functions in (("logits_processors", processors), ("stopping_rules", rules)):
        if callable(functions) or not all(callable(each) for each in functions):
            raise TypeError(f"{name} must be a list of functions")
    return Hooks(tuple(processors), tuple(rules)) if processors or rules else None


def _grammar(grammar: str | Mapping[str, Any] | Sequence[str] | None, kind: str | None) -> Mapping[str, object] | None:
    """Returns the body's field. Raises RequestError where one of the two is missing, and for an unknown kind."""
    if grammar is None and kind is None:
        return None
    if grammar is None or kind is None:
        missing, there = ("grammar", "grammar_type") if grammar is None else ("grammar_type", "grammar")
        raise RequestError(f"{there} needs {missing}", param=missing)
    if kind not in GRAMMAR_KINDS:
        hint = f"the kinds are {', '.join(GRAMMAR_KINDS)}"
        raise RequestError(f"there is no grammar_type {kind!r}", hint=hint, param="grammar_type")
    return {"type": kind, "value": grammar}
