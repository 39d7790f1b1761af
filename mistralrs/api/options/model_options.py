"""The options after a selector: by the format of its weights and by its adapter. None: not given, the selector's
default counts.

The command line makes its parameters from these fields, and ``Which`` the types and ranges of its own.
"""

# ruff: noqa: RUF009  (``option`` makes a dataclass field, as ``field`` does)

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mistralrs.api.options.adapter_flags import lora_option
from mistralrs.api.options.option import argument, option
from mistralrs.api.schemas.sentinels import MAX_INT


def _tokenizer_json(*short: str) -> Any:
    return option(None, "--tokenizer-json", *short, metavar="FILE", help="A local tokenizer.json; replaces any other.")


def _tok_model_id() -> Any:
    return option(
        None,
        "--tok-model-id",
        "-t",
        metavar="REPO|FOLDER",
        help="Use the tokenizer and template of this repository instead of the file's own.",
    )


def gqa_option() -> Any:
    """Returns the option ``--gqa``."""
    return option(
        None,
        "--gqa",
        metavar="N",
        least=1,
        shown_default="1",
        help="Query heads that share a KV head, which a GGML file lacks: 8 for Llama 2 70B.",
    )


def _repeat_last_n() -> Any:
    return option(
        None,
        "--repeat-last-n",
        metavar="N",
        least=-1,
        most=MAX_INT,
        shown_default="64",
        help="Tokens that the penalties look back on, the prompt's included; -1: all.",
    )


def _order() -> Any:
    return option(
        None,
        "--order",
        "-o",
        metavar="FILE",
        help="The ordering of the adapters, a JSON file; not needed where it follows from the configs.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainOptions:
    """The options after a selector whose weights are safetensors."""

    model_id: str | None = option(
        None, "--model-id", "-m", metavar="REPO|PATH", help="The model: a hub repository, a folder or a file."
    )
    tokenizer_json: Path | None = _tokenizer_json("-t")
    repeat_last_n: int | None = _repeat_last_n()


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedOptions:
    """The options after a selector whose weights are one quantized file."""

    tok_model_id: str | None = _tok_model_id()
    quantized_model_id: str | None = option(
        None,
        "--quantized-model-id",
        "-m",
        metavar="REPO|FOLDER",
        help="The place of the file: a hub repository, a folder, or '' for a local file.",
    )
    quantized_filename: str | None = option(None, "--quantized-filename", "-f", metavar="FILE", help="The file.")
    tokenizer_json: Path | None = _tokenizer_json()
    repeat_last_n: int | None = _repeat_last_n()


@dataclass(frozen=True, slots=True, kw_only=True)
class GgmlOptions(QuantizedOptions):
    """The options after a selector whose weights are a GGML file."""

    gqa: int | None = gqa_option()


def _arch() -> Any:
    return option(
        None,
        "--arch",
        metavar="NAME",
        help="The architecture that the weights must have, such as llama; another one is an error.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AnyPlainOptions(PlainOptions):
    """The same for a selector of any architecture."""

    arch: str | None = _arch()


@dataclass(frozen=True, slots=True, kw_only=True)
class AnyQuantizedOptions(QuantizedOptions):
    """The same for a selector of any architecture."""

    arch: str | None = _arch()


@dataclass(frozen=True, slots=True, kw_only=True)
class AnyGgmlOptions(GgmlOptions):
    """The same for a selector of any architecture."""

    arch: str | None = _arch()


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoOptions:
    """The options after ``auto``."""

    source: str | None = argument(None, metavar="SOURCE", help="The model: a hub repository, a folder or a file.")
    model_id: str | None = option(None, "--model-id", "-m", metavar="SOURCE", help="The same as SOURCE.")
    filename: str | None = option(
        None, "--filename", "-f", metavar="FILE", help="A file of the repository or folder, where several are models."
    )
    tok_model_id: str | None = _tok_model_id()
    tokenizer_json: Path | None = _tokenizer_json()
    gqa: int | None = gqa_option()
    repeat_last_n: int | None = _repeat_last_n()


def _tgt_non_granular_index() -> Any:
    return option(
        None,
        "--tgt-non-granular-index",
        metavar="N",
        least=0,
        help="Compute X-LoRA's scalings for this many generated tokens, then keep the last ones; 0: those of the "
        "prompt's last token.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedOptions:
    """The options after a selector without adapters for one quantized file, besides those that name the weights."""

    lora: tuple[str, ...] = lora_option()


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedXLoraOptions(AddedOptions):
    """The options after any other selector without adapters, besides those that name the weights."""

    xlora: str | None = option(
        None, "--xlora", metavar="REPO|FOLDER", help="X-LoRA's adapters and their classifier, for any architecture."
    )
    order: Path | None = _order()
    tgt_non_granular_index: int | None = _tgt_non_granular_index()


@dataclass(frozen=True, slots=True, kw_only=True)
class XLoraOptions:
    """The options after a selector with X-LoRA, besides those that name the weights."""

    xlora_model_id: str | None = option(
        None, "--xlora-model-id", "-x", metavar="REPO|FOLDER", help="The adapters and their classifier."
    )
    order: Path | None = _order()
    tgt_non_granular_index: int | None = _tgt_non_granular_index()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraOptions(AddedOptions):
    """The options after a selector with LoRA, besides those that name the weights."""

    adapters_model_id: str | None = option(
        None, "--adapters-model-id", "-a", metavar="REPO|FOLDER", help="The adapters."
    )
    order: Path | None = _order()
