"""Merges an adapter that nothing here reads, with the packages `peft` and `transformers`."""

from __future__ import annotations

import os
import shutil
import warnings
from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

from mistralrs.adapters.lora.peft_tensors import WEIGHTS_NAME
from mistralrs.errors import LoadError
from mistralrs.loading.merged_model import copy_others
from mistralrs.loading.new_file import explaining
from mistralrs.loading.safetensors_file import SafetensorsFile


def merge_through_peft(base: Path, adapter: Path, out: Path) -> None:
    """Writes the folder ``out``, which must not exist, from the safetensors in the folder ``base`` and one adapter.

    The merge is computed in float32, and the weights are stored in the type that most of the base's have.
    Raises ``LoadError`` where the two packages are missing, or cannot merge the adapter; nothing is left behind then.
    """
    try:
        import peft
        import transformers
    except ImportError as error:
        raise LoadError(
            f"{adapter} is of a kind that only peft merges, and {error.name} is not installed",
            hint="pip install peft transformers, and run the same command again",
        ) from error
    if not (adapter / WEIGHTS_NAME).is_file():
        raise LoadError(f"{adapter} has no {WEIGHTS_NAME}", hint="give the folder of an adapter, as peft saves it")
    transformers.utils.logging.disable_progress_bar()
    temporary = out.with_name(f".{out.name}.{os.getpid()}.partial")
    with explaining(out):
        temporary.mkdir()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about training, and about settings of other models
            try:
                _merged(peft, transformers, base, adapter).save_pretrained(temporary)
            except Exception as error:  # of any kind: the packages say by many what an adapter or a model lacks
                raise LoadError(
                    f"{adapter}: peft cannot merge it into {base}: {type(error).__name__}: {error}",
                    hint="the adapter may be for another base, or of a kind that cannot be merged",
                ) from error
        copy_others(base, temporary)
        with explaining(out):
            temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _merged(peft: Any, transformers: Any, base: Path, adapter: Path) -> Any:
    import torch

    settings = {"local_files_only": True, "use_safetensors": True}
    stored = {"F16": torch.float16, "BF16": torch.bfloat16}.get(_stored_type(base), torch.float32)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, **settings)
    return peft.PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True).to(stored)


def _stored_type(base: Path) -> str:
    """Returns the type in which most of the base's weights are stored."""
    sizes: Counter[str] = Counter()
    with SafetensorsFile.open(base, reads_config=False) as file:
        for tensor in file.tensors.values():
            sizes[tensor.type.name] += prod(tensor.shape)
    return sizes.most_common(1)[0][0]
