"""The modules of an architecture as Hugging Face names them, and the parts of the decoder that they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from mistralrs.errors import LoadError
from mistralrs.models.architecture import WeightsMapping
from mistralrs.models.parts import WeightKey, layer_shapes, part_shapes
from mistralrs.models.registry import ARCHITECTURES, GGUF_NAMES
from mistralrs.models.spec import DecoderSpec

Kind = Literal["linear", "embedding", "head", "norm"]

LAYER = "model.layers.{layer}."
EXPERTS = LAYER + "mlp.experts"
"""Where transformers 5 has the experts of a layer, as two parameters."""
ROUTER = LAYER + "mlp.gate"
"""The router of transformers 5, whose weight is a parameter."""
GATE_UP, DOWN = "gate_up_proj", "down_proj"


@dataclass(frozen=True, slots=True)
class ModulePart:
    """Rows of a module that are one part of the decoder."""

    key: WeightKey
    start: int
    rows: int


@dataclass(frozen=True, slots=True)
class Module:
    """A module: one part, or several whose rows stand below each other."""

    path: str
    kind: Kind
    rows: int
    columns: int
    """0: it is a norm."""
    parts: tuple[ModulePart, ...]


@dataclass(frozen=True, slots=True)
class FusedExperts:
    """One parameter with a matrix of every expert (transformers 5): (experts, rows, columns)."""

    path: str
    """Of the parameter."""
    experts: int
    rows: int
    columns: int
    parts: tuple[tuple[ModulePart, ...], ...]
    """Of each expert."""


@dataclass(frozen=True, slots=True)
class ModuleNames:
    """All modules of a model by path."""

    modules: Mapping[str, Module]
    routers: Mapping[str, Module]
    """Under the names of transformers 5; also those that ``modules`` has under the same name."""
    experts: Mapping[str, tuple[FusedExperts, FusedExperts]]
    """By the path of the module that has them: ``gate_up_proj`` and ``down_proj``."""
    norm_offset: float
    """What the decoder's norms are above those of Hugging Face."""
    tied_head: bool


def hugging_face_form(architecture: str, spec: DecoderSpec) -> WeightsMapping:
    """The tensor names that the architecture has in Hugging Face folders, also of a model that came as GGUF or GGML,
    where some architectures go by the name of another.

    Raises ``LoadError`` for an architecture that has no such folders.
    """
    mixture = spec.moe is not None
    same = [
        name
        for name, row in ARCHITECTURES.items()
        if GGUF_NAMES[name] == GGUF_NAMES[architecture] and row.mixture == mixture and row.hugging_face
    ]
    name = architecture if architecture in same else same[0] if same else ""
    form = ARCHITECTURES[name].hugging_face if name else None
    if form is None:
        raise LoadError(f"adapters for the architecture {architecture} are not supported", hint="serve it without one")
    return form


def module_names(architecture: str, spec: DecoderSpec) -> ModuleNames:
    """The modules of a model. Raises ``LoadError`` as ``hugging_face_form`` does."""
    form = hugging_face_form(architecture, spec)
    refs = form.tensors(spec)
    shapes = part_shapes(spec) | layer_shapes(spec)
    if spec.tied_head:
        shapes["lm_head"] = shapes["embed_tokens"]
    grouped: dict[str, list[tuple[ModulePart, tuple[int, ...]]]] = {}
    for key in _keys(spec):
        ref, shape = refs[key.part], shapes[key.part]
        path = ref.name.format(layer=key.layer, expert=key.expert).removesuffix(".weight")
        grouped.setdefault(path, []).append((ModulePart(key, ref.start, shape[0]), shape))
    modules = {path: _module(path, parts) for path, parts in grouped.items()}
    routers: dict[str, Module] = {}
    experts: dict[str, tuple[FusedExperts, FusedExperts]] = {}
    for layer in range(len(spec.layers) if spec.moe else 0):
        router = modules[refs["router"].name.format(layer=layer).removesuffix(".weight")]
        routers[ROUTER.format(layer=layer)] = router
        experts[EXPERTS.format(layer=layer)] = _fused_experts(spec, layer)
    return ModuleNames(modules, routers, experts, form.norm_offset, spec.tied_head)


def _keys(spec: DecoderSpec) -> Iterator[WeightKey]:
    """All parts, and the head also where it is the embedding."""
    yield from map(WeightKey, part_shapes(spec))
    if spec.tied_head:
        yield WeightKey("lm_head")
    experts = spec.moe.experts if spec.moe else 0
    for layer in range(len(spec.layers)):
        for part in layer_shapes(spec):
            if part.startswith("expert_"):
                yield from (WeightKey(part, layer, expert) for expert in range(experts))
            else:
                yield WeightKey(part, layer)


def _module(path: str, found: list[tuple[ModulePart, tuple[int, ...]]]) -> Module:
    parts = tuple(sorted((part for part, _ in found), key=lambda part: part.start))
    shape = found[0][1]
    name = parts[0].key.part
    kinds: dict[str, Kind] = {"embed_tokens": "embedding", "lm_head": "head"}
    kind = "norm" if len(shape) == 1 else kinds.get(name, "linear")
    return Module(path, kind, sum(part.rows for part in parts), 0 if len(shape) == 1 else shape[1], parts)


def _fused_experts(spec: DecoderSpec, layer: int) -> tuple[FusedExperts, FusedExperts]:
    assert spec.moe is not None
    count, inner, hidden = spec.moe.experts, spec.ffn_size, spec.hidden_size
    path = EXPERTS.format(layer=layer)

    def part(name: str, expert: int, start: int, rows: int) -> ModulePart:
        return ModulePart(WeightKey(f"expert_{name}", layer, expert), start, rows)

    gate_up = tuple(
        (part("gate_proj", expert, 0, inner), part("up_proj", expert, inner, inner)) for expert in range(count)
    )
    down = tuple((part("down_proj", expert, 0, hidden),) for expert in range(count))
    return (
        FusedExperts(f"{path}.{GATE_UP}", count, 2 * inner, hidden, gate_up),
        FusedExperts(f"{path}.{DOWN}", count, hidden, inner, down),
    )
