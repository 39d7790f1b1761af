"""Schemas of the answers that only the server gives; ``api.schemas.response_bodies`` has the others.

Answers are built elsewhere; a test compares real ones with these.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, RootModel

from mistralrs.api.schemas import response_bodies
from mistralrs.api.schemas.response_bodies import Part
from mistralrs.api.schemas.translated import messages_bodies, responses_bodies


class Version(Part):
    """The answer to ``GET /version``"""

    version: str


class AppliedParameter(Part):
    """It does what it says."""

    name: str
    aliases: list[str] | None = None


class RefusedParameter(Part):
    """It is an error, unless its value is one of these."""

    name: str
    why: str
    accepted_values: list[Any]


class IgnoredParameter(Part):
    """It changes nothing and is named in the header x-mistralrs-ignored; a strict server refuses it."""

    name: str
    why: str


class ParameterTable(Part):
    """The parameters of an endpoint. Others are ignored."""

    applied: list[AppliedParameter]
    refused: list[RefusedParameter]
    ignored: list[IgnoredParameter]


class Capabilities(Part):
    """The answer to ``GET /v1/capabilities``"""

    object: Literal["capabilities"]
    endpoints: dict[str, ParameterTable]


class RequestFacts(Part):
    """A request under way."""

    id: str
    """As in its answer; ``DELETE /v1/requests/{id}`` takes this or the next."""
    object: Literal["request"]
    request_id: str
    """As in the header x-request-id."""
    endpoint: str
    state: Literal["queued", "prefill", "decode"]
    choices: int
    tokens: int
    """Drawn so far."""
    age_s: float


class RequestList(Part):
    """The answer to ``GET /v1/requests``: those that came with the same key."""

    object: Literal["list"]
    data: list[RequestFacts]


class Cancelled(Part):
    """The answer to ``DELETE /v1/requests/{id}``; the request itself ends with the error ``request_cancelled``."""

    id: str
    object: Literal["request"]
    cancelled: Literal[True]


class Adapter(Part):
    """An adapter that requests can name."""

    id: str
    """Its name."""
    object: Literal["adapter"]
    source: str
    """A path, or a hub repository."""
    rank: int
    digest: str
    """Hash of its content."""
    alora: bool
    """It acts from its invocation tokens on."""
    merged: bool
    """It is merged into the model's weights."""
    weight: float
    """Its weight in requests that choose no adapters; 0: it does not act on these."""


class AdapterList(Part):
    """The answer to ``GET /v1/lora_adapters``"""

    object: Literal["list"]
    data: list[Adapter]
    max_adapters: int
    """Adapters that can act at once."""
    generation: int
    """As ``adapter_generation`` in answers."""


class LoadedAdapter(Adapter):
    """The answer to ``POST /v1/load_lora_adapter``"""

    generation: int


class UnloadedAdapter(Part):
    """The answer to ``POST /v1/unload_lora_adapter``"""

    id: str
    object: Literal["adapter"]
    unloaded: Literal[True]
    generation: int


class LoraAdapter(Part):
    """An adapter as llama.cpp lists it."""

    id: int
    """Its place in the list."""
    name: str
    path: str
    scale: float
    """Its weight in requests that choose no adapters."""


class LoraAdapters(RootModel[list[LoraAdapter]]):
    """The answer to ``GET /lora-adapters``"""


class Success(Part):
    """The answer to ``POST /lora-adapters``"""

    success: Literal[True]


ALL: tuple[type[BaseModel], ...] = (
    response_bodies.ChatCompletion,
    response_bodies.ChatCompletionChunk,
    response_bodies.Completion,
    response_bodies.CompletionChunk,
    response_bodies.EmbeddingList,
    response_bodies.ModelList,
    response_bodies.Tokens,
    response_bodies.Detokenized,
    response_bodies.AppliedTemplate,
    response_bodies.Error,
    Version,
    Capabilities,
    RequestList,
    Cancelled,
    AdapterList,
    LoadedAdapter,
    UnloadedAdapter,
    LoraAdapters,
    Success,
    responses_bodies.ResponsesAnswer,
    responses_bodies.ResponseEvent,
    messages_bodies.MessagesAnswer,
    messages_bodies.MessagesEvent,
    messages_bodies.MessagesError,
    messages_bodies.TokenCount,
)
"""Every answer that is JSON, and the chunks of streams."""
