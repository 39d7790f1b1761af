"""The tensors of a model that a LoRA file may name, and the parts of the decoder that stand in them."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from mistralrs.loading.checkpoint_parts import interleaved_to_halves, tensor_name
from mistralrs.models.architecture import TensorRef, WeightsMapping
from mistralrs.models.parts import WeightKey, layer_shapes, part_shapes
from mistralrs.models.spec import DecoderSpec


@dataclass(frozen=True, slots=True)
class Target:
    """A part as it stands in a tensor."""

    key: WeightKey
    first_row: int
    """In the tensor, or in its expert's matrix."""
    rows: int
    columns: int
    stacked: bool
    """The tensor holds the matrices of all experts."""


def targets_of(form: WeightsMapping, spec: DecoderSpec, *, alternatives: bool) -> dict[str, list[Target]]:
    """The matrices of a model by the name of their tensor: several where a tensor holds several parts.

    ``alternatives``: also under the names that older files have, as a reader looks for them.
    """
    found: dict[str, list[Target]] = {}
    references = form.tensors(spec)
    for key, rows, columns in matrices_of(spec):
        reference: TensorRef | None = references[key.part]
        while reference is not None:
            stacked = key.expert is not None and "{expert}" not in reference.name
            target = Target(key, reference.start, rows, columns, stacked)
            found.setdefault(tensor_name(reference, key), []).append(target)
            reference = reference.otherwise if alternatives else None
    return found


def matrices_of(spec: DecoderSpec) -> Iterator[tuple[WeightKey, int, int]]:
    """Every matrix of a decoder with its rows and columns."""
    for part, shape in part_shapes(spec).items():
        if len(shape) == 2:
            yield WeightKey(part), shape[0], shape[1]
    matrices = {part: shape for part, shape in layer_shapes(spec).items() if len(shape) == 2}
    for layer in range(len(spec.layers)):
        for part, shape in matrices.items():
            if not part.startswith("expert_"):
                yield WeightKey(part, layer), shape[0], shape[1]
                continue
            for expert in range(spec.moe.experts if spec.moe else 0):
                yield WeightKey(part, layer, expert), shape[0], shape[1]


def stored_order(form: WeightsMapping, spec: DecoderSpec, target: Target) -> array[int] | None:
    """For each row of the decoder's order, the row in a file of this form; None: they stand in the same order."""
    if target.key.part not in form.interleaved:
        return None
    return interleaved_to_halves(target.rows, spec.attention.head_dim, spec.attention.ropes[0].dim)
