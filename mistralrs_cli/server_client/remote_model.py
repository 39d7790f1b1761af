"""A server's model, with the interface of a model that is loaded."""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mistralrs.engine.config import SamplingParams
from mistralrs.errors import LoadError, MistralrsError, RequestError
from mistralrs_cli.arguments.own_sampling import FIELDS
from mistralrs_cli.model import Vocabulary
from mistralrs_cli.server_client.remote_stream import RemoteStream
from mistralrs_cli.server_client.remote_tokens import RemoteVocabulary
from mistralrs_cli.server_client.server_connection import Server, ServerConnection
from mistralrs_cli.server_client.server_errors import MissingPathError, UnreachableError

if TYPE_CHECKING:
    from mistralrs.api.loaded_adapters.known_adapters import ScalingAxes
    from mistralrs.grammar.grammar_text import GrammarText

_ALWAYS = ("seed", "max_tokens", "stop")
"""Fields that each request has, or has where they are set."""


@dataclass(frozen=True, slots=True)
class ServerChoice:
    """A server, the model to ask there, and the way of asking."""

    server: Server
    model_name: str | None
    """None: the first that the server has."""
    given: frozenset[str]
    """The sampling options that the user gave; another server than mistralrs gets no others."""
    concurrency: int
    """Requests at once, at most."""
    is_patient: bool
    """A request that a busy server refuses is sent again."""


@dataclass(frozen=True, slots=True)
class RemoteInfo:
    """What a server says of its model; empty or 0: nothing."""

    name: str
    backend: str
    """The server's address."""
    context_length: int
    architecture: str = ""
    quantization: str = ""
    threads: int = 0
    unavailable_backends: tuple[str, ...] = ()
    sampling: Mapping[str, float] = field(default_factory=dict)
    """The parameters that the makers recommend, as a mistralrs server says; another completes requests by itself."""
    precision: str = ""
    kv_cache_dtype: str = ""
    kv_token_bytes: int = 0


class RemoteAdapters:
    """Adapters of a server are models of it, and ``--model-name`` chooses one."""

    names: tuple[str, ...] = ()
    active: Mapping[str, float] = {}
    scaling_axes: ScalingAxes | None = None

    def require_scalings(self) -> ScalingAxes:
        """Raises ``RequestError``: a stream has no scalings."""
        raise RequestError("a server streams no scalings", hint="load the model here, without --connect")

    def describe(self) -> str:
        """Returns nothing: they are not known."""
        return ""

    def check(self, weights: Mapping[str, float]) -> None:
        """Raises ``RequestError`` for any adapter."""
        if weights:
            raise RequestError("adapters of a server are models of it", hint="--model-name chooses one")


