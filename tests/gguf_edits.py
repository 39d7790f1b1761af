"""Copies of GGUF files with something changed in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np

Edit = Callable[[dict[str, Any], dict[str, np.ndarray]], None]
"""Changes metadata and tensors."""


def edited(source: Path, target: Path, edit: Edit) -> Path:
    """A copy of a file of F32 tensors; ``edit`` changes its metadata and tensors first."""
    reader = gguf.GGUFReader(source)
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    metadata = {name: field.contents() for name, field in fields.items() if name != "general.architecture"}
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    metadata["general.architecture"] = fields["general.architecture"].contents()
    edit(metadata, tensors)
    writer = gguf.GGUFWriter(target, metadata.pop("general.architecture"))
    for name, value in metadata.items():
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
    for name, values in tensors.items():
        writer.add_tensor(name, values)
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
