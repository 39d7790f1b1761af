"""The fields by which requests choose adapters, and the bodies of requests that change the adapters."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field, RootModel

from mistralrs.api.schemas.body import Body
from mistralrs.api.schemas.field_types import Flag, Int, Number, Text
from mistralrs.api.schemas.sentinels import MAX_INT

MAX_ADAPTERS = 1024
"""Adapters that one request names, at most."""


class LoraScale(Body):
    """An adapter and its weight, as llama.cpp has them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[Int, Field(ge=0, le=MAX_INT)]
    """The adapter's place in ``GET /lora-adapters``."""
    scale: Number


class AdapterFields(Body):
    """The names by which clients choose adapters. Those that are given must agree; without any, the default ones
    act."""

    model: Text | None = None
    """The served model, or an adapter."""
    adapter: Text | None = None
    """An adapter; ``none``: no adapter acts."""
    adapters: Annotated[dict[str, Number], Field(max_length=MAX_ADAPTERS)] | None = None
    """Weights by name, of a mix; empty: no adapter acts."""
    lora: Annotated[list[LoraScale], Field(max_length=MAX_ADAPTERS)] | None = None
    """As llama.cpp has it; adapters that are left out do not act."""
    adapter_id: Text | None = None
    """An adapter, as LoRAX has it."""


class LoadAdapterBody(Body):
    """``POST /v1/load_lora_adapter``, as vLLM has it."""

    lora_name: Text
    lora_path: Text
    """A path in the folder of adapters, or a hub repository that the server was started with."""
    load_inplace: Flag | None = None
    """It may replace an adapter of this name."""


class UnloadAdapterBody(Body):
    """``POST /v1/unload_lora_adapter``, as vLLM has it."""

    lora_name: Text
    lora_int_id: Any = None
    """Ignored, see ``parameter_table``."""


class LoraScales(RootModel[Annotated[list[LoraScale], Field(max_length=MAX_ADAPTERS)]]):
    """``POST /lora-adapters``: the adapters that act on later requests that choose none; the others do not."""
