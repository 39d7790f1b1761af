"""The dtype of a model's KV cache, and the bytes that a token takes in it."""

from __future__ import annotations

from typing import Literal

from mistralrs.models.decoder import PRECISIONS
from mistralrs.models.spec import DecoderSpec
from mistralrs.ops.backend import Backend, KvDtype, check_kv_dtype, kv_head_bytes

ChosenKvDtype = KvDtype | Literal["auto"]
"""``auto``: that of the precision."""


def kv_dtype(chosen: ChosenKvDtype, spec: DecoderSpec, backend: Backend, *, precision: str) -> KvDtype:
    """Returns the dtype of keys and values. ``precision``: a key of ``models.decoder.PRECISIONS``.

    Raises ``LoadError`` for one that cannot hold the heads of ``spec``.
    """
    if chosen != "auto":
        check_kv_dtype(spec.attention.head_dim, chosen)
        return chosen
    default = PRECISIONS[precision].kv_dtype
    return backend.half_kv if default == "half" else default


def kv_token_bytes(spec: DecoderSpec, dtype: KvDtype) -> int:
    """Returns the bytes of one token's KV in all layers."""
    return len(spec.layers) * spec.attention.kv_heads * 2 * kv_head_bytes(spec.attention.head_dim, dtype)
