"""Writes the bytes of SentencePiece models, valid and invalid ones."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from tests.text.vocabularies import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED

Piece = tuple[str, float, int]

PIECES: list[Piece] = [
    ("<unk>", 0.0, UNKNOWN),
    ("<s>", 0.0, CONTROL),
    ("</s>", 0.0, CONTROL),
    *((f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)),
    *((text, -float(i), NORMAL) for i, text in enumerate(("▁", "h", "e", "l", "o", "w", "ll", "he", "hell", "hello"))),
    ("▁hello", -20.0, NORMAL),
    ("[INST]", 0.0, USER_DEFINED),
]
BPE, UNIGRAM = 2, 1


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    low = bytearray()
    while value > 0x7F:
        low.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*low, value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def chunk(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


def piece(text: str, score: float, kind: int) -> bytes:
    body = chunk(1, text.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score)
    return chunk(1, body + number(3, kind))


def trainer(*, model_type: int = BPE, byte_fallback: bool = True, more: bytes = b"") -> bytes:
    return chunk(2, number(3, model_type) + number(35, byte_fallback) + number(43, -1) + more)


def normalizer(*, prefix: bool = True, squeeze: bool = False, more: bytes = b"") -> bytes:
    return chunk(3, chunk(1, b"identity") + number(3, prefix) + number(4, squeeze) + more)


def model(pieces: Sequence[Piece] = PIECES, *settings: bytes) -> bytes:
    """Returns a whole file; the settings are those of Llama 2 by default."""
    return b"".join(piece(*each) for each in pieces) + b"".join(settings or (trainer(), normalizer()))
