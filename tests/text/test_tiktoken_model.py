"""`tokenizer.model` in tiktoken's format: merges from ranks, special tokens from the configuration, refusals."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mistralrs.errors import LoadError
from mistralrs.text import tiktoken_model
from mistralrs.text.tokenizer import Tokenizer
from mistralrs.text.tokenizer_config import TokenizerConfig, read_tokenizer_config

TOKENS = [*(bytes([byte]) for byte in range(256)), b"ll", b"he", b"hell", b" w", b"hello", b"\xc3\xb6", b"lo"]
SPECIAL = {
    "bos_token": "<|begin_of_text|>",
    "eos_token": "<|eot_id|>",
    "added_tokens_decoder": {
        "263": {"content": "<|begin_of_text|>", "special": True},
        "264": {"content": "<|end_of_text|>", "special": True},
        "266": {"content": "<|eot_id|>", "special": True},
    },
}


def lines(tokens: Sequence[bytes] = TOKENS) -> bytes:
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


@pytest.fixture
def known_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the reader use Llama 3's pre-tokenizer for the tiny vocabulary."""
    monkeypatch.setitem(tiktoken_model.PRETOKENIZER_BY_SIZE, len(TOKENS), "llama-bpe")


def load(tmp_path: Path, data: bytes, config: dict[str, Any] = SPECIAL) -> Tokenizer:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(data)
    return Tokenizer.from_model(path, read_tokenizer_config(config))


@pytest.mark.usefixtures("known_size")
def test_the_lowest_rank_merges_first(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, lines())
    # "ll" merges before "lo".
    assert tokenizer.encode("hello", special=False) == [260]
    assert tokenizer.encode("ahello", special=False) == [97, 260]
    assert tokenizer.encode("llo", special=False) == [256, 111]
    assert tokenizer.encode("wö w", special=False) == [119, 261, 259]
    assert tokenizer.decode([260, 259, 261, 0x0A]) == "hello wö\n"


@pytest.mark.usefixtures("known_size")
def test_special_tokens_come_from_the_configuration(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, lines())
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.eos_ids) == (267, 263, 266, {264, 266})
    assert tokenizer.add_bos
    assert tokenizer.encode("<|eot_id|>", special=True) == [266]
    assert 266 not in tokenizer.encode("<|eot_id|>", special=False)
    assert tokenizer.token_text(265) == ""
    assert not load(tmp_path, lines(), {**SPECIAL, "add_bos_token": False}).add_bos


REFUSED: list[tuple[str, bytes, dict[str, Any]]] = [
    ("has no special tokens", lines(), {}),
    ("has the id of another one, 3", lines(), {"added_tokens_decoder": {"3": {"content": "x"}, "300": "y"}}),
    ("an added token has the text of another one", lines(), {"added_tokens_decoder": {"263": "x", "264": "x"}}),
    ("does not have a token for every byte", b"IQ== 0\n", SPECIAL),
    ("line 2: expected base64", b"IQ== 0\nnonsense\n", SPECIAL),
    ("line 2: expected base64", b"IQ== 0\n\nIg== 1\n", SPECIAL),
    ("line 2: .*padding", b"IQ== 0\nIQ= 1\n", SPECIAL),
    ("a rank twice", lines() + b"eHk= 0\n", SPECIAL),
    ("ranks with gaps", lines() + b"eHk= 300\n", SPECIAL),
    ("the same token twice", lines() + b"aGU= 263\n", SPECIAL),
    ("a token that is empty or too long", lines([*TOKENS, b"x" * 513]), SPECIAL),
    ("does not have a token for every byte", lines(TOKENS[1:]), SPECIAL),
]


@pytest.mark.usefixtures("known_size")
@pytest.mark.parametrize(("reason", "data", "config"), REFUSED, ids=[f"{i}" for i in range(len(REFUSED))])
def test_unusable_files_are_refused_by_name(reason: str, data: bytes, config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=reason) as caught:
        load(tmp_path, data, config)
    assert "tokenizer.model" in caught.value.message
    assert "tokenizer.json" in str(caught.value.hint)


def test_a_vocabulary_of_an_unknown_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="has 263 tokens in tiktoken's format; known vocabularies: 128000"):
        load(tmp_path, lines())


def test_empty_data_is_refused() -> None:
    with pytest.raises(LoadError, match="every byte"):
        tiktoken_model.read_tiktoken_vocabulary(b"", "tokenizer.model", TokenizerConfig())
