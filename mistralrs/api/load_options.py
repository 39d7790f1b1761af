"""A model's files and the options of loading it, as plain values. Can be pickled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mistralrs.api.loaded_adapters.adapter_options import NO_ADAPTERS, AdapterOptions
from mistralrs.api.options.declarations import DEFAULTS
from mistralrs.api.options.kv_flags import KvCacheDtype


@dataclass(frozen=True, slots=True)
class ModelSource:
    """The files of a model."""

    architecture: str | None
    """The architecture that they must hold, a name of ``models.registry.ARCHITECTURES``; None: any."""
    path: Path | None
    """A local file or folder, or"""
    repo: str | None
    """a hub repository, perhaps with ``@revision``, and"""
    filename: str | None
    """the file in it; None: the whole model."""
    gqa: int = 1
    """Query heads that share a KV head, a number that GGML files lack."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """The settings of loading."""

    max_seqs: int = DEFAULTS.max_seqs
    max_queue: int | None = None
    """Requests that may wait beside those that run; None: any number."""
    prefix_cache_n: int = DEFAULTS.prefix_cache_n
    kv_memory: int | None = DEFAULTS.kv_memory
    """Bytes of the KV cache at most; None: half of what the weights leave."""
    kv_cache_dtype: KvCacheDtype = DEFAULTS.kv_cache_dtype
    """The type of keys and values in it; ``auto``: 16 bits, those with which attention is fastest here."""
    kv_dir: Path | None = DEFAULTS.kv_dir
    """A folder in which KV outlives the process; None: it does not."""
    kv_dir_bytes: int = DEFAULTS.kv_dir_size
    """The most bytes that this folder may hold."""
    max_model_len: int | None = DEFAULTS.max_model_len
    """Tokens of context at most; None: those that the model was made for."""
    no_kv_cache: bool = DEFAULTS.no_kv_cache
    max_draft: int | None = DEFAULTS.max_draft
    """Draft tokens of one sequence in a step, at most; 0: none; None: some, where they cannot change an answer."""
    draft_model: ModelSource | None = None
    """A smaller model with the same vocabulary, which proposes draft tokens; None: the text so far alone does."""
    chat_template: str | None = None
    """Jinja text, or a path that ends in .json or .jinja; replaces the model's own template."""
    tokenizer_json: Path | None = None
    """A file that replaces the model's own tokenizer."""
    tok_model_id: str | None = None
    """A hub repository or folder whose tokenizer and template are used."""
    token_source: str = DEFAULTS.token_source
    precision: Literal["fast", "default", "high"] = DEFAULTS.precision
    """``high``: activations in two int8 terms everywhere, close to float32; ``fast``: in two for few outliers alone."""
    threads: int | None = DEFAULTS.threads
    """None: as many as there are physical cores."""
    isa: str | None = None
    """An instruction set of the kernels, or ``torch`` for none; None: the best that was measured."""
    max_batch_tokens: int = 512
    dtype: Literal["auto", "bf16", "f16", "f32"] = DEFAULTS.dtype
    """The type of weights that are stored as floats; ``auto``: as they are stored."""
    isq: str | None = DEFAULTS.isq
    """The type to quantize safetensors to while they are loaded, a key of ``quant.quantize.ISQ_TYPES``."""
    no_pack: bool = DEFAULTS.no_pack
    """Weights stay in the mapped file, which must not change meanwhile; the results are the same."""
    adapters: AdapterOptions = NO_ADAPTERS
    plugin: Path | None = DEFAULTS.plugin
    """A Python file of hooks that requests may name."""
