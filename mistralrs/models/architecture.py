"""How an architecture tells the loader what its checkpoints look like: GGUF files and Hugging Face folders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from mistralrs.models.spec import DecoderSpec

Value = TypeVar("Value", bool, int, float, str, list[object], dict[str, object])
Default = TypeVar("Default")


class Facts(Protocol):
    """What an architecture may ask of a file: its metadata and what tensors it has."""

    def require(self, key: str, kind: type[Value]) -> Value:
        """Raises ``FormatError`` when the key is missing or of another kind."""
        ...

    def get(self, key: str, kind: type[Value], *, default: Default) -> Value | Default: ...

    def shape(self, tensor: str) -> tuple[int, ...] | None:
        """The shape of a tensor; None: the file has none of that name."""
        ...

    def vector(self, tensor: str) -> Sequence[float]:
        """A vector's values; empty if the file has none of that name."""
        ...


@dataclass(frozen=True, slots=True)
class Piece:
    """Where a part stands: rows of a tensor from ``start`` on. ``{layer}`` and ``{expert}`` are filled in."""

    name: str
    start: int = 0
    whole: bool = True
    """False: the tensor holds other parts' rows as well."""
    otherwise: str | None = None
    """The tensor to look for when there is none of that name."""


Pieces = dict[str, Piece]


@dataclass(frozen=True, slots=True)
class Form:
    """An architecture in one kind of checkpoint."""

    spec: Callable[[Facts], DecoderSpec]
    """Raises ``LoadError`` for what is not supported."""
    pieces: Callable[[DecoderSpec], Pieces]
    adjacent_pairs: frozenset[str] = frozenset()
    """Parts whose rows are stored with the members of a rotary pair side by side."""
    norm_offset: float = 0.0
    """Added to the weights of norms."""
    unused: tuple[str, ...] = field(default=())
    """Patterns (fnmatch) of tensors that are no parts."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """A row of the registry."""

    gguf: Form | None
    hugging_face: Form | None
    ggml: Form | None = None
    """The legacy `.bin` files, which describe themselves under GGUF's keys once they are read."""
