"""Divides a budget of bytes among the KV blocks of all groups, and names one that is too small."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter

from mistralrs.errors import LoadError
from mistralrs.models.spec import DecoderSpec
from mistralrs.ops.backend import KvDtype, kv_head_bytes
from mistralrs.ops.kv_groups import KvGroup, max_blocks_per_seq


def kv_groups(
    spec: DecoderSpec, budget: int, *, dtype: KvDtype, max_seqs: int, step: int, block_size: int, caches: int = 1
) -> tuple[KvGroup, ...]:
    """The groups of ``spec.windows`` with as many blocks as ``budget`` bytes allow, perhaps none.

    A group without a window can use the whole context of ``max_seqs`` sequences; a group with a window the blocks that
    ``max_seqs`` sequences have in use while they compute ``step`` tokens at once. Beside full layers, windows get at
    most half of the budget unless one sequence needs more, because otherwise long contexts would lose blocks to
    sequences that may never run at once. ``dtype``: of keys and values. ``caches``: KV caches that have all
    these blocks.
    """
    head_bytes = kv_head_bytes(spec.attention.head_dim, dtype)
    layers = Counter(layer.window for layer in spec.layers)
    block_bytes = {
        window: caches * layers[window] * spec.attention.kv_heads * 2 * head_bytes * block_size
        for window in spec.windows
    }
    alone = {
        window: max_blocks_per_seq(spec.max_position, window=window, step=step, block_size=block_size)
        for window in spec.windows
    }
    useful = {window: alone[window] * max_seqs for window in spec.windows}
    if 0 in layers:
        sliding = sum(block_bytes[window] * alone[window] for window in spec.windows if window)
        for window in filter(None, spec.windows):
            useful[window] = max(alone[window], min(useful[window], alone[window] * (budget // 2) // sliding))

    def cost(blocks: int) -> int:
        """Bytes if every group has ``blocks`` blocks, or as many as it can use."""
        return sum(block_bytes[window] * min(blocks, useful[window]) for window in spec.windows)

    blocks = bisect_right(range(1, max(useful.values()) + 1), budget, key=cost)
    return tuple(KvGroup(min(blocks, useful[window]), window) for window in spec.windows)


def does_not_fit(weights: int, adapters: int, free: int, *, draft: int, is_copied: bool) -> LoadError:
    """Returns the error for a model that takes more bytes than are free."""
    hint = "use a smaller model or stronger quantization, or close other programs"
    if is_copied:
        hint += ", or leave the weights in their file (--no-pack), which is slower"
    taken = f"the weights take {weights / 2**30:.1f} GiB"
    if adapters:
        hint = "lower --max-adapters, --max-adapter-rank or --max-adapter-bytes, load fewer adapters, or " + hint
        taken += f" and the adapters {adapters / 2**30:.1f} GiB"
    if draft:
        hint = "leave out --draft-model, or " + hint
        taken += f" and the draft model {draft / 2**30:.1f} GiB"
    return LoadError(f"{taken}, {free / 2**30:.1f} GiB of memory are free", hint=hint)