class RemoteModel:
    """Asks a server for each answer. ``connect`` makes it."""

    has_template = True

    def __init__(self, choice: ServerChoice, info: RemoteInfo, *, is_ours: bool) -> None:
        self.info = info
        self._choice = choice
        self._is_ours = is_ours
        self._vocabulary = RemoteVocabulary(choice.server, info.name)
        self._given = set(choice.given)
        self._added = set[str]()
        self._permits = threading.Semaphore(choice.concurrency)
        self._streams: weakref.WeakSet[RemoteStream] = weakref.WeakSet()

    @property
    def tokenizer(self) -> Vocabulary:
        """The server's, which is asked for each text. Raises ``RequestError`` for a server of another make."""
        if not self._is_ours:
            raise RequestError(
                "only a mistralrs server is known to tell tokens", hint="load the model here, without --connect"
            )
        return self._vocabulary

    @property
    def template_source(self) -> str:
        """Raises ``RequestError``: it is the server's."""
        raise RequestError("the chat template is the server's", hint="load the model here, without --connect")

    @property
    def vocab_size(self) -> int:
        """Raises ``RequestError``, as ``tokenizer``."""
        raise RequestError("the vocabulary is the server's", hint="load the model here, without --connect")

    def known_adapters(self) -> RemoteAdapters:
        """Returns none: a server's adapters are models of it."""
        return RemoteAdapters()

    def chat(
        self,
        messages: Sequence[Mapping[str, object]],
        sampling: SamplingParams,
        *,
        truncate: bool = False,
        adapters: Mapping[str, float] | None = None,
        scalings: bool = False,
        grammar: GrammarText | None = None,
        thinking: bool | None = None,
        continues: bool = False,
    ) -> RemoteStream:
        """Asks for an answer to a conversation. Raises ``RequestError`` for what cannot be asked of a server."""
        if truncate:
            raise RequestError("a server cannot be told to drop the beginning of a prompt", hint="shorten the prompt")
        self.known_adapters().check(adapters or {})
        if scalings:
            self.known_adapters().require_scalings()
        if continues and not self._is_ours:
            raise RequestError("only a mistralrs server is known to continue an answer", hint="ask it to go on")
        body = {
            "model": self.info.name,
            "messages": list(messages),
            "stream": True,
            "stream_options": {"include_usage": True},
            "seed": sampling.seed,
            **self._sampling_fields(sampling),
            **({} if sampling.logprobs is None else {"logprobs": True, "top_logprobs": sampling.logprobs}),
            **self._grammar_fields(grammar),
            **({} if thinking is None else {"chat_template_kwargs": {"enable_thinking": thinking}}),
            **({"continue_final_message": True} if continues else {}),
        }
        stream = RemoteStream(
            self._choice.server,
            body,
            seed=sampling.seed,
            permits=self._permits,
            is_patient=self._choice.is_patient,
        )
        self._streams.add(stream)
        return stream

    def tokens_of(self, messages: Sequence[Mapping[str, object]]) -> tuple[int, ...]:
        """Returns the ids of a conversation's prompt. Raises ``RequestError`` as ``tokenizer`` does."""
        if not self._is_ours:
            raise RequestError(
                "only a mistralrs server is known to count tokens", hint="load the model here, without --connect"
            )
        return self._vocabulary.encode_conversation(messages)

    def sends(self, field: str) -> bool:
        """Returns whether requests carry a field of ``SamplingParams``; the server decides about the others."""
        options = [option for option, name in FIELDS.items() if name == field]
        is_given = any(option in self._given for option in options) or field in self._added
        return is_given or field in _ALWAYS or (self._is_ours and bool(options))

    def give(self, field: str) -> None:
        """Sends a field of ``SamplingParams`` with later requests. Raises ``RequestError`` for one that the server is
        not known to obey."""
        options = [option for option, name in FIELDS.items() if name == field]
        self._given.update(options)
        if options or field in _ALWAYS:
            return
        if not self._is_ours:
            raise RequestError(f"only a mistralrs server is known to obey {field}", hint="load the model here")
        self._added.add(field)

    def complete(self, prompt: Sequence[int], sampling: SamplingParams, *, scalings: bool = False) -> RemoteStream:
        """Raises ``RequestError``: ids are those of the server's tokenizer."""
        raise RequestError("token ids cannot be sent to a server", hint="load the model here, without --connect")

    def close(self) -> None:
        """Cancels the answers that are under way."""
        for stream in list(self._streams):
            stream.cancel()

    def _sampling_fields(self, sampling: SamplingParams) -> dict[str, object]:
        """Returns the sampling as fields of the body: a server of another kind keeps its own defaults."""
        fields: dict[str, object] = {
            field: getattr(sampling, field)
            for option, field in FIELDS.items()
            if self._is_ours or option in self._given
        }
        fields |= {field: getattr(sampling, field) for field in sorted(self._added)}
        if sampling.max_tokens is not None:
            fields["max_tokens"] = sampling.max_tokens
        if sampling.stop:
            fields["stop"] = list(sampling.stop)
        return fields

    def _grammar_fields(self, grammar: GrammarText | None) -> dict[str, object]:
        """Returns the grammar as a field of the body; servers of other kinds have only JSON schemas in common."""
        if grammar is None:
            return {}
        if self._is_ours:
            return {"grammar": {"type": grammar.kind, "value": grammar.text}}
        if grammar.kind != "json_schema":
            message = f"only a mistralrs server is known to obey a grammar of kind {grammar.kind}"
            raise RequestError(message, hint="--schema works with most servers")
        schema = {"name": "answer", "schema": json.loads(grammar.text), "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}


def connect(choice: ServerChoice) -> RemoteModel:
    """Returns the model of a server. Raises ``LoadError`` for a server or a model that is not there."""
    server = choice.server
    models = _models(server, needs_some=choice.model_name is None)
    is_ours = _is_ours(server)
    name = choice.model_name or str(models[0]["id"])
    card = next((each for each in models if each["id"] == name), None)
    if card is None and is_ours:
        has = ", ".join(str(each["id"]) for each in models)
        raise LoadError(f"{server.address} has no model {name!r}", hint=f"it has {has}")
    length, own = _context_length(card or {}), _own_sampling(card or {}) if is_ours else {}
    return RemoteModel(choice, RemoteInfo(name, str(server.address), length, sampling=own), is_ours=is_ours)


def _is_ours(server: Server) -> bool:
    try:
        found = ServerConnection(server).get("/capabilities")
    except UnreachableError:
        raise
    except MistralrsError:  # in whichever way it says that it knows no such path
        return False
    return isinstance(found, dict) and found.get("object") == "capabilities"


def _models(server: Server, *, needs_some: bool) -> list[Mapping[str, object]]:
    """Returns the entries of the server's list of models. ``needs_some``: raises ``LoadError`` if there are none."""
    try:
        found = ServerConnection(server).get("/models")
    except (MissingPathError, RequestError):
        if needs_some:
            raise
        return []
    listed = found.get("data") if isinstance(found, dict) else None
    models: list[Mapping[str, object]] = [
        each for each in listed or () if isinstance(each, dict) and isinstance(each.get("id"), str)
    ]
    if not models and needs_some:
        raise LoadError(f"{server.address} lists no model", hint="--model-name names the one to ask")
    return models


def _context_length(card: Mapping[str, object]) -> int:
    """Returns the context's length under any of the names that servers use; 0: it is not said."""
    meta = card.get("meta")
    for value in (
        card.get("context_length"),
        card.get("max_model_len"),
        meta.get("n_ctx") if isinstance(meta, dict) else None,
    ):
        if isinstance(value, int) and value > 0:
            return value
    return 0


def _own_sampling(card: Mapping[str, object]) -> dict[str, float]:
    """Returns the sampling parameters that a mistralrs server names for its model."""
    named = card.get("default_sampling")
    values = named if isinstance(named, dict) else {}
    return {name: value for name in FIELDS.values() if isinstance(value := values.get(name), int | float)}
