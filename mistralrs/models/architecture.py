"""An architecture's description of its checkpoints for the loader: GGUF files and Hugging Face folders."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

from mistralrs.errors import LoadError
from mistralrs.models.spec import DecoderSpec

MAX_LAYERS = 1000
MAX_HEADS = 1 << 14
MAX_HEAD_DIM = 1 << 14
MAX_WIDTH = 1 << 24
"""The largest width of hidden states and feed-forwards."""
MAX_CONTEXT = 1 << 27
"""The longest context in tokens. Each of these limits is some hundred times that of real models; they bound loops and
buffers.
"""

Fields = Mapping[str, Any]
NO_FIELDS: Fields = MappingProxyType({})

Value = TypeVar("Value", bool, int, float, str, list[object], dict[str, object])
Default = TypeVar("Default")


class ModelMetadata(Protocol):
    """The part of a file that an architecture reads: its metadata, and the shapes of its tensors."""

    def require(self, key: str, kind: type[Value]) -> Value:
        """Returns the value. Raises ``FormatError`` when the key is missing or of another kind."""
        ...

    def get(self, key: str, kind: type[Value], *, default: Default) -> Value | Default:
        """Returns the value, or ``default`` if the key is missing. Raises ``FormatError`` for another kind."""
        ...

    def shape(self, tensor: str) -> tuple[int, ...] | None:
        """Returns the shape of a tensor; None: the file has none of that name."""
        ...

    def vector(self, tensor: str) -> Sequence[float]:
        """Returns a vector's values; empty if the file has none of that name."""
        ...


def layer_count(facts: ModelMetadata, key: str) -> int:
    """Returns the number of layers, before any of them takes memory. Raises ``LoadError`` for an absurd number."""
    count = facts.require(key, int)
    if not 1 <= count <= MAX_LAYERS:
        raise LoadError(f"{count} layers are not between 1 and {MAX_LAYERS}")
    return count


def all_but_every(period: int, count: int) -> tuple[bool, ...]:
    """Which of ``count`` layers have a sliding window: all but every ``period``-th. Raises ``LoadError`` for none."""
    if period < 1:
        raise LoadError(f"a sliding window in all but every {period}th layer makes no sense")
    return tuple((i + 1) % period != 0 for i in range(count))


def check_head_dim(head_dim: int) -> None:
    """Raises ``LoadError`` for an absurd width of heads, before anything is allocated for each column."""
    if head_dim > MAX_HEAD_DIM:
        raise LoadError(f"heads of {head_dim} columns are wider than {MAX_HEAD_DIM}")


def check_shape(hidden: int, heads: int, kv_heads: int) -> None:
    """Raises ``LoadError`` for counts that no decoder can have."""
    if min(hidden, heads, kv_heads) < 1 or heads % kv_heads or hidden > MAX_WIDTH or heads > MAX_HEADS:
        raise LoadError(f"{heads} heads, {kv_heads} KV heads and width {hidden} do not fit together")


def checked(spec: DecoderSpec) -> DecoderSpec:
    """Returns ``spec`` if its numbers are valid. Raises ``LoadError``."""
    attention = spec.attention
    if min(spec.ffn_size, attention.head_dim) < 1:
        raise LoadError(f"heads of {attention.head_dim} and a feed-forward of {spec.ffn_size} are too small")
    if spec.ffn_size > MAX_WIDTH:
        raise LoadError(f"a feed-forward of {spec.ffn_size} is wider than {MAX_WIDTH}")
    check_head_dim(attention.head_dim)
    if not 1 <= spec.max_position <= MAX_CONTEXT:
        raise LoadError(f"a context of {spec.max_position} tokens is not between 1 and {MAX_CONTEXT}")
    for window in spec.windows:
        if not 0 <= window <= MAX_CONTEXT:
            raise LoadError(f"a sliding window of {window} tokens is none")
    positive = [spec.norm.eps, 1.0 if attention.scale is None else attention.scale]
    if not all(0 < value < math.inf for value in positive):
        raise LoadError(f"norm epsilon {positive[0]} or attention scale {positive[1]} is not positive")
    if not all(0 <= cap < math.inf for cap in (attention.softcap, spec.logits_softcap)):
        raise LoadError(f"soft caps {attention.softcap} and {spec.logits_softcap} are not both positive")
    multipliers = (spec.embedding_multiplier, spec.residual_multiplier, spec.logits_multiplier)
    if not all(0 < value < math.inf for value in multipliers):
        raise LoadError(
            "the multipliers of embedding, residuals and logits {}, {} and {} are not all positive".format(*multipliers)
        )
    _check_combination(spec)
    return spec


def _check_combination(spec: DecoderSpec) -> None:
    """Raises ``LoadError`` for combinations of settings that no operation supports."""
    if spec.norm.after and spec.residual_multiplier != 1.0:
        raise LoadError("a residual multiplier beside norms of what is added is not supported")
    if (spec.moe is not None or spec.parallel) and spec.norm.place != "before":
        raise LoadError("norms after experts or a parallel block are not supported")
    if spec.moe is not None:
        check_experts(spec.moe.experts, spec.moe.experts_used)


def check_experts(experts: int, used: int) -> None:
    """Raises ``LoadError`` for counts that no mixture can have."""
    if not 1 <= used <= experts <= 1024:
        raise LoadError(f"{used} of {experts} experts cannot be used")


@dataclass(frozen=True, slots=True)
class TensorRef:
    """The location of a part: rows of a tensor from ``start`` on. ``{layer}`` and ``{expert}`` are filled in."""

    name: str
    start: int = 0
    whole: bool = True
    """False: the tensor holds other parts' rows as well."""
    otherwise: TensorRef | None = None
    """The location to use when there is no tensor of that name. A writer uses the first location."""


TensorRefs = dict[str, TensorRef]


@dataclass(frozen=True, slots=True)
class GgufFields:
    """The content of a GGUF file besides a model's parts: metadata and other tensors."""

    metadata: dict[str, bool | int | float | str | list[bool]]
    vectors: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Tensors that are no parts, by name."""


@dataclass(frozen=True, slots=True)
class WeightsMapping:
    """An architecture in one kind of checkpoint."""

    spec: Callable[[ModelMetadata], DecoderSpec]
    """Returns the spec that the metadata describes. Raises ``LoadError`` for unsupported settings."""
    tensors: Callable[[DecoderSpec], TensorRefs]
    interleaved: frozenset[str] = frozenset()
    """Parts whose rows are stored with the members of a rotary pair side by side."""
    norm_offset: float = 0.0
    """Added to the weights of norms."""
    unused: tuple[str, ...] = field(default=())
    """Patterns (fnmatch) of tensors that are no parts."""
    write: Callable[[DecoderSpec, ModelMetadata], GgufFields] | None = None
    """The inverse of ``spec``, for mappings that are written. The metadata is that of the spec's Hugging Face folder.
    Settings without a GGUF key are left out; the writer therefore reads its result again and compares."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """A row of the registry."""

    gguf: WeightsMapping | None
    hugging_face: WeightsMapping | None
    ggml: WeightsMapping | None = None
    """The mapping of legacy `.bin` files, whose reader presents their metadata under GGUF's keys."""
    template: str | None = None
    """The shipped chat template of models that have none."""
    mixture: bool = False
    """The feed-forward is a mixture of experts."""
