"""What the words after ``adapter`` ask for. Refuses outputs that are there already, before anything is read."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mistralrs.api.load_options import ModelSource
from mistralrs.errors import UsageError
from mistralrs.quant.quantize import isq_type
from mistralrs.user_dirs import expand_user
from mistralrs_cli.arguments.source_options import source_at
from mistralrs_cli.commands.utility_options import AdapterConvertOptions, AdapterInspectOptions, AdapterMergeOptions

AdapterOptions = AdapterInspectOptions | AdapterConvertOptions | AdapterMergeOptions


@dataclass(frozen=True, slots=True)
class AdapterInspectJob:
    """What to say of which adapter, and how."""

    source: ModelSource
    token_source: str
    json: bool


@dataclass(frozen=True, slots=True)
class AdapterConvertJob:
    """Write the adapter ``source`` of the model ``base`` in the other format."""

    source: ModelSource
    base: ModelSource
    token_source: str
    to: Literal["gguf", "peft"]
    out: Path


@dataclass(frozen=True, slots=True)
class AdapterMergeJob:
    """Write the model ``base`` with the weighted ``adapters`` merged into it."""

    base: ModelSource
    adapters: tuple[tuple[ModelSource, float], ...]
    token_source: str
    out: Path
    type: str | None
    """A key of ``quant.quantize.ISQ_TYPES``; None: as the weights are stored."""


AdapterJob = AdapterInspectJob | AdapterConvertJob | AdapterMergeJob


def adapter_job(words: AdapterOptions, token_source: str) -> AdapterJob:
    """The task that the words ask for. Raises ``UsageError``, and ``LoadError`` when a local file is missing."""
    if isinstance(words, AdapterMergeOptions):
        return _merge_job(words, token_source)
    source = source_at(words.source, words.filename)
    if isinstance(words, AdapterInspectOptions):
        return AdapterInspectJob(source, token_source, words.json)
    _check_out(words.out, is_gguf=words.to == "gguf", force=words.force)
    base = source_at(words.base, None, gqa=words.gqa or 1)
    return AdapterConvertJob(source, base, token_source, words.to, words.out)


def _merge_job(words: AdapterMergeOptions, token_source: str) -> AdapterMergeJob:
    is_gguf = words.out.suffix == ".gguf"
    if not is_gguf and words.force:
        raise UsageError("--force replaces files, not folders", hint=f"remove {words.out}, and leave --force out")
    if not is_gguf and words.type is not None:
        raise UsageError("--type is for GGUF files", hint="give --out a name that ends in .gguf, or leave --type out")
    _check_out(words.out, is_gguf=is_gguf, force=words.force)
    return AdapterMergeJob(
        base=source_at(words.model, None),
        adapters=tuple(map(_weighted, words.adapters)),
        token_source=token_source,
        out=words.out,
        type=None if words.type is None else isq_type(words.type).name.lower(),
    )


def _weighted(word: str) -> tuple[ModelSource, float]:
    """The adapter that ``ADAPTER`` or ``ADAPTER:W`` names; a path that exists is one as it stands."""
    name, _, text = word.rpartition(":")
    if not name or os.path.exists(expand_user(word)):
        return source_at(word, None), 1.0
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise UsageError(f"{word}: {text!r} is no weight", hint="write ADAPTER:0.5")
    return source_at(name, None), weight


def check_new_file(out: Path, *, ending: str, force: bool) -> None:
    """Raises ``UsageError`` for a path that cannot be written as a file with this ending."""
    if out.suffix != ending:
        raise UsageError(f"{out} is to be a picture", hint=f"give it a name that ends in {ending}")
    if out.is_dir() or (out.exists() and not force):
        raise UsageError(f"{out} is there already", hint="give another name, or --force to replace a file")
    if not out.parent.is_dir():
        raise UsageError(f"{out.parent} is no folder", hint="make it first")


def _check_out(out: Path, *, is_gguf: bool, force: bool) -> None:
    """Raises ``UsageError`` for a path that cannot be written as a GGUF file or else as a folder."""
    if is_gguf and out.suffix != ".gguf":
        raise UsageError(f"{out} is to be a GGUF file", hint="give it a name that ends in .gguf")
    if not is_gguf and out.suffix in (".gguf", ".safetensors"):
        raise UsageError(f"{out} is to be a folder", hint=f"give it a name that does not end in {out.suffix}")
    if out.exists() and not force:
        raise UsageError(f"{out} is there already", hint="give another name, or --force to replace it")
    if out.exists() and out.is_dir() == is_gguf:
        kind, wanted = ("folder", "a GGUF file") if is_gguf else ("file", "a folder")
        raise UsageError(f"{out} is a {kind}, and is to be {wanted}", hint="give another name")
    if not out.parent.is_dir():
        raise UsageError(f"{out.parent} is no folder", hint="make it first")
