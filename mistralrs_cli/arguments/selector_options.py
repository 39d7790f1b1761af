"""The selectors as subcommands: their options, and their texts in help and reference."""

from __future__ import annotations

from mistralrs.api.options.model_options import (
    AddedOptions,
    AddedXLoraOptions,
    AnyGgmlOptions,
    AnyPlainOptions,
    AnyQuantizedOptions,
    AutoOptions,
    GgmlOptions,
    LoraOptions,
    PlainOptions,
    QuantizedOptions,
    XLoraOptions,
)
from mistralrs.api.selectors.model_selector import SELECTORS, ModelSelector, defaults_of

WeightOptions = PlainOptions | QuantizedOptions | AutoOptions
AdapterOptions = AddedOptions | AddedXLoraOptions | XLoraOptions | LoraOptions

WEIGHT_OPTIONS: dict[str, type[WeightOptions]] = {
    "plain": PlainOptions,
    "gguf": QuantizedOptions,
    "ggml": GgmlOptions,
    "any": AutoOptions,
}
"""The options after a subcommand that name its weights, by format."""
ANY_WEIGHT_OPTIONS: dict[str, type[WeightOptions]] = {
    "plain": AnyPlainOptions,
    "gguf": AnyQuantizedOptions,
    "ggml": AnyGgmlOptions,
    "any": AutoOptions,
}
"""The same for a subcommand of any architecture."""
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
    weights = (ANY_WEIGHT_OPTIONS if row.architecture is None else WEIGHT_OPTIONS)[row.format]
    if row.adapter is not None:
        return [weights, ADAPTER_OPTIONS[row.adapter]]
    return [weights, AddedXLoraOptions if row.format in ("plain", "any") else AddedOptions]


def shown_defaults(row: ModelSelector) -> dict[str, str]:
    """Returns the defaults of a subcommand's options as help shows them, by field."""
    of_the_ordering = {} if row.adapter is None else {"model_id": "that of the ordering"}
    return of_the_ordering | defaults_of(row)


def summary(row: ModelSelector) -> str:
    """Returns a subcommand's purpose."""
    what = f"a {row.architecture} model" if row.architecture else "any supported model"
    return f"Use {what}{_ADAPTERS[row.adapter]}: {_FORMATS[row.format]}."


def default_model(row: ModelSelector) -> str:
    """Returns the model that a subcommand loads by default."""
    if row.format in ("gguf", "ggml"):
        return row.quantized_filename or "none: -f names the file"
    none = "none: -m names the model" if row.adapter is None else "that of the ordering"
    return row.base_repo or none


def overview() -> dict[str, list[tuple[str, str]]]:
    """Returns every subcommand with its short description, under the titles that help gives them."""
    rows = SELECTORS.values()
    plain = [row for row in rows if not row.adapter]
    return {
        "Any model": [(row.name, _FORMATS[row.format]) for row in plain if row.architecture is None],
        "Safetensors, by architecture": [
            (row.name, default_model(row)) for row in plain if row.architecture and row.format == "plain"
        ],
        "GGUF and GGML files, by architecture": [
            (row.name, default_model(row)) for row in plain if row.architecture and row.format != "plain"
        ],
        "With adapters": [(row.name, default_model(row)) for row in rows if row.adapter],
    }
