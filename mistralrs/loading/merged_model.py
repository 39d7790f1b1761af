"""Writes a model again with changed weights: a GGUF file or a folder of safetensors, in the form that it has.

Tensors that nothing changes keep their bytes. One matrix is in memory at a time.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mistralrs.errors import LoadError
from mistralrs.files import read_json
from mistralrs.loading.architecture_lookup import gguf_mapping_of, hugging_face_mapping, naming, read_spec
from mistralrs.loading.checkpoint import Checkpoint, RawTensor
from mistralrs.loading.checkpoint_parts import CheckpointParts, bias_name, rows_in_order, tensor_name, untied
from mistralrs.loading.convert import Conversion, encoded
from mistralrs.loading.gguf_file import GgufFile
from mistralrs.loading.gguf_writer import ALIGNMENT, StoredMetadata, TensorInfo, new_gguf
from mistralrs.loading.model_metadata import GgufMetadata, HfMetadata, read_config
from mistralrs.loading.new_file import explaining
from mistralrs.loading.quantize_model import MakeMerge, cpu_backend
from mistralrs.loading.safetensors_file import SINGLE_NAME, SafetensorsFile
from mistralrs.loading.safetensors_writer import SafetensorsInfo, write_safetensors
from mistralrs.models.architecture import WeightsMapping
from mistralrs.models.multimodal import text_config
from mistralrs.models.parts import WeightKey, WeightMerge
from mistralrs.models.spec import DecoderSpec
from mistralrs.ops.backend import Backend
from mistralrs.ops.weight import read_vector
from mistralrs.progress import Progress
from mistralrs.quant.types import TYPES, QuantType

_logger = logging.getLogger(__name__)

_CONFIG = "config.json"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".index.json")
"""Endings of files that are not copied: they hold or name the weights."""


def write_merged_gguf(source: Path, out: Path, make_merge: MakeMerge, *, progress: Progress | None = None) -> None:
    """Writes ``out`` from the GGUF file at ``source``. Changed matrices get their type again, the metadata stays.

    What is at ``out`` is replaced once the file is complete. Raises ``LoadError`` and ``FormatError`` for a model that
    cannot be read, or has changed matrices of a type that nothing can be quantized to; nothing is left behind then.
    """
    with GgufFile.open(source) as file, naming(source):
        if len(file.files) > 1 or file.version == 1:
            form = "version 1 of GGUF" if file.version == 1 else "several files"
            raise LoadError(f"{source} is a model in {form}", hint="join or convert it with llama.cpp's tools first")
        architecture, form_ = gguf_mapping_of(file, None)
        spec = read_spec(source, form_, GgufMetadata(file))
        rewrite = _Rewrite.of(file, form_, spec, make_merge(architecture, spec))
        tensors = list(rewrite.tensors(adds_biases=True))
        rounded = [each.type.name for each in tensors if each.is_changed and each.type.block_len > 1]
        if rounded:
            types = " and ".join(sorted(set(rounded)))
            _logger.warning("%d merged matrices are quantized again, to %s, which rounds them", len(rounded), types)
        alignment = file.get("general.alignment", int, default=ALIGNMENT)
        metadata = StoredMetadata(len(file.metadata), file.metadata_bytes, alignment)
        with new_gguf(out, metadata, [TensorInfo(each.name, each.type, each.shape) for each in tensors]) as writer:
            for each, pieces in zip(tensors, _contents(tensors, progress), strict=True):
                writer.write(each.name, pieces)


def write_merged_folder(source: Path, out: Path, make_merge: MakeMerge, *, progress: Progress | None = None) -> None:
    """Writes the folder ``out``, which must not exist, from the safetensors at ``source``: one file with the weights,
    and copies of all files beside them.

    Raises ``LoadError`` and ``FormatError`` for a model that cannot be read or that such a folder cannot hold; nothing
    is left behind then.
    """
    folder = source if source.is_dir() else source.parent
    config = read_config(folder / _CONFIG)
    if text_config(config) is not None:
        raise LoadError(
            f"{folder} is a multimodal model, of which only the text part is read",
            hint="merge into a GGUF file: give --out a name that ends in .gguf",
        )
    temporary = out.with_name(f".{out.name}.{os.getpid()}.partial")
    with SafetensorsFile.open(source) as file, naming(source):
        architecture, form = hugging_face_mapping(source, config, None)
        spec = read_spec(source, form, HfMetadata(file, folder / _CONFIG, config))
        rewrite = _Rewrite.of(file, form, spec, make_merge(architecture, spec))
        tensors = list(rewrite.tensors(adds_biases=False))
        infos = [SafetensorsInfo(each.name, each.type.name, each.shape) for each in tensors]
        with explaining(out):
            temporary.mkdir()
        try:
            contents = _contents(tensors, progress)
            write_safetensors(temporary / SINGLE_NAME, infos, contents, metadata={"format": "pt"})
            copy_others(folder, temporary)
            if rewrite.merge.unties_head:
                _untie(temporary / _CONFIG)
            with explaining(out):
                temporary.rename(out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def copy_others(folder: Path, out: Path) -> None:
    """Copies the files of a model's folder that neither hold nor name its weights, unless ``out`` has them already."""
    with explaining(out):
        for path in sorted(folder.iterdir()):
            if path.is_file() and not path.name.endswith(_WEIGHTS) and not (out / path.name).exists():
                shutil.copyfile(path, out / path.name)


