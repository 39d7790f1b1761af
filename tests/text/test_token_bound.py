"""No text has fewer tokens than the bound, for any vocabulary; texts that cannot fit are far above it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from mistralrs.errors import ContextLengthError
from mistralrs.loading.gguf_file import GgufFile
from mistralrs.text import prompt_tokens as module
from mistralrs.text.prompt_tokens import SEAM, Room, check_texts, prompt_tokens
from mistralrs.text.tokenizer import Tokenizer
from mistralrs.text.tokenizer_config import TokenizerConfig
from tests.text.sentencepiece_bytes import model
from tests.text.vocabularies import byte_level, fetched, sentence_piece

ANY = 10**12
NFC = {"type": "NFC"}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}


def changed(gguf: dict[str, object], decoder: str, **fields: Any) -> Tokenizer:
    """As JSON, with other parts."""
    own = json.loads(Tokenizer.from_gguf(gguf)._backend.to_str())
    own["decoder"] = {"type": decoder, "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    return Tokenizer.from_json(json.dumps({**own, **fields}))


def stripping() -> Tokenizer:
    own = json.loads(Tokenizer.from_gguf(byte_level())._backend.to_str())["added_tokens"]
    return changed(byte_level(), "ByteLevel", added_tokens=[{**token, "lstrip": True, "rstrip": True} for token in own])


def squeezing(tmp_path: Path) -> Tokenizer:
    (tmp_path / "tokenizer.model").write_bytes(model())
    return Tokenizer.from_model(tmp_path / "tokenizer.model", TokenizerConfig())


MADE: dict[str, Callable[[], Tokenizer]] = {
    "byte level": lambda: Tokenizer.from_gguf(byte_level()),
    "pieces": lambda: Tokenizer.from_gguf(sentence_piece()),
    "pieces without bytes": lambda: Tokenizer.from_gguf(
        sentence_piece(token_type=[2, 3, 3] + [1] * 256 + [1] * 14 + [4])
    ),
    "composing": lambda: changed(byte_level(), "ByteLevel", normalizer=NFC),
    "stripping": stripping,
    "metaspace": lambda: changed(sentence_piece(), "ByteFallback", normalizer=None, pre_tokenizer=METASPACE),
    "lowercase": lambda: changed(byte_level(), "ByteLevel", normalizer={"type": "Lowercase"}),
    "compatible": lambda: changed(byte_level(), "ByteLevel", normalizer={"type": "NFKC"}),
}
FETCHED = [
    "aquila", "baichuan", "command-r", "deepseek-coder", "deepseek-llm", "falcon", "gpt-2", "gpt-neox", "llama-bpe",
    "llama-spm", "mpt", "phi-3", "qwen2", "qwen35", "refact", "starcoder",
]  # fmt: skip


@cache
def tokenizer(name: str) -> Tokenizer:
    if name in MADE:
        return MADE[name]()
    with GgufFile.open(fetched(f"ggml-vocab-{name}.gguf")) as file:
        return Tokenizer.from_gguf(file.metadata)


def hostile_texts(tokenizer: Tokenizer, count: int) -> Iterator[str]:
    """Texts of few tokens and many bytes, of long tokens and odd characters, in every mixture."""
    dice = random.Random(9)
    every = sorted((tokenizer.token_text(token) for token in range(tokenizer.vocab_size)), key=len)
    sources: list[Callable[[], str]] = [
        lambda: dice.choice(every[-300:]),
        lambda: dice.choice(every),
        lambda: chr(dice.randrange(dice.choice([128, 0x3000, 0xD800, 0x110000]))),
        lambda: " " * dice.randrange(200),
        lambda: dice.choice("=-*/# \n\t_") * dice.randrange(150),
        lambda: dice.choice(["\ud800", "▁", "▁" * 9, "e\u0301", "<\u0338", "u\u0344", "\u212a", "\u037e", "\u1fef"]),
        lambda: dice.choice(["\u1112\u1161\u11ab", "한글", "中文字符", "が", "か\u3099", "①", "𝐚\u0302\u0301", "ﷺ"]),
        lambda: dice.choice(["<|im_end|>", "</s>", "<unk>", "<0x41>", " <s> ", "<|im_end|>   \n\n\u3000  "]),
        lambda: dice.choice(["the", " international", "hello", "İSTANBUL", "1234567890"]),
    ]
    for _ in range(count):
        mixture = dice.sample(sources, dice.randrange(1, 4))
        yield "".join(dice.choice(mixture)() for _ in range(dice.randrange(1, 60)))


@pytest.mark.parametrize("name", [*MADE, *FETCHED])
def test_no_text_has_fewer_tokens(name: str) -> None:
    ours = tokenizer(name)
    for text in hostile_texts(ours, 150):
        for special in (False, True):
            assert ours.least_tokens(text, special=special, enough=ANY) <= len(ours.encode(text, special=special)), text


def test_no_text_has_fewer_tokens_where_spaces_are_squeezed(tmp_path: Path) -> None:
    ours = squeezing(tmp_path)
    for text in hostile_texts(ours, 150):
        assert ours.least_tokens(text, special=False, enough=ANY) <= len(ours.encode(text, special=False)), text


@pytest.mark.parametrize("name", ["byte level", "pieces", "composing", "metaspace", *FETCHED])
def test_a_long_text_has_many(name: str) -> None:
    for text in ("7" * 4_000_000, "All the world's a stage. " * 160_000, "漢字" * 700_000):
        least = tokenizer(name).least_tokens(text, special=True, enough=ANY)
        assert least > 8192 or not text.isascii()
        assert tokenizer(name).least_tokens(text, special=True, enough=1000) <= least


@pytest.mark.parametrize("name", ["lowercase", "compatible"])
def test_the_bound_is_zero_for_unknown_components(name: str) -> None:
    assert tokenizer(name).least_tokens("7" * 4_000_000, special=True, enough=ANY) == 0
    assert tokenizer(name).tail("7" * 1000, special=True, tokens=1) == "7" * 1000


# prompts


@pytest.fixture(autouse=True)
def asking_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHORT", 0)


@pytest.mark.parametrize("name", ["byte level", "pieces"])
def test_a_prompt_that_cannot_fit_is_refused_untokenized(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tokenizer, "encode", None)
    for pieces in ([("7" * 5000, True)], [("7" * 50, False)] * 100):
        with pytest.raises(ContextLengthError, match=r"length is 300 tokens.*at least \d{3,4} tokens"):
            prompt_tokens(tokenizer(name), pieces, room=Room(300, truncate=False))


def test_a_conversation_that_cannot_fit_is_not_rendered() -> None:
    ours = tokenizer("byte level")
    for texts in (["7" * 5000], ["7" * 100] * 50):
        with pytest.raises(ContextLengthError, match=r"at least \d{4} tokens"):
            check_texts(ours, texts, Room(300, truncate=False))
        check_texts(ours, texts, Room(300, truncate=True))
    check_texts(ours, ["7" * 1000], Room(300, truncate=False))  # a template may shorten it


@pytest.mark.parametrize("name", ["byte level", "pieces"])
@pytest.mark.parametrize("parts", [1, 7])
def test_truncation_keeps_the_end_of_a_prompt(name: str, parts: int) -> None:
    dice = random.Random(3)
    pieces = [("".join(dice.choice(["hello ", "7", "the", "wö", " "]) for _ in range(200_000 // parts)), False)] * parts
    whole = prompt_tokens(tokenizer(name), pieces)
    cut = prompt_tokens(tokenizer(name), pieces, room=Room(300, truncate=True))
    assert whole.dropped == 0
    assert 300 < len(cut.ids) < len(whole.ids) / 2
    assert cut.ids[-300:] == whole.ids[-300:]
    assert len(whole.ids) / 20 < cut.dropped <= len(whole.ids) - len(cut.ids) + SEAM


def test_bos_is_not_put_in_front_of_a_truncated_prompt() -> None:
    pieces = [("hello " * 100_000, False)]
    ours = tokenizer("pieces")
    assert prompt_tokens(ours, pieces, bos=True).ids[0] == ours.bos_id
    assert prompt_tokens(ours, pieces, room=Room(300, truncate=True), bos=True).ids[0] != ours.bos_id


def test_a_prompt_that_fits_is_unchanged() -> None:
    for room in (None, Room(300, truncate=True), Room(300, truncate=False)):
        pieces = [("hello <|im_end|>", False), ("<|im_end|>", True), ("", False)]
        ours = tokenizer("byte level")
        expected = (*ours.encode("hello <|im_end|>", special=False), 2)
        assert prompt_tokens(ours, pieces, room=room).ids == expected
