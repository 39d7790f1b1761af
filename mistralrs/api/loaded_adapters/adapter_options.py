"""The adapters that a model is loaded with, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mistralrs.errors import UsageError

NO_ADAPTER = "none"
"""The name that asks for no adapter at all."""
SPARE_SLOTS = 8
ASSUMED_RANK = 16
"""The rank for which memory is left to adapters that may come, where neither their rank nor their bytes are limited."""
MAX_NAME = 128
"""Characters of an adapter's name, at most."""
_SEPARATORS = frozenset(":,=")


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """A LoRA adapter to load beside a model."""

    name: str
    """The name by which requests choose it."""
    source: str
    """A folder or file, or a hub repository, perhaps with ``@revision``."""
    subfolder: str | None = None
    """The folder or GGUF file of the adapter in it, where it holds several."""
    is_repository: bool = False
    """It is an adapter, or the repository of several, whose names its configs say when it is loaded; all of them act
    where ``name`` does. ``adapter_sources`` replaces it by them."""


@dataclass(frozen=True, slots=True)
class AdapterOptions:
    """The adapters of a model."""

    adapters: tuple[AdapterSource, ...] = ()
    active: tuple[tuple[str, float], ...] = ()
    """Names and weights of those that act on requests that choose none."""
    merge: bool | None = None
    """Whether the active ones are merged into the weights; None: where there is no other adapter, none can come while
    serving, and the weights are stored as floats."""
    max_adapters: int | None = None
    """Slots; None: as many as there are adapters, and at least ``SPARE_SLOTS`` where others may come."""
    max_rank: int | None = None
    max_bytes: int | None = None
    """Bytes that the matrices of one adapter may have in its file."""
    root: Path | None = None
    """The folder from which adapters may be loaded while serving, beside the hub repositories that ``adapters`` names;
    None: none may."""
    xlora: str | None = None
    """An X-LoRA repository or folder, whose classifier weighs its adapters for each token; excludes ``adapters``."""
    ordering: Path | None = None
    """The ordering file of ``xlora``, or of the repository that ``adapters`` come from."""
    non_granular_index: int | None = None
    """X-LoRA: the generated token from which on a sequence keeps its scalings."""


NO_ADAPTERS = AdapterOptions()


def check_adapter_name(name: str) -> None:
    """Raises ``UsageError`` for a name that requests could not choose an adapter by."""
    hint = f"1 to {MAX_NAME} printable characters without spaces and without : , ="
    if not 1 <= len(name) <= MAX_NAME or not name.isprintable() or " " in name or _SEPARATORS & set(name):
        raise UsageError(f"{name[:MAX_NAME]!r} cannot be the name of an adapter", hint=hint)
    if name in (NO_ADAPTER, "default", "list"):
        hint = f"requests and the chat mean something else by {name}"
        raise UsageError(f"an adapter cannot be called {name!r}", hint=hint)
