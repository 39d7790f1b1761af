"""A vocabulary as a checked value: what each token is, and which tokens mean something.

Knows no file format and does not tokenize.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# What a token is, by the numbers that GGUF files use.
UNDEFINED, NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(7)

MAX_TOKENS = 1 << 22
"""An id beyond is refused: a vocabulary is a list with an entry for each id."""

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


def _byte_letters() -> dict[str, int]:
    """Printable Latin-1 stands for itself, other bytes for U+0100 onward."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(0x100)).difference(printable))
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


BYTE_OF_LETTER = _byte_letters()
"""How a byte-level vocabulary spells bytes."""


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
    # In Gemma's vocabularies, which have <eos>, the word </s> is a tag of HTML.
    as_words = END_TEXTS - {"</s>"} if "<eos>" in texts else END_TEXTS
    by_kind = {CONTROL: END_TEXTS, USER_DEFINED: as_words}
    return {token for token, kind in enumerate(kinds) if kind in by_kind and texts[token] in by_kind[kind]}
