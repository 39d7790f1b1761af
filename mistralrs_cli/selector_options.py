"""The selectors as subcommands: their options, and their texts in help and reference."""

from __future__ import annotations

from mistralrs.api.options.model_options import (
    AutoOptions,
    GgmlOptions,
    LoraOptions,
    PlainOptions,
    QuantizedOptions,
    XLoraOptions,
)
from mistralrs.api.selectors.model_selector import SELECTORS, ModelSelector

WeightOptions = PlainOptions | QuantizedOptions | AutoOptions
AdapterOptions = XLoraOptions | LoraOptions

WEIGHT_OPTIONS: dict[str, type[WeightOptions]] = {
    "plain": PlainOptions,
    "gguf": QuantizedOptions,
    "ggml": GgmlOptions,
    "any": AutoOptions,
}
"""The options after a subcommand that name its weights, by format."""
ADAPTER_OPTIONS: dict[str, type[AdapterOptions]] = {"x-lora": XLoraOptions, "lora": LoraOptions}
"""The options after a subcommand that name adapters, by kind."""

_FORMATS = {
    "plain": "safetensors, of a hub repository or a folder",
    "gguf": "a GGUF file",
    "ggml": "a GGML file, as llama.cpp wrote them before August 2023",
    "any": "a hub repository, a folder or a file",
}
_ADAPTERS = {None: "", "lora": " with LoRA adapters", "x-lora": " with X-LoRA"}


def option_classes(row: ModelSelector) -> list[type[WeightOptions] | type[AdapterOptions]]:
    """Returns the options after a subcommand."""
    return [WEIGHT_OPTIONS[row.format], *([ADAPTER_OPTIONS[row.adapter]] if row.adapter else [])]


def summary(row: ModelSelector) -> str:
    """Returns a subcommand's purpose."""
    what = f"a {row.architecture} model" if row.architecture else "any supported model"
    return f"Use {what}{_ADAPTERS[row.adapter]}: {_FORMATS[row.format]}."


def default_model(row: ModelSelector) -> str:
    """Returns the model that a subcommand loads by default."""
    return row.base_repo or row.quantized_filename or "none: -m names the model"


def overview() -> dict[str, list[tuple[str, str]]]:
    """Returns every subcommand with its short description, under the titles that help gives them."""
    rows = SELECTORS.values()
    plain = [row for row in rows if not row.adapter]
    return {
        "Any model": [(row.name, _FORMATS[row.format]) for row in plain if row.architecture is None],
        "Safetensors, by architecture": [(row.name, default_model(row)) for row in plain if row.format == "plain"],
        "GGUF and GGML files, by architecture": [
            (row.name, default_model(row)) for row in plain if row.architecture and row.format != "plain"
        ],
        "With adapters (not there yet)": [(row.name, default_model(row)) for row in rows if row.adapter],
    }
