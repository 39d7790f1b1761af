"""A vocabulary as a checked value: what each token is, and which tokens mean something.

Knows no file format and does not tokenize.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# What a token is, by the numbers that GGUF files use.
UNDEFINED, NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(7)

END_TEXTS = frozenset(
    {
        "</s>",
        "<eos>",
        "<EOT>",
        "<end_of_turn>",
        "<end_of_utterance>",
        "<turn|>",
        "<|end|>",
        "<|end_of_text|>",
        "<|endoftext|>",
        "<|eom_id|>",
        "<|eot_id|>",
        "<|im_end|>",
        "<｜end▁of▁sentence｜>",
    }
)
"""Tokens by which models are known to end an answer. Files often name only one of theirs."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens by id. All ids are within ``texts``."""

    texts: list[str]
    """No text twice, except the empty one, which no text ever becomes."""
    kinds: list[int]
    byte_level: bool
    """Normal tokens are spelled in the letters that stand for bytes; otherwise in Unicode with U+2581 for a space."""
    bos_id: int | None
    eos_id: int | None
    """The one that a chat template writes as ``eos_token``."""
    unk_id: int | None
    end_ids: frozenset[int]
    """Tokens that end an answer, ``eos_id`` among them."""
    add_bos: bool
    """Whether a text that is not a chat starts with BOS."""
    space_prefix: bool
    """Whether a space is written in front of a text, as SentencePiece does."""
    strips: Mapping[int, tuple[bool, bool]] = field(default_factory=dict)
    """Control tokens that take the spaces (before, after) them along; the others take none."""


def known_ends(texts: list[str], kinds: list[int]) -> set[int]:
    """Ids of the tokens that are known to end answers. Careless converters call some of them words."""
    special = (CONTROL, USER_DEFINED)
    return {token for token, kind in enumerate(kinds) if kind in special and texts[token] in END_TEXTS}
