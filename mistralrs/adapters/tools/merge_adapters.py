"""Writes a model with adapters merged into its weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mistralrs.adapters.adapter_source import is_gguf
from mistralrs.adapters.lora.lora_config import CONFIG_NAME, OnlyPeftReadsError, read_lora_config
from mistralrs.adapters.lora.lora_merge import LoraMerge, WeightedAdapter
from mistralrs.adapters.tools.base_model import read_base_model
from mistralrs.adapters.tools.convert_adapter import read_adapter
from mistralrs.adapters.tools.merge_through_peft import merge_through_peft
from mistralrs.errors import LoadError
from mistralrs.loading.architecture_lookup import kind_of
from mistralrs.loading.merged_model import write_merged_folder, write_merged_gguf
from mistralrs.loading.quantize_model import quantize_model
from mistralrs.models.spec import DecoderSpec
from mistralrs.progress import Progress


def merge_adapters(
    base: Path,
    adapters: Sequence[tuple[Path, float]],
    out: Path,
    *,
    type: str | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Writes the model at ``base`` with the weighted sum of ``adapters`` added, computed in float32 and then cast.

    ``adapters``: paths, as ``adapter_source.local_adapter`` gives them, with weights. ``out``: a GGUF file, or a folder
    of safetensors, which must not exist. Only matrices on which an adapter acts change; those that were quantized are
    quantized to their type again. ``type``: of safetensors that become a GGUF file, a key of
    ``quant.quantize.ISQ_TYPES``; None keeps the types. ``name``: the model's name in such a file. An adapter that
    nothing here reads is merged by the package `peft`, alone and from safetensors into safetensors.

    Raises ``UsageError`` for another type, ``LoadError`` and ``FormatError`` for what cannot be read, merged or
    written; nothing is left behind then.
    """
    kind = kind_of(base)
    if kind == "ggml":
        raise LoadError(f"{base} is a legacy GGML file, which is not written", hint="take a GGUF file of the model")
    if any(_only_peft_reads(path) for path, _ in adapters):
        _through_peft(base, adapters, out, kind=kind)
        return
    model = read_base_model(base)
    merge = LoraMerge(
        [WeightedAdapter(read_adapter(path, model), weight) for path, weight in adapters], spec=model.spec
    )

    def make_merge(architecture: str, spec: DecoderSpec) -> LoraMerge:
        return merge

    if kind == "gguf":
        if out.suffix != ".gguf":
            raise LoadError(f"{base} is a GGUF file, and stays one", hint="give --out a name that ends in .gguf")
        if type is not None:
            raise LoadError(f"{base} is a GGUF file, whose types stay", hint="--type is for safetensors: leave it out")
        write_merged_gguf(base, out, make_merge, progress=progress)
    elif out.suffix == ".gguf":
        quantize_model(base, out, type, name=name, merge=make_merge, progress=progress)
    else:
        write_merged_folder(base, out, make_merge, progress=progress)


def _only_peft_reads(path: Path) -> bool:
    if is_gguf(path):
        return False
    try:
        read_lora_config(path / CONFIG_NAME)
    except OnlyPeftReadsError:
        return True
    return False


def _through_peft(base: Path, adapters: Sequence[tuple[Path, float]], out: Path, *, kind: str) -> None:
    [(path, weight), *others] = adapters
    if others or weight != 1.0:
        raise LoadError(f"{path} is merged by peft, with weight 1 and alone", hint="leave weights and others out")
    if kind != "safetensors" or out.suffix == ".gguf":
        raise LoadError(
            f"{path} is merged by peft, from safetensors into a folder of safetensors",
            hint="mistralrs quantize writes such a folder as a GGUF file",
        )
    merge_through_peft(base if base.is_dir() else base.parent, path, out)
