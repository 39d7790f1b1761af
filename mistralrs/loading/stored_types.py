"""The types in which a model's matrices are stored, read from its headers alone."""

from __future__ import annotations

from pathlib import Path

from mistralrs.loading.architecture_lookup import kind_of
from mistralrs.loading.checkpoint import MappedCheckpoint
from mistralrs.loading.ggml_file import GgmlFile
from mistralrs.loading.gguf_file import GgufFile
from mistralrs.loading.safetensors_file import SafetensorsFile

_FLOATS = frozenset({"F32", "F16", "BF16"})


def stored_as_floats(path: Path, *, gqa: int = 1) -> bool:
    """Returns whether every matrix of the model at ``path`` is stored as floats. ``gqa``: as for ``GgmlFile.open``.

    Raises LoadError and FormatError for files that cannot be read.
    """
    with _opened(path, gqa) as file:
        return all(tensor.type.name in _FLOATS for tensor in file.tensors.values() if len(tensor.shape) > 1)


def _opened(path: Path, gqa: int) -> MappedCheckpoint:
    match kind_of(path):
        case "safetensors":
            return SafetensorsFile.open(path)
        case "ggml":
            return GgmlFile.open(path, gqa=gqa)
        case _:
            return GgufFile.open(path)
