"""The facts of a base model that decide where an adapter's matrices belong; read from headers, without weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mistralrs.loading.architecture_lookup import gguf_mapping_of, hugging_face_mapping, kind_of, read_spec
from mistralrs.loading.ggml_file import GgmlFile
from mistralrs.loading.gguf_file import GgufFile
from mistralrs.loading.model_metadata import GgufMetadata, HfMetadata, read_text_config
from mistralrs.loading.safetensors_file import SafetensorsFile
from mistralrs.models.registry import ARCHITECTURES
from mistralrs.models.spec import DecoderSpec


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A model that adapters can be for."""

    architecture: str
    """A key of ``ARCHITECTURES``."""
    spec: DecoderSpec


def read_base_model(path: Path, *, gqa: int = 1) -> BaseModel:
    """The facts of the model at ``path``: a folder or file of safetensors, a GGUF or a legacy GGML file.

    ``gqa``: query heads that share a KV head, a number that GGML files lack. Raises ``LoadError`` and ``FormatError``.
    """
    kind = kind_of(path)
    if kind == "safetensors":
        folder = path if path.is_dir() else path.parent
        with SafetensorsFile.open(path) as file:
            config = read_text_config(file, folder / "config.json")
            architecture, form = hugging_face_mapping(path, config, None)
            return BaseModel(architecture, read_spec(path, form, HfMetadata(file, folder / "config.json", config)))
    if kind == "ggml":
        ggml_form = ARCHITECTURES["llama"].ggml
        assert ggml_form is not None
        with GgmlFile.open(path, gqa=gqa) as ggml:
            return BaseModel("llama", read_spec(path, ggml_form, GgufMetadata(ggml)))
    with GgufFile.open(path) as gguf:
        architecture, form = gguf_mapping_of(gguf, None)
        spec = read_spec(path, form, GgufMetadata(gguf))
    return BaseModel(architecture, spec)
