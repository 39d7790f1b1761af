"""Vocabularies for the tests of this folder: tiny ones as GGUF metadata, and llama.cpp's if they are fetched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

FETCHED = Path(os.environ.get("MISTRALRS_TEST_VOCABULARIES", Path(__file__).parents[2] / ".fixtures" / "vocabularies"))


def fetched(name: str) -> Path:
    """Returns a file of the fetched folder; the test is skipped without it."""
    path = FETCHED / name
    if not path.is_file():
        pytest.skip(f"{name} is not here; to get it: make fixtures")
    return path


def byte_letters() -> list[str]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in printable] + [chr(0x100 + i) for i in range(0x100 - len(printable))]


def byte_level(**changes: object) -> dict[str, object]:
    """Returns four control tokens, all bytes, a few merges. ``changes`` replace keys of the tokenizer; None removes."""
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>"]
    merged = ["he", "ll", "hell", "Ġw"]
    tokens = [*control, *byte_letters(), *merged, "[PAD]"]
    section = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": [CONTROL] * 4 + [NORMAL] * (len(tokens) - 5) + [UNUSED],
        "merges": ["h e", "l l", "he ll", "Ġ w"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
    return _metadata(section, changes)


def sentence_piece(**changes: object) -> dict[str, object]:
    """Returns a vocabulary like Llama's: <unk>, <s>, </s>, all bytes, and pieces whose scores fall with their ids."""
    pieces = ["▁", "h", "e", "l", "o", "w", "ll", "he", "hell", "hello", "▁hello", "▁w", "▁wo", "ö"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, "[INST]"]
    section = {
        "model": "llama",
        "tokens": tokens,
        "scores": [0.0] * 259 + [-float(i) for i in range(len(pieces))] + [0.0],
        "token_type": [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(pieces) + [USER_DEFINED],
    }
    return _metadata(section, changes)


def _metadata(section: dict[str, object], changes: dict[str, object]) -> dict[str, object]:
    changed = {**section, **changes}
    return {f"tokenizer.ggml.{key}": value for key, value in changed.items() if value is not None}
