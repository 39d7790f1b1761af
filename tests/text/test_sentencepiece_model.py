"""`tokenizer.model`: ids equal SentencePiece's, and broken or unsupported files are refused by name."""

from __future__ import annotations

import base64
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistralrs.errors import LoadError
from mistralrs.text.sentencepiece_model import read_sentencepiece_vocabulary
from mistralrs.text.tokenizer import Tokenizer
from mistralrs.text.tokenizer_config import AddedToken, TokenizerConfig
from tests.text.sentencepiece_bytes import PIECES, UNIGRAM, chunk, model, normalizer, number, piece, trainer, varint
from tests.text.vocabularies import BYTE, CONTROL, NORMAL, UNKNOWN, fetched, sentence_piece

GOLDEN: dict[str, Any] = json.loads(Path(__file__).with_name("sentencepiece_tokens.json").read_text(encoding="utf-8"))


def load(data: bytes, **config: Any) -> Tokenizer:
    return Tokenizer(*read_sentencepiece_vocabulary(data, "tokenizer.model", TokenizerConfig(**config)))


@cache
def golden(name: str) -> Tokenizer:
    return load(base64.b64decode(GOLDEN[name]["model"]))


# ids


@pytest.mark.parametrize("name", [name for name, entry in GOLDEN.items() if "model" in entry])
def test_ids_equal_sentencepiece(name: str) -> None:
    assert len(GOLDEN[name]["rows"]) >= 60
    for text, ids in GOLDEN[name]["rows"]:
        assert golden(name).encode(text, special=False) == ids, text


@pytest.mark.parametrize("name", [name for name, entry in GOLDEN.items() if "model" not in entry])
def test_ids_of_mistrals_vocabularies_equal_sentencepiece(name: str) -> None:
    tokenizer = Tokenizer.from_model(fetched(name))
    assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert tokenizer.add_bos
    for text, ids in GOLDEN[name]["rows"]:
        assert tokenizer.encode(text, special=False) == ids, text
        assert tokenizer.decode(ids) == text.replace("▁", " ")


@pytest.mark.parametrize("name", ["llama", "gemma"])
@given(text=st.text())
@settings(deadline=None)
def test_any_text_comes_back(name: str, text: str) -> None:
    assert golden(name).decode(golden(name).encode(text, special=False)) == text.replace("▁", " ")


def test_the_space_prefix_follows_the_file() -> None:
    assert golden("llama").space_prefix
    assert not golden("gemma").space_prefix
    assert load(model(PIECES, trainer(), normalizer(prefix=False)), space_prefix=True).space_prefix
    assert not load(model(), space_prefix=False).space_prefix


def test_a_model_equals_the_gguf_of_the_same_pieces() -> None:
    texts, scores, kinds = (list(column) for column in zip(*PIECES, strict=True))
    theirs = Tokenizer.from_gguf(sentence_piece(tokens=texts, scores=scores, token_type=kinds))
    ours = load(model())
    assert (ours.vocab_size, ours.bos_id, ours.eos_ids, ours.unk_id) == (len(PIECES), 1, {2}, 0)
    for text in ("hello", "hello <s> wö[INST]x", "", "  "):
        for special in (True, False):
            assert ours.encode(text, special=special) == theirs.encode(text, special=special)


# beside the file


def test_added_tokens_lie_behind_the_pieces_and_rename_some() -> None:
    count = len(PIECES)
    added = {
        count: AddedToken("<|user|>", control=True, strips=(False, True)),
        count + 2: AddedToken("<word>", control=False),
        count - 1: AddedToken("[TOOL]", control=True),
    }
    tokenizer = load(model(), added=added)
    assert tokenizer.vocab_size == count + 3
    assert tokenizer.token_text(count + 1) == ""
    assert tokenizer.encode("<|user|>  hello", special=True) == [count, *tokenizer.encode("hello", special=False)]
    assert count not in tokenizer.encode("<|user|>", special=False)
    assert count + 2 in tokenizer.encode("<word>", special=False)
    assert tokenizer.encode("[TOOL]", special=True) == [count - 1]
    assert count - 1 not in tokenizer.encode("[TOOL]", special=False)
    assert list(tokenizer.controls.spans("a<|user|> b")) == [(1, 10)]


def test_named_tokens_take_priority_over_the_files_own() -> None:
    added = {len(PIECES): AddedToken("<|end|>", control=True)}
    tokenizer = load(model(), added=added, eos="<|end|>", add_bos=False)
    assert tokenizer.eos_id == len(PIECES)
    assert tokenizer.eos_ids == {2, len(PIECES)}
    assert not tokenizer.add_bos
    assert load(model(), eos="<not there>").eos_id == 2


def test_a_file_names_its_own_bos_and_eos() -> None:
    pieces = [("<unk>", 0.0, UNKNOWN), ("<stop>", 0.0, CONTROL), ("<go>", 0.0, CONTROL), ("a", 0.0, NORMAL)]
    names = chunk(46, b"<go>") + chunk(47, b"<stop>")
    tokenizer = load(model(pieces, trainer(byte_fallback=False, more=names), normalizer()))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.eos_ids) == (2, 1, {1})
    assert load(model(pieces, trainer(byte_fallback=False), normalizer())).bos_id is None


