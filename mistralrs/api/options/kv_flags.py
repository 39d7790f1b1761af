"""The options of the KV cache's memory: how much, in which type, and what is kept of it."""

# ruff: noqa: RUF009  (``option`` makes a dataclass field, as ``field`` does)

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mistralrs.api.options.adapter_flags import AdapterFlags
from mistralrs.api.options.option import RUN, TALK, Mode, option

KvCacheDtype = Literal["auto", "f16", "bf16", "q8_0"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KvFlags(AdapterFlags):
    """The part of ``Options`` that is about the memory of the KV cache."""

    kv_memory: int | None = option(
        None,
        "--kv-memory",
        metavar="SIZE",
        is_size=True,
        least=1,
        modes=RUN,
        shown_default="half of what weights and adapters leave",
        help="Memory of the KV cache at most, such as 512M or 4G.",
    )
    kv_cache_dtype: KvCacheDtype = option(
        "auto",
        "--kv-cache-dtype",
        metavar="auto|f16|bf16|q8_0",
        modes=RUN | {Mode.INSPECT, Mode.TUNE},
        help="Type of keys and values in the KV cache; auto: the 16 bits with which attention is fastest here; "
        "q8_0: 56 % of the memory, and faster answers after long texts.",
    )
    kv_dir: Path | None = option(
        None,
        "--kv-dir",
        metavar="FOLDER",
        modes=TALK,
        shown_default="none; a chat's is in the user's cache",
        help="Keep the KV of prompts in this folder, for the next start.",
    )
    kv_dir_size: int = option(
        8 << 30,
        "--kv-dir-size",
        metavar="SIZE",
        is_size=True,
        least=1,
        modes=TALK,
        shown_default="8G; a chat's own folder: 2G",
        help="Size of --kv-dir, at most.",
    )
