"""Finds a model's parts in a checkpoint: resolves names, splits fused tensors and reorders rotary rows."""

from __future__ import annotations

import logging
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from math import prod

from mistralrs.errors import FormatError, LoadError
from mistralrs.loading.checkpoint import Checkpoint, RawTensor
from mistralrs.loading.convert import READ_AS_FLOATS, Conversion, decoded, encoded
from mistralrs.models.architecture import TensorRef, TensorRefs, WeightsMapping
from mistralrs.models.parts import WeightKey, WeightMerge, layer_shapes, part_shapes
from mistralrs.models.spec import DecoderSpec
from mistralrs.ops.backend import Backend, Packing
from mistralrs.ops.buffer import Buffer
from mistralrs.ops.weight import Matrix, Weight, read_vector

logger = logging.getLogger(__name__)

_WITHOUT_BIAS = frozenset({"embed_tokens", "q_norm", "k_norm"})
"""Parts that have no bias in any supported architecture: a file with one is for another architecture."""


def interleaved_to_halves(rows: int, head_dim: int, rotary_dim: int) -> array[int]:
    """For each row of an order with rotary pairs (i, i + half), its index in a file with interleaved pairs."""
    half = rotary_dim // 2
    head = [2 * (i % half) + i // half if i < 2 * half else i for i in range(head_dim)]
    return array("i", (start + i for start in range(0, rows, head_dim) for i in head))


class CheckpointParts:
    """The ``Parts`` of a checkpoint. All checks are done before any memory is allocated."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        form: WeightsMapping,
        spec: DecoderSpec,
        backend: Backend,
        *,
        conversion: Conversion | None = None,
        merge: WeightMerge | None = None,
        progress: Callable[[int, int], None] | None = None,
        in_place: bool = False,
        packing: Packing | None = None,
    ) -> None:
        """``in_place``: weights that are computed in the type in which they are stored stay in the mapped file.

        ``packing`` places the others of that type until ``wait`` returns; None: they are placed at once.
        """
        self._checkpoint = checkpoint
        self._conversion = conversion or Conversion()
        self._merge = merge
        self._mapping = form
        self.norm_offset = form.norm_offset
        """Added to the weights of norms in the file."""
        self._tensor_refs = form.tensors(spec)
        self._spec = spec
        self._experts = spec.moe.experts if spec.moe else 0
        self._shapes = part_shapes(spec) | layer_shapes(spec)
        self._backend = backend
        self._progress = progress
        self._in_place = in_place
        self._packing = packing
        self._done = 0
        self._packed_bytes = [0]
        """Bytes that ``packing`` has placed after each of its matrices."""
        self._norms: list[tuple[WeightKey, Buffer, Buffer | None]] = []
        """Those that ``wait`` reads."""
        self._check_all()
        checkpoint.check_written()
        planned = {place: self.planned(place) for place in self.weight_keys() if self.is_matrix(place)}
        self.placed_bytes = sum(map(backend.placed_bytes, planned.values()))
        self.in_place_bytes = sum(map(_stored_bytes, (matrix for matrix in planned.values() if matrix.in_place)))
        if in_place:
            self._check_in_place(planned)

    def weight_keys(self) -> Iterator[WeightKey]:
        """The keys of all parts: those outside the layers, then layer by layer."""
        for part in part_shapes(self._spec):
            yield WeightKey(part)
        for layer in range(len(self._spec.layers)):
            for part in layer_shapes(self._spec):
                if part.startswith("expert_"):
                    yield from (WeightKey(part, layer, expert) for expert in range(self._experts))
                else:
                    yield WeightKey(part, layer)

    def _check_all(self) -> None:
        used = set()
        fused: Counter[str] = Counter()
        for place in self.weight_keys():
            tensor = self._tensor(place)
            used |= {tensor.name} if place.part in _WITHOUT_BIAS else {tensor.name, bias_name(tensor.name)}
            if not self._tensor_ref(place).whole:
                fused[tensor.name] += self._shapes[place.part][0]
        for name, rows in fused.items():
            found = self._checkpoint.tensors[name].shape[0]
            if found != rows:
                reason = f"has {found} rows, its parts have {rows}"
                raise FormatError(str(self._checkpoint.path), f"tensor {name}", reason)
        unknown = sorted(
            name
            for name in self._checkpoint.tensors.keys() - used
            if not any(fnmatchcase(name, pattern) for pattern in self._mapping.unused)
        )
        if unknown:
            raise LoadError(
                f"{self._checkpoint.path}: {len(unknown)} tensors that this architecture does not have, "
                f"the first is {unknown[0]}",
                hint="the file was made for another architecture, or with parts that are not supported yet",
            )

    def _check_in_place(self, planned: Mapping[WeightKey, Matrix]) -> None:
        """Logs how much has to be copied all the same. Raises ``LoadError`` if that is everything."""
        copied = {
            place: matrix
            for place, matrix in planned.items()
            if not matrix.in_place and place.part not in READ_AS_FLOATS
        }
        if not copied:
            return
        place, matrix = next(iter(copied.items()))
        stored = self._tensor(place).type.name
        first = f"{matrix.name} is stored as {stored} and computed " + (
            "with changed weights" if matrix.type.name == stored else f"as {matrix.type.name}"
        )
        if not self.in_place_bytes:
            raise LoadError(
                f"{self._checkpoint.path}: --no-pack leaves weights as they are stored, but all have to be converted: "
                f"{first}",
                hint="leave out --no-pack, or what converts them: --dtype, a merged adapter, a file in another type",
            )
        size = sum(map(_stored_bytes, copied.values())) / 2**20
        logger.warning("--no-pack: %d weights take %.0f MiB in memory all the same; %s", len(copied), size, first)

    def _tensor_ref(self, place: WeightKey) -> TensorRef:
        """The reference to a part's tensor in this checkpoint; the expected one if the part is missing."""
        first = piece = self._tensor_refs[place.part]
        while tensor_name(piece, place) not in self._checkpoint.tensors:
            if piece.otherwise is None:
                return first
            piece = piece.otherwise
        return piece

    def _tensor(self, place: WeightKey) -> RawTensor:
        """The tensor that has a part, with its shape checked."""
        piece = self._tensor_ref(place)
        tensor = self._checkpoint.tensor(tensor_name(piece, place))
        expected = self._shapes[place.part]
        if len(tensor.shape) == 3 and place.expert is not None:
            expected = (self._experts, *expected)
        fits = tensor.shape == expected
        if not piece.whole:
            fits = tensor.shape[1:] == expected[1:] and tensor.shape[0] >= piece.start + expected[0]
        if not fits:
            found, wanted = (" x ".join(map(str, shape)) for shape in (tensor.shape, expected))
            raise FormatError(str(self._checkpoint.path), f"tensor {tensor.name}", f"is {found}, expected {wanted}")
        return tensor

    def _first_row(self, place: WeightKey, tensor: RawTensor) -> int:
        """The first row of a part in its tensor."""
        stacked = len(tensor.shape) == 3 and place.expert is not None
        return (place.expert or 0) * tensor.shape[1] if stacked else self._tensor_ref(place).start

    def _order(self, part: str) -> array[int] | None:
        if part not in self._mapping.interleaved:
            return None
        return interleaved_to_halves(
            self._shapes[part][0], self._spec.attention.head_dim, self._spec.attention.ropes[0].dim
        )

    def _bias(self, tensor: RawTensor, start: int, rows: int, order: array[int] | None) -> array[float] | None:
        found = self._checkpoint.tensors.get(bias_name(tensor.name))
        if found is None:
            return None
        expected = tensor.shape[:-1] or tensor.shape  # (experts, rows) for stacked experts; the length for a norm
        if found.shape != expected:
            reason = f"has shape {found.shape}, expected {expected}"
            raise FormatError(str(self._checkpoint.path), f"tensor {found.name}", reason)
        values = read_vector(found.name, found.type, found.data)[start : start + rows]
        return values if order is None else array("f", (values[i] for i in order))

    def _matrix(self, place: WeightKey) -> Matrix:
        tensor, order = self._tensor(place), self._order(place.part)
        rows, columns = self._shapes[place.part]
        start, row_bytes = self._first_row(place, tensor), tensor.type.row_bytes(columns)
        data = tensor.data[start * row_bytes : (start + rows) * row_bytes]
        bias = self._bias(tensor, start, rows, order)
        if self._merge is not None:
            bias = self._merge.merged_bias(place, bias)
        return Matrix(tensor.name, tensor.type, rows, columns, data, order, bias)

    def tensor_of(self, place: WeightKey) -> str:
        """The name of the tensor that has a part."""
        return self._tensor(place).name

    def file_order(self, part: str) -> array[int] | None:
        """For each row of a part in the file, its row in the model; None: they stand in the same order."""
        order = self._order(part)
        return None if order is None else inverse_order(order)

    def is_matrix(self, place: WeightKey) -> bool:
        """Returns whether the part is a matrix, read by ``matrix``; otherwise it is a norm, read by ``vectors``."""
        return len(self._shapes[place.part]) == 2

    def planned(self, place: WeightKey) -> Matrix:
        """A matrix as ``matrix`` returns it, without the bytes."""
        matrix = self._matrix(place)
        changed = self._merge is not None and self._merge.changes(place)
        target = (self._conversion.merged_target if changed else self._conversion.target)(place.part, matrix)
        stays = self._in_place and not changed and target == matrix.type and place.part not in READ_AS_FLOATS
        return replace(matrix, type=target, data=memoryview(b""), in_place=stays)

    def matrix(self, place: WeightKey) -> Matrix:
        """A matrix in the type in which it is placed."""
        planned = self.planned(place)
        target = planned.type
        if self._merge is not None and self._merge.changes(place):
            matrix = self._matrix(place)
            values = self._merge.merged(place, decoded(matrix))
            return replace(matrix, type=target, data=encoded(matrix.name, values, target, self._backend), order=None)
        matrix = replace(self._matrix(place), in_place=planned.in_place)
        return self._conversion.convert(matrix, target, self._backend, release=lambda: self.release([place]))

    def linears(self, names: Sequence[str], *, layer: int | None = None) -> list[Weight]:
        places = [WeightKey(name, layer) for name in names]
        return self._placed(places)

    def experts(self, name: str, *, layer: int) -> list[Weight]:
        return self._placed([WeightKey(name, layer, expert) for expert in range(self._experts)])

    def _placed(self, places: list[WeightKey]) -> list[Weight]:
        """Places parts and releases their pages of the file, unless weights stay there."""
        tensors = {place: self._tensor(place) for place in places}
        last = {tensor.name: place for place, tensor in tensors.items()}
        weights = []
        for place, tensor in tensors.items():
            matrix = self.matrix(place)
            released = last[tensor.name] == place and not self._in_place
            if self._packing is not None and matrix.data.obj is tensor.data.obj and not matrix.in_place:
                weights.append(self._packing.place(matrix, pages=tensor.data if released else None))
                self._packed_bytes.append(self._packed_bytes[-1] + self._backend.placed_bytes(matrix))
            else:
                weights.append(self._backend.place(matrix))
                self._done += self._backend.placed_bytes(matrix)
                self._report()
                if released:
                    self._checkpoint.release(tensor)
        return weights

    def _report(self, packed: int = 0) -> None:
        if self._progress:
            self._progress(self._done + self._packed_bytes[packed], self.placed_bytes)

    def wait(self) -> None:
        """Returns when all weights are placed."""
        if self._packing is None:
            return
        self._packing.wait(self._report)
        for place, *buffers in self._norms:
            for values, buffer in zip(self.vectors(place), buffers, strict=True):
                if values is not None and buffer is not None:
                    buffer.values[:] = values

    def release(self, places: Sequence[WeightKey]) -> None:
        """Releases the pages of the file with these parts. A later read loads them again."""
        for name in {self._tensor(place).name for place in places}:
            self._checkpoint.release(self._checkpoint.tensor(name))

    def norm(self, name: str, *, layer: int | None = None) -> tuple[Buffer, Buffer | None]:
        place = WeightKey(name, layer)
        if self._packing is None or self._merge is not None:
            weight, bias = self.vectors(place)
            return self._backend.vector(weight), None if bias is None else self._backend.vector(bias)
        # read after the weights around it: the disk would be waited for at each norm
        tensor = self._tensor(place)
        stored = [tensor, *filter(None, [self._checkpoint.tensors.get(bias_name(tensor.name))])]
        buffers = [self._backend.vector(array("f", bytes(4 * prod(each.shape)))) for each in stored]
        self._norms.append((place, buffers[0], buffers[1] if len(buffers) > 1 else None))
        return buffers[0], self._norms[-1][2]

    def vectors(self, place: WeightKey) -> tuple[array[float], array[float] | None]:
        """A norm's weight and, if it has one, its bias."""
        tensor = self._tensor(place)
        weight = read_vector(tensor.name, tensor.type, tensor.data)
        if self._mapping.norm_offset:
            weight = array("f", (value + self._mapping.norm_offset for value in weight))
        bias = self._bias(tensor, 0, len(weight), None)
        if self._merge is not None:
            weight, bias = self._merge.merged_norm(place, weight), self._merge.merged_bias(place, bias)
        return weight, bias


def _stored_bytes(matrix: Matrix) -> int:
    return matrix.rows * matrix.type.row_bytes(matrix.columns)


def untied(form: WeightsMapping, spec: DecoderSpec) -> tuple[WeightsMapping, DecoderSpec]:
    """Mapping and spec of a model whose head becomes a matrix of its own, which starts from the embedding."""

    def tensors(spec: DecoderSpec) -> TensorRefs:
        refs = form.tensors(spec)
        return refs | {"lm_head": refs["embed_tokens"]}

    return replace(form, tensors=tensors), replace(spec, tied_head=False)


def inverse_order(order: array[int]) -> array[int]:
    """For each row of a file, its row in the order of the model; ``order`` says the opposite."""
    inverse = array("i", order)
    for place, row in enumerate(order):
        inverse[row] = place
    return inverse


def rows_in_order(data: memoryview, order: array[int] | None) -> memoryview:
    """The rows of a matrix in the order that ``order`` lists them; None: as they are."""
    if order is None:
        return data
    width = len(data) // len(order)
    return memoryview(b"".join(data[row * width : (row + 1) * width] for row in order))


def tensor_name(piece: TensorRef, place: WeightKey) -> str:
    return piece.name.format(layer=place.layer, expert=place.expert)


def bias_name(name: str) -> str:
    return name.removesuffix(".weight") + ".bias"


def count_parameters(checkpoint: Checkpoint) -> int:
    return sum(prod(tensor.shape) for tensor in checkpoint.tensors.values())
