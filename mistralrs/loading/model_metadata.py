"""The metadata that an architecture reads: a GGUF file's, or a folder's `config.json`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, cast

from mistralrs.errors import FormatError, LoadError
from mistralrs.files import read_json
from mistralrs.loading.checkpoint import Checkpoint, DescribedCheckpoint, MappedCheckpoint
from mistralrs.loading.cursor import shown
from mistralrs.models.architecture import MAX_HEAD_DIM, Default, Value
from mistralrs.models.multimodal import text_config, text_names
from mistralrs.ops.weight import read_vector

logger = logging.getLogger(__name__)


class _TensorMetadata:
    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def shape(self, tensor: str) -> tuple[int, ...] | None:
        """The shape of a tensor; None if the checkpoint has no tensor of that name."""
        found = self._checkpoint.tensors.get(tensor)
        return found.shape if found else None

    def vector(self, tensor: str) -> Sequence[float]:
        """A vector's values; empty if the checkpoint has no tensor of that name."""
        found = self._checkpoint.tensors.get(tensor)
        if found is None:
            return ()
        if prod(found.shape) > MAX_HEAD_DIM:
            reason = f"has {prod(found.shape)} values; more than {MAX_HEAD_DIM} rotary factors are refused"
            raise FormatError(str(self._checkpoint.path), f"tensor {shown(tensor)}", reason)
        return read_vector(found.name, found.type, found.data)


class GgufMetadata(_TensorMetadata):
    """The ``ModelMetadata`` of a file that has GGUF's keys."""

    def __init__(self, checkpoint: DescribedCheckpoint) -> None:
        super().__init__(checkpoint)
        self._described = checkpoint

    def require(self, key: str, kind: type[Value]) -> Value:
        return cast(Value, self._described.require(key, cast(Any, kind)))

    def get(self, key: str, kind: type[Value], *, default: Default) -> Value | Default:
        return cast("Value | Default", self._described.get(key, cast(Any, kind), default=default))


class HfMetadata(_TensorMetadata):
    """The ``ModelMetadata`` of a folder with a `config.json`. A null counts as missing."""

    def __init__(self, checkpoint: Checkpoint, path: Path, config: Mapping[str, object]) -> None:
        super().__init__(checkpoint)
        self._path = path
        self._config = config

    def require(self, key: str, kind: type[Value]) -> Value:
        value = self._config.get(key)
        if value is None:
            raise FormatError(str(self._path), f"key {key}", "is missing")
        if type(value) is int and abs(value) >= 1 << 63:
            raise FormatError(str(self._path), f"key {key}", "is too large a number")
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise FormatError(str(self._path), f"key {key}", f"is {shown(value)}, expected {kind.__name__}")
        return value

    def get(self, key: str, kind: type[Value], *, default: Default) -> Value | Default:
        return default if self._config.get(key) is None else self.require(key, kind)


def read_text_config(checkpoint: MappedCheckpoint, path: Path) -> dict[str, object]:
    """The `config.json` at ``path`` of a checkpoint. For a multimodal model it is that of the language model; the
    checkpoint then keeps only the language model's tensors, under the names of a text model. Raises ``LoadError``."""
    config = read_config(path)
    text = text_config(config)
    if text is None:
        return config
    names = text_names(checkpoint.tensors)
    if len(set(names.values())) < len(names):
        raise LoadError(f"{path.parent} has the tensors of its language model twice", hint="fetch the model again")
    logger.warning(
        "%s: images are not read: the language model runs without the vision part (%d tensors)",
        path.parent,
        len(checkpoint.tensors) - len(names),
    )
    checkpoint.rename(names)
    return text


def read_config(path: Path) -> dict[str, object]:
    """The content of a `config.json`. Raises ``LoadError`` if it cannot be read."""
    return read_json(path, hint="a model folder has a config.json, as the model's repository has it: fetch it again")
