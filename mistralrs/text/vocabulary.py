"""A checked vocabulary: the text and kind of each token, and the special tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# Kinds of tokens, by the numbers that GGUF files use.
UNDEFINED, NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(7)

MAX_TOKENS = 1 << 22
"""Tokens of a vocabulary, at most. Larger ids are refused, because lists have an entry for each id."""

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
"""Texts of tokens by which models end an answer. Files often name only one of theirs."""
_HARMONY_ENDS = frozenset({"<|return|>", "<|call|>"})
"""Texts of the end tokens of gpt-oss, in whose answers `<|end|>` only ends one message of several."""


def _byte_letters() -> dict[str, int]:
    """The byte of each letter: printable Latin-1 stands for itself, other bytes for letters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(0x100)).difference(printable))
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


BYTE_OF_LETTER = _byte_letters()
"""The letters by which a byte-level vocabulary spells bytes."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens by id. All ids are within ``texts``."""

    texts: list[str]
    """Texts, without repetitions except the empty one, which no text is encoded to."""
    kinds: list[int]
    byte_level: bool
    """Whether normal tokens are spelled in letters that stand for bytes; else in Unicode with U+2581 for a space."""
    bos_id: int | None
    eos_id: int | None
    """The end token that chat templates get as ``eos_token``."""
    unk_id: int | None
    end_ids: frozenset[int]
    """Tokens that end an answer, ``eos_id`` among them."""
    add_bos: bool
    """Whether a text that is not a chat starts with BOS."""
    space_prefix: bool
    """Whether a space is written in front of a text, as SentencePiece does."""
    strips: Mapping[int, tuple[bool, bool]] = field(default_factory=dict)
    """Control tokens to which whitespace (before, after) them belongs; the others are not listed."""


def known_ends(texts: list[str], kinds: list[int]) -> set[int]:
    """Ids of the known end tokens. Some converters mark them as ordinary words."""
    ends = END_TEXTS
    if _HARMONY_ENDS.issubset(texts):
        ends = (ends - {"<|end|>"}) | _HARMONY_ENDS
    # In Gemma's vocabularies, which have <eos>, </s> is an HTML tag.
    as_words = ends - {"</s>"} if "<eos>" in texts else ends
    by_kind = {CONTROL: ends, USER_DEFINED: as_words}
    return {token for token, kind in enumerate(kinds) if kind in by_kind and texts[token] in by_kind[kind]}
