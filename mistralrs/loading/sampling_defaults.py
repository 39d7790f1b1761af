"""Reads the sampling parameters that a model's makers recommend: of `generation_config.json`, or of a GGUF file.

They have the names of ``SamplingParams``; nothing checks their ranges here. `generation_config.json` has more fields,
on lengths and beams, which are settings of transformers' own loop. Whether it says ``do_sample`` does not matter, as in
vLLM: a server samples in any case.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from mistralrs.files import read_json

GENERATION_CONFIG = "generation_config.json"
_OF_FOLDERS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
}
_OF_GGUF = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
    "general.sampling.xtc_probability": "xtc_probability",
    "general.sampling.xtc_threshold": "xtc_threshold",
}
_WHOLE = ("top_k",)
_DIGITS = 6
"""Decimal places that are kept: GGUF has single precision, in which 0.6 is 0.600000024."""


def gguf_sampling(metadata: Mapping[str, object]) -> dict[str, float]:
    """Returns the parameters of a GGUF file's ``general.sampling.*``; empty if it has none."""
    return _numbers(metadata, _OF_GGUF)


def folder_sampling(folder: Path) -> dict[str, float]:
    """Returns the parameters of the folder's `generation_config.json`; empty if it has none, or there is no such file.

    Raises ``LoadError`` for a file that cannot be read.
    """
    path = folder / GENERATION_CONFIG
    if not path.is_file():
        return {}
    return _numbers(read_json(path, hint="fetch it again, or remove it"), _OF_FOLDERS)


def _numbers(found: Mapping[str, object], names: Mapping[str, str]) -> dict[str, float]:
    """Returns the values that are finite numbers, by their names here."""
    numbers: dict[str, float] = {}
    for key, name in names.items():
        value = found.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            continue
        numbers[name] = int(value) if name in _WHOLE else round(float(value), _DIGITS)
    return numbers
