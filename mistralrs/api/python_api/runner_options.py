"""The options of a ``Runner``: their types, and their checks before anything is read."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

from mistralrs.api.load_options import LoadOptions
from mistralrs.api.loaded_adapters.adapter_options import AdapterOptions
from mistralrs.api.options.declarations import DECLARED, DEFAULTS, types
from mistralrs.api.options.kv_flags import KvCacheDtype
from mistralrs.api.options.values import without_none
from mistralrs.api.selectors.model_choice import ModelChoice, check_together, in_situ_type, source_at, template_of
from mistralrs.api.selectors.named_adapters import find_adapters
from mistralrs.api.selectors.which import Which
from mistralrs.api.selectors.which_fields import PythonErrorFormatter
from mistralrs.errors import UsageError

FORMATTER = PythonErrorFormatter()
_CHECKED = (
    *("max_seqs", "prefix_cache_n", "threads", "kv_memory", "max_draft", "max_model_len", "precision", "dtype"),
    *("no_kv_cache", "token_source", "no_pack", "kv_cache_dtype"),
)
"""Options of loading that ``_check`` reads, in its order; ``declarations`` has their ranges."""
_DEVICE_LAYERS = re.compile(r"\d+:(\d+)")


class RunnerOptions(TypedDict, total=False):
    """The options of a ``Runner`` by name; those that are left out have its defaults."""

    max_seqs: int
    no_kv_cache: bool
    prefix_cache_n: int
    token_source: str
    chat_template: str | os.PathLike[str] | None
    num_device_layers: int | Sequence[str] | None
    in_situ_quant: str | None
    precision: Literal["fast", "default", "high"]
    dtype: Literal["auto", "bf16", "f16", "f32"]
    threads: int | None
    kv_memory: int | None
    kv_cache_dtype: KvCacheDtype
    kv_dir: str | os.PathLike[str] | None
    max_draft: int | None
    draft_model: str | os.PathLike[str] | None
    max_model_len: int | None
    no_pack: bool
    merge: bool | None
    max_adapters: int | None


class TokenizeOptions(TypedDict, total=False):
    """The options of ``Runner.tokenize``."""

    add_special_tokens: bool | None
    parse_special: bool | None
    add_generation_prompt: bool | None
    continue_final_message: bool | None
    chat_template_kwargs: Mapping[str, Any] | None


def check_types(which: object, in_situ_quant: object) -> None:
    """Raises TypeError."""
    if not isinstance(which, Which):
        raise TypeError(f"which must be a row of Which, not {type(which).__name__}")
    if not isinstance(in_situ_quant, str | None):
        raise TypeError(f"in_situ_quant must be str | None, not {type(in_situ_quant).__name__}")


def load_options(which: Which, options: RunnerOptions) -> LoadOptions:
    """Returns the options of loading; ``options`` has all of them. Raises TypeError, ``UsageError`` and, for an
    adapter that is not there, ``LoadError``."""
    _check_device_layers(options["num_device_layers"])
    choice = which.choice()
    _check_draft_model(options["draft_model"])
    template, kv_dir, draft = options["chat_template"], options["kv_dir"], options["draft_model"]
    loading = LoadOptions(
        max_seqs=options["max_seqs"],
        prefix_cache_n=options["prefix_cache_n"],
        kv_memory=options["kv_memory"],
        kv_cache_dtype=options["kv_cache_dtype"],
        kv_dir=None if kv_dir is None else Path(kv_dir),
        no_kv_cache=options["no_kv_cache"],
        max_draft=options["max_draft"],
        draft_model=None if draft is None else source_at(os.fspath(draft), None, FORMATTER),
        max_model_len=options["max_model_len"],
        chat_template=template_of(choice) if template is None else os.fspath(template),
        tokenizer_json=choice.tokenizer_json,
        tok_model_id=choice.tok_model_id,
        token_source=options["token_source"],
        precision=options["precision"],
        threads=options["threads"],
        dtype=options["dtype"],
        isq=in_situ_type(options["in_situ_quant"], choice.selector, FORMATTER),
        no_pack=options["no_pack"],
        adapters=_adapters(choice, options["merge"], options["max_adapters"]),
    )
    _check(loading)
    return loading


def _check_draft_model(value: object) -> None:
    if not isinstance(value, str | os.PathLike | None):
        raise TypeError(f"draft_model must be a path or a repository, not {type(value).__name__}")


def _check_device_layers(value: int | Sequence[str] | None) -> None:
    """Raises TypeError and ``UsageError`` for layers on an accelerator, because all layers are computed on the CPU.

    ``value``: a number of layers, or ``ORDINAL:NUMBER`` for each of several devices.
    """
    if value is None:
        return
    if isinstance(value, int) and not isinstance(value, bool):
        layers = [value]
    elif isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(each, str) for each in value):
        found = [_DEVICE_LAYERS.fullmatch(each.strip()) for each in value]
        layers = [-1 if match is None else int(match[1]) for match in found]
    else:
        raise TypeError("num_device_layers must be a whole number or a list of texts such as '0:16'")
    if any(number < 0 for number in layers):
        raise UsageError(f"num_device_layers is {value!r}", hint="write a number from 0 on, or a list such as ['0:16']")
    if any(layers):
        raise UsageError(
            f"num_device_layers={value!r} puts layers on an accelerator, and this machine's CPU computes all of them",
            hint="leave it out, or give 0",
        )


def _adapters(choice: ModelChoice, merge: bool | None, max_adapters: int | None) -> AdapterOptions:
    """Returns the adapters of a runner. Others may come later if it has room that was asked for."""
    _check_one("merge", merge)
    _check_one("max_adapters", max_adapters)
    options = replace(DEFAULTS, merge=merge, max_adapters=max_adapters)
    return find_adapters(choice, FORMATTER, options=options, more_may_come=max_adapters is not None)


def _check(options: LoadOptions) -> None:
    """Raises TypeError and ``UsageError`` for options that are invalid by themselves or in combination."""
    for name in _CHECKED:
        _check_one(name, getattr(options, name))
    check_together(
        kv_dir=options.kv_dir is not None,
        no_kv_cache=options.no_kv_cache,
        prefix_cache_n=options.prefix_cache_n,
        max_draft=options.max_draft,
        draft_model=options.draft_model is not None,
        no_pack=options.no_pack,
        isq=options.isq,
        kv_cache_dtype=options.kv_cache_dtype,
        precision=options.precision,
        dtype=options.dtype,
        formatter=FORMATTER,
    )


def _check_one(name: str, value: object) -> None:
    declared, hint = DECLARED[name], without_none(types()[name])
    if value is None and getattr(DEFAULTS, name) is None:
        return
    if words := get_args(hint):
        if value not in words:
            raise UsageError(f"{name} is {value!r}", hint=f"choose one of: {', '.join(words)}")
    elif not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        kind = "a whole number" if hint is int else hint.__name__
        raise TypeError(f"{name} must be {kind}, not {type(value).__name__}")
    elif isinstance(value, int) and declared.least is not None and value < declared.least:
        raise UsageError(f"{name} is {value}", hint=f"it must be at least {declared.least:g}")
    elif isinstance(value, int) and declared.most is not None and value > declared.most:
        raise UsageError(f"{name} is {value}", hint=f"it must be at most {declared.most:g}")
