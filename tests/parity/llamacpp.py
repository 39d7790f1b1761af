"""The inputs of llama.cpp's golden logits: files, tokens and positions, shared by the script that writes them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import gguf

from tests.gguf_of import PLAIN, Layout, write_gguf
from tests.parity.running import random_tokens
from tests.tiny import TOKENIZER_SIZE

IGNORED_WINDOWS = frozenset({"mistral", "phi3"})
"""Variants whose sliding window llama.cpp ignores. `transformers` is the reference, so these files have no window."""

# Of the keys of YaRN, llama.cpp reads yarn_beta_fast and yarn_beta_slow of Ministral alone. Other variants must have
# numbers that come to the same as the usual ones; for the rest `transformers` says what is right.

GOLDEN = Path(__file__).parent / "golden"
TOKENS = random_tokens(TOKENIZER_SIZE, 48, seed=7)
MIDDLE, LAST = 17, 47
"""Positions within and past the sliding window."""


@dataclass(frozen=True, slots=True)
class Case:
    """One file of a variant, and the path of its logits."""

    name: str
    type: str
    positions: tuple[int, ...] = (LAST,)
    layout: Layout = PLAIN
    variants: frozenset[str] | None = None
    """The variants that have it; None: all."""

    def write(self, path: Path, name: str, folder: Path) -> Path:
        """Writes the file of variant ``name``."""
        layout = replace(self.layout, window=name not in IGNORED_WINDOWS)
        return write_gguf(path, folder, type_=self.type, layout=layout)


CASES = (
    Case("F32", "F32", (MIDDLE, LAST)),
    Case("F16", "F16"),
    Case("Q8_0", "Q8_0"),
    Case("F32 fused", "F32", layout=Layout(fused_qkv=True), variants=frozenset({"phi2"})),
)


def digest(path: Path) -> str:
    """Returns a hash of all tensors of a file, to detect golden logits of other weights."""
    total = hashlib.sha256()
    for tensor in sorted(gguf.GGUFReader(path).tensors, key=lambda tensor: tensor.name):
        total.update(f"{tensor.name} {tensor.tensor_type.name} {tensor.shape.tolist()}".encode())
        total.update(tensor.data.tobytes())
    return total.hexdigest()[:16]
