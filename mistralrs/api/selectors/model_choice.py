"""Finds the files and the text of a model from a selector and its fields, for every kind of caller.

No file is opened but an ordering. The command line and ``Which`` spell the same fields in different ways, each with an
``ErrorFormatter``; the meaning of the fields, and the combinations that are refused, are here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mistralrs.api.load_options import ModelSource
from mistralrs.api.schemas.sentinels import repeat_last_n_from
from mistralrs.api.selectors.architecture_names import check_architecture
from mistralrs.api.selectors.model_selector import ModelSelector
from mistralrs.api.selectors.named_adapters import ordering_of
from mistralrs.errors import LoadError, UsageError
from mistralrs.quant.quantize import isq_type
from mistralrs.text.builtin_templates import builtin_template
from mistralrs.user_dirs import expand_user


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelChoice:
    """A selector and the fields that name its weights. None: not given; the selector's default counts."""

    selector: ModelSelector
    source: str | None = None
    """The source of a selector for any format: a hub repository, a folder or a file."""
    filename: str | None = None
    """The file in it."""
    model_id: str | None = None
    """The source of a selector for safetensors: a hub repository, a folder or a file."""
    quantized_model_id: str | None = None
    """The source of a selector for one file: a hub repository, a folder, or "" for a local file."""
    quantized_filename: str | None = None
    tok_model_id: str | None = None
    tokenizer_json: Path | None = None
    gqa: int | None = None
    arch: str | None = None
    """The architecture of a selector for any: a name of ``architecture_names.Architecture``."""
    repeat_last_n: int | None = None
    lora: tuple[str, ...] = ()
    """LoRA adapters as ``NAME=SOURCE`` or ``SOURCE``."""
    adapters_model_id: str | None = None
    """The adapters of a selector with LoRA: a hub repository or a folder."""
    xlora_model_id: str | None = None
    """Those of a selector with X-LoRA, and their classifier."""
    xlora: str | None = None
    """The same for a selector without adapters."""
    order: Path | None = None
    """The ordering file of the adapters."""
    tgt_non_granular_index: int | None = None


class ErrorFormatter(Protocol):
    """The spelling of fields in errors, as the caller writes them."""

    def name(self, field: str) -> str:
        """Returns a field or an option: ``-f``."""

    def given(self, field: str, value: object) -> str:
        """Returns the same with a value, which is True for a switch: ``-f model.gguf``."""

    def call(self, row: str, **fields: object) -> str:
        """Returns the way to ask for a selector with these fields: ``mistralrs -i auto model.gguf``."""


def find_source(choice: ModelChoice, formatter: ErrorFormatter) -> ModelSource:
    """Returns the model that a selector and its fields name.

    Raises ``UsageError`` when they name nothing, and ``LoadError`` when a local file is missing or the ordering of a
    selector with adapters cannot be read or is for another base.
    """
    row = choice.selector
    if row.format == "plain":
        return _plain_source(choice, formatter)
    return _any_source(choice, formatter) if row.format == "any" else _file_source(choice, formatter)


def source_at(
    word: str, filename: str | None, formatter: ErrorFormatter, *, architecture: str | None = None, gqa: int = 1
) -> ModelSource:
    """Returns the model that one word names: a path if it exists, else a hub repository.

    ``filename``: the file in it. Raises ``LoadError`` when a local file is missing.
    """
    place = expand_user(word)
    if os.path.exists(place):  # False also where the folder may not be searched: a repository needs no folder
        path = place / filename if filename is not None and place.is_dir() else place
        if filename is not None and path.name != Path(filename).name:
            given = formatter.given("filename", filename)
            raise UsageError(f"{word} is a file, so {given} means nothing", hint="leave one of them out")
        return ModelSource(architecture, _existing(path, formatter), None, None, gqa)
    if word.startswith((".", "/", "~")) or place.suffix in (".gguf", ".safetensors", ".bin"):
        raise LoadError(f"{word} {_absence(place)}", hint="name a file, a folder, or a hub repository as OWNER/NAME")
    return ModelSource(architecture, None, word, filename, gqa)


