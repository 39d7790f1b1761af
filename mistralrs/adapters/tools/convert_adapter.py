"""Writes an adapter in the other format: a folder of `peft` as a GGUF file, or the other way round."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mistralrs.adapters.adapter_source import is_gguf
from mistralrs.adapters.lora.gguf_lora import read_gguf_lora
from mistralrs.adapters.lora.gguf_lora_writer import write_gguf_lora
from mistralrs.adapters.lora.lora import LoraAdapter
from mistralrs.adapters.lora.module_names import module_names
from mistralrs.adapters.lora.peft_files import read_peft
from mistralrs.adapters.lora.peft_writer import write_peft
from mistralrs.adapters.tools.base_model import BaseModel, read_base_model
from mistralrs.errors import LoadError


def read_adapter(path: Path, base: BaseModel) -> LoraAdapter:
    """The adapter at ``path``, as ``adapter_source.find_adapter`` finds it, for this model. Raises ``LoadError``."""
    if is_gguf(path):
        return read_gguf_lora(path, name=path.stem, architecture=base.architecture, spec=base.spec)
    return read_peft(path, module_names(base.architecture, base.spec))


def convert_adapter(
    path: Path, base: Path, out: Path, *, to: Literal["gguf", "peft"], gqa: int = 1, base_name: str | None = None
) -> None:
    """Writes the adapter at ``path`` for the model at ``base`` to ``out``, a GGUF file or a folder.

    ``gqa``: query heads that share a KV head, if the model is a GGML file. ``base_name``: the name of the model in the
    new adapter; None: that of its file or folder. What is at ``out`` is replaced once the new adapter is complete.
    Raises ``LoadError`` and ``FormatError`` for an adapter that is damaged, does not fit the model, has this format
    already, or cannot be held by it.
    """
    if is_gguf(path) == (to == "gguf"):
        form = "a GGUF file" if to == "gguf" else "a folder of peft"
        raise LoadError(f"{path} is {form} already", hint=f"--to {'peft' if to == 'gguf' else 'gguf'} converts it")
    model = read_base_model(base, gqa=gqa)
    adapter = read_adapter(path, model)
    write = write_gguf_lora if to == "gguf" else write_peft
    own_name = base.resolve().name if base.is_dir() else base.stem
    write(adapter, out, architecture=model.architecture, spec=model.spec, base=base_name or own_name)
