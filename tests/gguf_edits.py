"""Changed copies of GGUF files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from mistralrs.quant.types import QuantType

Edit = Callable[[dict[str, Any], dict[str, np.ndarray]], None]
"""Changes metadata and tensors."""


Stored = np.ndarray | tuple[np.ndarray, QuantType]
"""A tensor's values, or its bytes (..., row_bytes) and their type."""


def edited(source: Path, target: Path, edit: Edit) -> Path:
    """Writes a copy of a file of F32 tensors; ``edit`` changes its metadata and tensors first."""
    metadata, tensors = read_gguf(source)
    edit(metadata, tensors)
    return copied(metadata, tensors, target)


def read_gguf(source: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns metadata and tensors of a file of F32 tensors."""
    reader = gguf.GGUFReader(source)
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    metadata = {name: field.contents() for name, field in fields.items()}
    return metadata, {tensor.name: np.array(tensor.data) for tensor in reader.tensors}


def copied(metadata: Mapping[str, Any], tensors: Mapping[str, Stored], target: Path) -> Path:
    """Writes a file of this metadata and these tensors."""
    writer = gguf.GGUFWriter(target, metadata["general.architecture"])
    for name, value in metadata.items():
        if name == "general.architecture":
            continue
        if isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, bool):
            writer.add_bool(name, value)
        else:
            writer.add_int64(name, value) if value < 0 else writer.add_uint64(name, value)
    for name, stored in tensors.items():
        if isinstance(stored, tuple):
            writer.add_tensor(name, stored[0], raw_dtype=gguf.GGMLQuantizationType[stored[1].name])
        else:
            writer.add_tensor(name, stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def put(key: str, value: object) -> Edit:
    return lambda metadata, tensors: metadata.update({key: value})


def drop(key: str) -> Edit:
    def edit(metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        metadata.pop(key, None)
        tensors.pop(key, None)

    return edit


def store(name: str, *shape: int) -> Edit:
    return lambda metadata, tensors: tensors.update({name: np.ones(shape, dtype=np.float32)})
