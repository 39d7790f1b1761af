"""The fields of selectors in Python: their order, their values, and their spelling in errors for Python callers.

``model_choice`` gives the fields their meaning.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, get_type_hints

from mistralrs.api.options.model_options import (
    AddedXLoraOptions,
    AnyPlainOptions,
    AutoOptions,
    GgmlOptions,
    LoraOptions,
    XLoraOptions,
)
from mistralrs.api.options.option import Option
from mistralrs.api.selectors.model_selector import SELECTORS, Adapter, Format, ModelSelector, defaults_of, required_of

_FILE = ("tok_model_id", "tokenizer_json", "quantized_model_id", "quantized_filename")
_FIELDS: dict[tuple[Format, Adapter | None], tuple[str, ...]] = {
    ("plain", None): ("model_id", "tokenizer_json", "repeat_last_n"),
    ("gguf", None): (*_FILE, "repeat_last_n"),
    ("ggml", None): (*_FILE, "repeat_last_n", "gqa"),
    ("any", None): (
        "source", "filename", "tok_model_id", "tokenizer_json", "repeat_last_n", "gqa", "xlora", "order",
        "tgt_non_granular_index",
    ),
    ("plain", "x-lora"): (
        "model_id", "tokenizer_json", "xlora_model_id", "repeat_last_n", "order", "tgt_non_granular_index",
    ),
    ("gguf", "x-lora"): (*_FILE, "repeat_last_n", "xlora_model_id", "order", "tgt_non_granular_index"),
    ("ggml", "x-lora"): (*_FILE, "repeat_last_n", "xlora_model_id", "order", "gqa", "tgt_non_granular_index"),
    ("plain", "lora"): ("model_id", "tokenizer_json", "adapters_model_id", "repeat_last_n", "order"),
    ("gguf", "lora"): (*_FILE, "repeat_last_n", "adapters_model_id", "order"),
    ("ggml", "lora"): (*_FILE, "repeat_last_n", "adapters_model_id", "order", "gqa"),
}  # fmt: skip
"""The fields of selectors in the order of mistral.rs, whose callers give them by position."""
_ANY_FILE = ("tok_model_id", "quantized_model_id", "quantized_filename")
_XLORA = ("xlora_model_id", "order", "tgt_non_granular_index")
_LORA = ("adapters_model_id", "order")
_REST = ("tokenizer_json", "repeat_last_n")
_FIELDS_OF_ITS_OWN = {
    "lora-mistral-gguf": (*_FILE, "adapters_model_id", "repeat_last_n", "order"),
    "plain": ("model_id", "arch", *_REST),
    "lora": ("arch", *_LORA, "model_id", *_REST),
    "x-lora": ("arch", *_XLORA, "model_id", *_REST),
    "gguf": (*_ANY_FILE, *_REST, "arch"),
    "ggml": (*_ANY_FILE, *_REST, "gqa", "arch"),
    "lora-gguf": (*_ANY_FILE, *_LORA, *_REST, "arch"),
    "lora-ggml": (*_ANY_FILE, *_LORA, *_REST, "gqa", "arch"),
    "x-lora-gguf": (*_ANY_FILE, *_XLORA, *_REST, "arch"),
    "x-lora-ggml": (*_ANY_FILE, *_XLORA, *_REST, "gqa", "arch"),
}
"""The fields of the selectors with another order."""


@dataclass(frozen=True, slots=True)
class Kind:
    """The types of a field's value beside None."""

    annotation: str
    types: tuple[type, ...]
    least: int | None = None
    """The least value of a number."""


def _kind(hint: object, declared: Option) -> Kind:
    if declared.flags == ("--arch",):
        return Kind("Architecture | str | None", (str,))
    if hint == Path | None:
        return Kind("str | os.PathLike[str] | None", (str, os.PathLike))
    if hint == int | None:
        return Kind("int | None", (int,), least=None if declared.least is None else int(declared.least))
    return Kind("str | None", (str,))


_KINDS = {
    each.name: _kind(hints[each.name], each.metadata["declaration"])
    for options in (AnyPlainOptions, GgmlOptions, AutoOptions, AddedXLoraOptions, XLoraOptions, LoraOptions)
    for hints in (get_type_hints(options),)
    for each in fields(options)
}


FIELD_NAMES = tuple(_KINDS)
"""The fields that any selector has."""


def fields_of(row: ModelSelector) -> dict[str, Kind]:
    """Returns a selector's fields in their order."""
    names = _FIELDS_OF_ITS_OWN.get(row.name) or _FIELDS[row.format, row.adapter]
    return {name: _KINDS[name] for name in names}


def class_name(row: ModelSelector) -> str:
    """Returns a selector's name as a class of ``Which``: ``x-lora-llama-ggml`` is ``XLoraLlamaGGML``."""
    return "".join(word.upper() if word in ("gguf", "ggml") else word.capitalize() for word in row.name.split("-"))


def described(row: ModelSelector) -> str:
    """Returns the docstring of a selector's class: the selector, and the values of fields that are left out or None."""
    left_out = ", ".join(
        f"{name}={value if name in ('gqa', 'repeat_last_n') else repr(value)}"
        for name, value in defaults_of(row).items()
        if name in fields_of(row)
    )
    needed = ", ".join(name for name in fields_of(row) if name in required_of(row))
    return f"The row ``{row.name}``. Needs {needed or 'nothing'}; defaults: {left_out}."


class PythonErrorFormatter:
    """Spells fields and options as arguments, and selectors as calls."""

    _OPTIONS: ClassVar = {"isq": "in_situ_quant"}
    _ROWS: ClassVar = {"lora": "a row with LoRA, such as Which.LoraLlama"}

    def name(self, field: str) -> str:
        """Returns the argument, or the kind of row that takes its place."""
        return self._ROWS.get(field) or self._OPTIONS.get(field, field)

    def given(self, field: str, value: object) -> str:
        """Returns the argument with its value."""
        return f"{self.name(field)}={value!r}"

    def call(self, row: str, **fields: object) -> str:
        """Returns the call that makes the selector; with options, the one that makes its runner."""
        inner = ", ".join(self.given(field, value) for field, value in fields.items() if field not in self._OPTIONS)
        outer = "".join(f", {self.given(field, value)}" for field, value in fields.items() if field in self._OPTIONS)
        which = f"Which.{class_name(SELECTORS[row])}({inner})"
        return f"Runner({which}{outer})" if outer else which
