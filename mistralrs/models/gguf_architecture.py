"""How an architecture tells the loader where its parts are in a GGUF file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from mistralrs.models.spec import DecoderSpec

Value = TypeVar("Value", bool, int, float, str, list[object])
Default = TypeVar("Default")


class Facts(Protocol):
    """What an architecture may ask of a file: its metadata and a few facts of its tensors."""

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        ...

    @property
    def has_head(self) -> bool:
        """Whether the output head has a matrix of its own."""
        ...

    def require(self, key: str, kind: type[Value]) -> Value: ...
    def get(self, key: str, kind: type[Value], *, default: Default) -> Value | Default: ...


@dataclass(frozen=True, slots=True)
class GgufArchitecture:
    """An architecture's row."""

    tensors: Mapping[str, str]
    """Part -> tensor name, with ``{layer}``."""
    spec: Callable[[Facts, Sequence[float]], DecoderSpec]
    """From the file's facts and its rotary factors."""
    rope_factors: str
    """The tensor of rotary factors, which a file may have."""
    adjacent_pairs: frozenset[str]
    """Parts whose rows are stored with the members of a rotary pair side by side."""
