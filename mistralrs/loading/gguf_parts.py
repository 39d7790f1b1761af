"""The parts of a model, pulled from a GGUF file: names, shapes and the order of rotary rows end here."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence

from mistralrs.errors import FormatError, LoadError
from mistralrs.loading.gguf import GgufFile, RawTensor
from mistralrs.models.gguf_architecture import Default, GgufArchitecture, Value
from mistralrs.models.parts import LAYER_PARTS, part_shapes
from mistralrs.models.spec import DecoderSpec
from mistralrs.ops.arena import Arena, Buffer, buffer
from mistralrs.ops.backend import Backend
from mistralrs.ops.weight import Matrix, Weight, read_vector


class GgufFacts:
    """A file's answers to what an architecture asks."""

    def __init__(self, file: GgufFile, architecture: GgufArchitecture) -> None:
        self._file = file
        self._architecture = architecture

    @property
    def vocab_size(self) -> int:
        tensor = self._file.tensor(self._architecture.tensors["embedding"])
        return tensor.shape[0]

    @property
    def has_head(self) -> bool:
        return self._architecture.tensors["head"] in self._file.tensors

    def require(self, key: str, kind: type[Value]) -> Value:
        return self._file.require(key, kind)

    def get(self, key: str, kind: type[Value], *, default: Default) -> Value | Default:
        return self._file.get(key, kind, default=default)


def read_spec(file: GgufFile, architecture: GgufArchitecture) -> DecoderSpec:
    """The decoder that the file describes. Raises ``LoadError`` or ``FormatError``."""
    factors: Sequence[float] = ()
    if architecture.rope_factors in file.tensors:
        tensor = file.tensor(architecture.rope_factors)
        factors = read_vector(tensor.name, tensor.type, tensor.data)
    try:
        return architecture.spec(GgufFacts(file, architecture), factors)
    except FormatError:
        raise
    except LoadError as error:
        raise LoadError(f"{file.path}: {error.message}", hint=error.hint) from error


def adjacent_to_halves(rows: int, head_dim: int, rotary_dim: int) -> array[int]:
    """For rows whose rotary pairs are (i, i + half), where each stands in a file that has the pairs side by side."""
    half = rotary_dim // 2
    head = [2 * (i % half) + i // half if i < 2 * half else i for i in range(head_dim)]
    return array("i", (start + i for start in range(0, rows, head_dim) for i in head))


class GgufParts:
    """``Parts`` over a file. Everything is checked before the first byte of memory is taken."""

    def __init__(
        self,
        file: GgufFile,
        architecture: GgufArchitecture,
        spec: DecoderSpec,
        backend: Backend,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._file = file
        self._names = architecture.tensors
        self._adjacent = architecture.adjacent_pairs
        self._spec = spec
        self._shapes = part_shapes(spec)
        self._backend = backend
        self._progress = progress
        self._done = 0
        self._vectors: list[Arena] = []
        self._check_all(ignored={architecture.rope_factors})
        self.placed_bytes = sum(backend.placed_bytes(self._matrix(part, layer)) for part, layer in self._matrices())

    def _everything(self) -> Iterator[tuple[str, int | None]]:
        yield "embedding", None
        for layer in range(self._spec.num_layers):
            for part in LAYER_PARTS:
                yield part, layer
        yield "norm", None
        if not self._spec.tied_head:
            yield "head", None

    def _matrices(self) -> Iterator[tuple[str, int | None]]:
        return ((part, layer) for part, layer in self._everything() if len(self._shapes[part]) == 2)

    def _check_all(self, *, ignored: set[str]) -> None:
        used = set(ignored)
        for part, layer in self._everything():
            tensor = self._tensor(part, layer)
            used |= {tensor.name, _bias_name(tensor.name)}
        unknown = sorted(self._file.tensors.keys() - used)
        if unknown:
            raise LoadError(
                f"{self._file.path}: {len(unknown)} tensors that this architecture does not have, the first is {unknown[0]}",
                hint="the file was made for another architecture, or with parts that are not supported yet",
            )

    def _name(self, part: str, layer: int | None) -> str:
        return self._names[part].format(layer=layer)

    def _tensor(self, part: str, layer: int | None) -> RawTensor:
        tensor = self._file.tensor(self._name(part, layer))
        if tensor.shape != self._shapes[part]:
            expected = " x ".join(map(str, self._shapes[part]))
            found = " x ".join(map(str, tensor.shape))
            raise FormatError(str(self._file.path), f"tensor {tensor.name}", f"is {found}, expected {expected}")
        return tensor

    def _order(self, part: str) -> array[int] | None:
        if part not in self._adjacent:
            return None
        return adjacent_to_halves(self._shapes[part][0], self._spec.head_dim, self._spec.rope.dim)

    def _bias(self, part: str, layer: int | None, order: array[int] | None) -> array[float] | None:
        name = _bias_name(self._name(part, layer))
        if name not in self._file.tensors:
            return None
        tensor = self._file.tensor(name)
        if tensor.shape != self._shapes[part][:1]:
            reason = f"has shape {tensor.shape}, expected {self._shapes[part][:1]}"
            raise FormatError(str(self._file.path), f"tensor {name}", reason)
        values = read_vector(name, tensor.type, tensor.data)
        return values if order is None else array("f", (values[i] for i in order))

    def _matrix(self, part: str, layer: int | None) -> Matrix:
        tensor, order = self._tensor(part, layer), self._order(part)
        rows, columns = tensor.shape
        return Matrix(tensor.name, tensor.type, rows, columns, tensor.data, order, self._bias(part, layer, order))

    def linears(self, names: Sequence[str], *, layer: int | None = None) -> list[Weight]:
        placed = []
        for part in names:
            matrix = self._matrix(part, layer)
            placed.append(self._backend.place(matrix))
            self._file.release(self._file.tensor(matrix.name))
            self._done += self._backend.placed_bytes(matrix)
            if self._progress:
                self._progress(self._done, self.placed_bytes)
        return placed

    def vector(self, name: str, *, layer: int | None = None) -> Buffer:
        tensor = self._tensor(name, layer)
        values = read_vector(tensor.name, tensor.type, tensor.data)
        result = buffer(self._vector_arena(4 * len(values) + 64), len(values))
        result.values[:] = values
        return result

    def _vector_arena(self, need: int) -> Arena:
        """Norms are small: they share arenas of a page."""
        if not self._vectors or self._vectors[-1].left < need:
            self._vectors.append(Arena(max(need, 1 << 20)))
        return self._vectors[-1]


def _bias_name(name: str) -> str:
    return name.removesuffix(".weight") + ".bias"