def test_html_in_a_vocabulary_is_no_end() -> None:
    pieces = [*PIECES[:1], ("<bos>", 0.0, CONTROL), ("<eos>", 0.0, CONTROL), *PIECES[3:], ("</s>", 0.0, 4)]
    assert load(model(pieces), bos="<bos>", eos="<eos>").eos_ids == {2}


# refusals

REFUSED: list[tuple[str, bytes]] = [
    ("it has no pieces", b""),
    ("of the type unigram; supported: BPE", model(PIECES, trainer(model_type=UNIGRAM), normalizer())),
    ("of the type unigram", model(PIECES, chunk(2, number(35, 1)), normalizer())),
    ("of the type word", model(PIECES, trainer(model_type=3), normalizer())),
    ("of the type 77", model(PIECES, trainer(model_type=77), normalizer())),
    ("by the rules 'identity'; supported: identity", model(PIECES, trainer(), normalizer(more=chunk(2, b"xx")))),
    ("by the rules 'nmt_nfkc'", model(PIECES, trainer(), normalizer(more=chunk(1, b"nmt_nfkc") + chunk(2, b"xx")))),
    ("writes spaces behind words", model(PIECES, trainer(more=number(24, 1)), normalizer())),
    (r"spaces as U\+2581", model(PIECES, trainer(), normalizer(more=number(5, 0)))),
    ("the same piece twice", model([*PIECES, PIECES[-1]])),
    ("has 0 pieces for what is unknown", model(PIECES[1:])),
    ("has 2 pieces for what is unknown", model([*PIECES, ("x", 0.0, UNKNOWN)])),
    ("has bytes and no byte_fallback", model(PIECES, trainer(byte_fallback=False), normalizer())),
    ("has no bytes", model([each for each in PIECES if each[2] != BYTE])),
    ("has a token of 513 characters", model([*PIECES, ("x" * 513, 0.0, NORMAL)])),
    ("piece 0 has no text", model([("", 0.0, NORMAL)])),
    ("piece 0 is of the unknown type 9", model([("x", 0.0, 9)])),
    ("piece 0 is of the unknown type -1", model([("x", 0.0, -1)])),
    ("a score is not finite", model([("x", math.nan, NORMAL)])),
    ("2 bytes where a float32 is expected", chunk(1, chunk(1, b"x") + chunk(2, b"ab"))),
    ("a text is not UTF-8", chunk(1, chunk(1, b"\xff"))),
    ("a number where bytes are expected", number(1, 3)),
    ("bytes where a number is expected", chunk(1, chunk(3, b"x"))),
    ("field 1 ends behind the end", b"\x0a\x7f" + b"x"),
    ("a number does not end", b"\x0a" + b"\xff" * 20),
    ("a number does not end", b"\x80"),
    ("a field has the number 0", b"\x02\x00"),
    ("the unknown wire type 3", varint(9 << 3 | 3)),
    ("field 14 has the unknown wire type 6", b"version https://git-lfs.github.com/spec/v1\n"),
]


@pytest.mark.parametrize(("reason", "data"), REFUSED, ids=[f"{i}-{reason}" for i, (reason, _) in enumerate(REFUSED)])
def test_broken_or_unsupported_files_are_refused_by_name(reason: str, data: bytes) -> None:
    with pytest.raises(LoadError, match=reason) as caught:
        load(data)
    assert "tokenizer.model" in caught.value.message


def test_unknown_fields_are_ignored() -> None:
    extra = number(200, 7) + chunk(201, b"x") + varint(202 << 3 | 1) + b"8 bytes." + varint(203 << 3 | 5) + b"4 by"
    assert load(extra + model()).encode("hello", special=False) == load(model()).encode("hello", special=False)


def test_an_added_token_cannot_have_the_text_of_another() -> None:
    with pytest.raises(LoadError, match="an added token has the text of another one"):
        load(model(), added={len(PIECES): AddedToken("hello", control=True)})


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    with path.open("wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(LoadError, match=r"tokenizer.model has more than 67108864 bytes"):
        Tokenizer.from_model(path)
    with pytest.raises(LoadError, match="cannot be read"):
        Tokenizer.from_model(tmp_path / "none.model")


SMALL = model([each for each in PIECES if each[2] != BYTE], trainer(byte_fallback=False), normalizer())


@given(data=st.data())
@settings(deadline=None)
def test_any_damage_loads_or_is_refused(data: st.DataObject) -> None:
    damaged = bytearray(SMALL[: data.draw(st.integers(0, len(SMALL)))])
    for _ in range(data.draw(st.integers(0, 3))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        tokenizer = load(bytes(damaged) + data.draw(st.binary(max_size=8)))
    except LoadError:
        return
    ids = tokenizer.encode("hello <s> wörld", special=True, bos=True)
    assert all(0 <= token < tokenizer.vocab_size for token in ids)
    tokenizer.decode(ids)


def test_pieces_may_leave_out_fields_with_a_default() -> None:
    bare = chunk(1, chunk(1, b"z"))
    tokenizer = load(piece("<unk>", 0.0, UNKNOWN) + bare + trainer(byte_fallback=False) + normalizer(prefix=False))
    assert tokenizer.encode("z", special=False) == [1]