def template_of(choice: ModelChoice) -> str | None:
    """Returns the selector's template for its own file, unless another file or other text files are named."""
    named = (choice.quantized_model_id, choice.quantized_filename, choice.tok_model_id)
    return None if choice.selector.template is None or any(named) else builtin_template(choice.selector.template)


def repeat_last_n_of(choice: ModelChoice) -> int:
    """Returns the number of last tokens that the penalties cover; -1 is all."""
    return choice.selector.repeat_last_n if choice.repeat_last_n is None else repeat_last_n_from(choice.repeat_last_n)


def in_situ_type(name: str | None, selector: ModelSelector | None, formatter: ErrorFormatter) -> str | None:
    """Returns the type that weights are quantized to at load, a key of ``quant.quantize.ISQ_TYPES``; None stays None.

    ``row``: None is the default model. Raises ``UsageError`` for a word that is no such type, and for a selector whose
    weights are quantized already.
    """
    if name is None:
        return None
    wanted = isq_type(name)
    if selector is None or selector.format in ("gguf", "ggml"):
        what = "the default model" if selector is None else selector.name
        raise UsageError(
            f"{formatter.given('isq', name)}: {what} is a file that is quantized already",
            hint=f"{formatter.name('isq')} is for safetensors: {formatter.call('auto', source='REPO', isq='TYPE')}",
        )
    return wanted.name.lower()


def check_together(
    *,
    kv_dir: bool,
    no_kv_cache: bool,
    prefix_cache_n: int | None,
    max_draft: int | None,
    draft_model: bool,
    no_pack: bool,
    isq: str | None,
    kv_cache_dtype: str,
    precision: str,
    dtype: str,
    formatter: ErrorFormatter,
) -> None:
    """Raises ``UsageError`` for options of loading that contradict each other.

    ``kv_dir``: whether a folder for KV is given; ``draft_model``: whether one is. ``prefix_cache_n``: None is some;
    ``max_draft``: None is not given. ``isq``: None is not given.
    """
    without_cache, without_reuse = formatter.given("no_kv_cache", True), formatter.given("prefix_cache_n", 0)
    for is_vain, reason in (
        (kv_dir and no_kv_cache, f"{formatter.name('kv_dir')} keeps what {without_cache} throws away"),
        (kv_dir and prefix_cache_n == 0, f"{formatter.name('kv_dir')} keeps what {without_reuse} throws away"),
        (
            draft_model and no_kv_cache,
            f"{formatter.name('draft_model')} has no effect with {without_cache}",
        ),
        (
            draft_model and max_draft == 0,
            f"{formatter.name('draft_model')} has no effect with {formatter.given('max_draft', 0)}",
        ),
        (
            no_pack and isq is not None,
            f"{formatter.given('no_pack', True)} leaves weights as they are stored, which "
            f"{formatter.name('isq')} changes",
        ),
        (max_draft and no_kv_cache, f"{formatter.name('max_draft')} has no effect with {without_cache}"),
    ):
        if is_vain:
            raise UsageError(reason, hint="leave one of them out")
    check_kv_cache_dtype(kv_cache_dtype, formatter, precision=precision, dtype=dtype)


def check_kv_cache_dtype(kv_cache_dtype: str, formatter: ErrorFormatter, *, precision: str, dtype: str) -> None:
    """Raises ``UsageError`` for a dtype of keys and values that is coarser than what was asked for."""
    exact = "f32" if dtype == "f32" else "f16" if precision == "high" else None
    if exact is not None and kv_cache_dtype not in ("auto", exact):
        asked = formatter.given("dtype", dtype) if dtype == "f32" else formatter.given("precision", precision)
        raise UsageError(
            f"{asked} keeps keys and values in {exact}, {formatter.given('kv_cache_dtype', kv_cache_dtype)} does not",
            hint="leave one of them out",
        )