def _untie(config: Path) -> None:
    content = {**read_json(config, hint="fetch it again"), "tie_word_embeddings": False}
    with explaining(config):
        config.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _contents(tensors: Sequence[_Tensor], progress: Progress | None) -> Iterator[Iterator[memoryview]]:
    total, done = sum(each.nbytes for each in tensors), 0
    for each in tensors:
        yield each.pieces()
        done += each.nbytes
        if progress:
            progress("merging", done, total)


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor of the new file; ``pieces`` makes its bytes."""

    name: str
    type: QuantType
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[memoryview]]
    is_changed: bool = True

    @property
    def nbytes(self) -> int:
        rows = 1
        for length in self.shape[:-1]:
            rows *= length
        return rows * self.type.row_bytes(self.shape[-1])


@dataclass(frozen=True, slots=True)
class _Rewrite:
    """A checkpoint that is written again."""

    checkpoint: Checkpoint
    parts: CheckpointParts
    backend: Backend
    merge: WeightMerge
    new_head: str | None
    """The name of a head that was the embedding; None: there is no such head."""

    @classmethod
    def of(cls, checkpoint: Checkpoint, form: WeightsMapping, spec: DecoderSpec, merge: WeightMerge) -> _Rewrite:
        backend, new_head = cpu_backend(), None
        if merge.unties_head:
            new_head = tensor_name(form.tensors(spec)["lm_head"], WeightKey("lm_head"))
            form, spec = untied(form, spec)
        parts = CheckpointParts(checkpoint, form, spec, backend, conversion=Conversion(), merge=merge)
        return cls(checkpoint, parts, backend, merge, new_head)

    def tensors(self, *, adds_biases: bool) -> Iterator[_Tensor]:
        """All tensors, in the order of the file; new ones stand behind them. Raises ``LoadError`` for a bias that the
        model has not, unless ``adds_biases``."""
        keys = self._keys()
        biases = {bias_name(name): parts for name, parts in keys.items()}
        for raw in self.checkpoint.tensors.values():
            if raw.name in keys:
                yield self._weight(raw, keys[raw.name])
            elif raw.name in biases:
                yield self._bias(raw.name, raw, biases[raw.name])
            else:
                yield _unchanged(raw)
        if self.new_head is not None:
            yield self._matrix(self.new_head, [WeightKey("lm_head")], None)
        for name, parts in biases.items():
            if name not in self.checkpoint.tensors and any(self._bias_of(key) for key in parts):
                if not adds_biases:
                    raise LoadError(
                        f"the adapter adds {name}, and the model has no such bias",
                        hint="merge into a GGUF file: give --out a name that ends in .gguf",
                    )
                yield self._bias(name, None, parts)

    def _keys(self) -> dict[str, list[WeightKey]]:
        """The parts of each tensor, in the order in which they stand in it."""
        found: dict[str, list[WeightKey]] = {}
        for key in self.parts.weight_keys():
            if self.new_head is None or key.part != "lm_head":
                found.setdefault(self.parts.tensor_of(key), []).append(key)
        return found

    def _weight(self, raw: RawTensor, keys: Sequence[WeightKey]) -> _Tensor:
        if self.parts.is_matrix(keys[0]):
            return self._matrix(raw.name, keys, raw) if any(map(self.merge.changes, keys)) else _unchanged(raw)
        probe = array("f", [0.0])
        if self.merge.merged_norm(keys[0], probe) is probe:
            return _unchanged(raw)
        values, _ = self.parts.vectors(keys[0])
        offset = self.parts.norm_offset
        return self._vector(raw.name, raw.type, array("f", (value - offset for value in values)))

    def _matrix(self, name: str, keys: Sequence[WeightKey], raw: RawTensor | None) -> _Tensor:
        planned = [self.parts.planned(key) for key in keys]
        types = {matrix.type.name for matrix in planned}
        if len(types) > 1:
            raise LoadError(f"{name}: its parts would have the types {' and '.join(sorted(types))}")
        shape = raw.shape if raw is not None else (planned[0].rows, planned[0].columns)
        return _Tensor(name, planned[0].type, shape, partial(self._pieces, keys))

    def _pieces(self, keys: Sequence[WeightKey]) -> Iterator[memoryview]:
        """The bytes of a matrix, one part at a time."""
        for key in keys:
            order = self.parts.file_order(key.part) if self.merge.changes(key) else None
            yield rows_in_order(self.parts.matrix(key).data, order)
            self.parts.release([key])

    def _bias_of(self, key: WeightKey) -> array[float] | None:
        if self.parts.is_matrix(key):
            return self.parts.planned(key).bias
        return self.parts.vectors(key)[1]

    def _bias(self, name: str, raw: RawTensor | None, keys: Sequence[WeightKey]) -> _Tensor:
        values = array("f")
        for key in keys:
            rows = self._bias_of(key)
            if rows is None:
                raise LoadError(f"{name}: only some parts of this tensor have a bias")
            order = self.parts.file_order(key.part)
            values.extend(rows if order is None else (rows[row] for row in order))
        if raw is not None and values == read_vector(raw.name, raw.type, raw.data):
            return _unchanged(raw)
        return self._vector(name, TYPES["F32"] if raw is None else raw.type, values)

    def _vector(self, name: str, type: QuantType, values: array[float]) -> _Tensor:
        import torch

        data = encoded(name, torch.tensor(values).view(1, -1).numpy().data, type, self.backend)
        return _Tensor(name, type, (len(values),), lambda: iter([data]))


def _unchanged(raw: RawTensor) -> _Tensor:
    return _Tensor(raw.name, raw.type, raw.shape, lambda: iter([raw.data]), is_changed=False)
