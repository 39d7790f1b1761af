"""A draft model before it is loaded: its memory, and whether it has the target's tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mistralrs.errors import LoadError
from mistralrs.loading.kv_dtype import kv_token_bytes
from mistralrs.models.spec import DecoderSpec
from mistralrs.ops.backend import KvDtype
from mistralrs.text.tokenizer import Tokenizer

MAX_SEQS = 8
"""Sequences that a draft model drafts for at once; steps with more have no draft tokens."""
MAX_STEP = 128
"""Tokens of one of its steps, at most."""
_HINT = "draft models need the vocabulary of the model; choose a smaller one of the same family"


@dataclass(frozen=True, slots=True)
class DraftNeeds:
    """What a draft model takes beside its target."""

    path: Path
    spec: DecoderSpec
    tokenizer: Tokenizer
    weights: int
    """Bytes of its weights."""
    kv_dtype: KvDtype
    """The dtype of its KV."""

    def kv_share(self, budget: int, target: DecoderSpec, *, kv_dtype: KvDtype) -> int:
        """Bytes for its KV of the ``budget`` for both: as many tokens as the target's, no more than it can use."""
        own, other = kv_token_bytes(self.spec, self.kv_dtype), kv_token_bytes(target, kv_dtype)
        return max(min(budget * own // (own + other), MAX_SEQS * self.context(target) * own), 0)

    def context(self, target: DecoderSpec) -> int:
        """Tokens of its context that can be of use."""
        return min(self.spec.max_position, target.max_position)

    def check_tokens(self, path: Path, tokenizer: Tokenizer, spec: DecoderSpec) -> None:
        """Raises ``LoadError`` unless the target at ``path`` has the same tokens under the same ids."""
        size = min(tokenizer.vocab_size, spec.vocab_size)
        place = tokenizer.first_difference(self.tokenizer, size)
        if place is not None:
            named = " and ".join(
                f"{of.token_text(place)!r} in {where}" if of.token_text(place) else f"missing in {where}"
                for of, where in ((self.tokenizer, self.path), (tokenizer, path))
            )
            raise LoadError(f"{self.path} has another vocabulary: token {place} is {named}", hint=_HINT)