def _plain_source(choice: ModelChoice, formatter: ErrorFormatter) -> ModelSource:
    row = choice.selector
    model = choice.model_id
    if model is None:
        ordering = ordering_of(choice, formatter) if row.adapter is not None else None
        model = row.base_repo if ordering is None or ordering.base_model_id is None else ordering.base_model_id
    if not model:
        or_ordering = "" if row.adapter is None else f", or an ordering ({formatter.name('order')}) that names the base"
        raise UsageError(
            f"{row.name} needs {formatter.given('model_id', 'REPO')} or a path{or_ordering}",
            hint=formatter.call(row.name, model_id="OWNER/NAME"),
        )
    return source_at(model, None, formatter, architecture=_architecture(choice, formatter))


def _architecture(choice: ModelChoice, formatter: ErrorFormatter) -> str | None:
    if choice.arch is None:
        return choice.selector.architecture
    return check_architecture(choice.arch, formatter.name("arch"))


def _any_source(choice: ModelChoice, formatter: ErrorFormatter) -> ModelSource:
    word = choice.source or choice.filename
    if not word:
        example = formatter.call(choice.selector.name, source="OWNER/NAME")
        raise UsageError(
            f"{choice.selector.name} needs a model", hint=f"{example}, or the path of a folder or a file in its place"
        )
    return source_at(word, choice.filename if choice.source else None, formatter, gqa=choice.gqa or choice.selector.gqa)


def _file_source(choice: ModelChoice, formatter: ErrorFormatter) -> ModelSource:
    """Returns the source of one file: local if ``quantized_model_id`` is "" or a path that exists, else on the hub."""
    row, where, filename = choice.selector, choice.quantized_model_id, choice.quantized_filename
    architecture = _architecture(choice, formatter)
    if where is None and row.quantized_repo is None:
        where = ""
    if where is None and filename is not None and os.path.isfile(filename):
        local, repo = (formatter.given("quantized_model_id", each) for each in ("", row.quantized_repo))
        raise UsageError(
            f"{filename} is here, but {row.name} looks for it in {row.quantized_repo}",
            hint=f"add {local} for the local file, or {repo}",
        )
    filename = filename or row.quantized_filename
    if filename is None:
        call = (
            formatter.call("auto", source=where) if where else formatter.call(row.name, quantized_filename="model.gguf")
        )
        raise UsageError(f"{row.name} needs {formatter.given('quantized_filename', 'FILE')}", hint=call)
    gqa = choice.gqa or row.gqa
    if where == "" or (where is not None and os.path.exists(where)):
        path = Path(where) / filename if where and os.path.isdir(where) else Path(filename)
        return ModelSource(architecture, _existing(path, formatter, files_only=row.name), None, None, gqa)
    return ModelSource(architecture, None, where or row.quantized_repo, filename, gqa)


def _existing(path: Path, formatter: ErrorFormatter, *, files_only: str | None = None) -> Path:
    """Returns ``path`` if it exists. ``files_only``: the selector takes no folder."""
    if os.path.isfile(path) or (os.path.isdir(path) and files_only is None):
        return path
    names = f"{formatter.name('filename' if files_only is None else 'quantized_filename')} names the file"
    if os.path.isdir(path):
        call = formatter.call("auto", source=str(path))
        raise LoadError(f"{path} is a folder, not a file", hint=f"{names}; a folder of safetensors runs with: {call}")
    if files_only is not None:
        names += f"; {formatter.given('quantized_model_id', 'REPO')} takes one from a hub repository"
    raise LoadError(f"{path} {_absence(path)}", hint=names)


def _absence(path: Path) -> str:
    """Returns the reason why a path was not found, as the end of a sentence."""
    try:
        path.stat()
    except PermissionError:
        return "may not be read by this user"
    except OSError:
        pass
    return "does not exist"
