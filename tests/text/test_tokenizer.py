"""Tokenizers from GGUF metadata and from tokenizer.json: ids, bytes, ends, and refusals."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from mistralrs.errors import LoadError
from mistralrs.loading.gguf_file import GgufFile
from mistralrs.text.pretokenizers import PRETOKENIZERS
from mistralrs.text.tokenizer import Tokenizer
from tests.text.vocabularies import CONTROL, NORMAL, USER_DEFINED, byte_level, sentence_piece

TINY = {"byte-level": byte_level, "sentence-piece": sentence_piece}


@cache
def tiny(name: str) -> Tokenizer:
    return Tokenizer.from_gguf(TINY[name]())


def texts(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    return [tokenizer.token_text(token) for token in ids]


# ids


def test_byte_level_merges() -> None:
    tokenizer = tiny("byte-level")
    assert texts(tokenizer, tokenizer.encode("hello world", special=False)) == ["hell", "o", " w", "o", "r", "l", "d"]


def test_sentence_piece_prefers_the_best_score_and_falls_back_to_bytes() -> None:
    tokenizer = tiny("sentence-piece")
    assert texts(tokenizer, tokenizer.encode("hello wö", special=False)) == [" hello", " w", "ö"]
    assert tokenizer.encode("é", special=False) == [259, 3 + 0xC3, 3 + 0xA9]


def test_sentence_piece_writes_its_space_after_every_control_token() -> None:
    tokenizer = tiny("sentence-piece")
    ids = tokenizer.encode("<s>hello</s>hello", special=True)
    assert texts(tokenizer, ids) == ["<s>", " hello", "</s>", " hello"]
    bare = Tokenizer.from_gguf(sentence_piece(add_space_prefix=False))
    assert texts(bare, bare.encode("<s>hello</s>hello", special=True)) == ["<s>", "hello", "</s>", "hello"]


@pytest.mark.parametrize("name", TINY)
def test_control_tokens_are_text_unless_asked_for(name: str) -> None:
    tokenizer = tiny(name)
    spelled = f"a{tokenizer.token_text(tokenizer.eos_id or 0)}b"
    assert tokenizer.eos_id in tokenizer.encode(spelled, special=True)
    assert tokenizer.eos_id not in tokenizer.encode(spelled, special=False)
    assert tokenizer.decode(tokenizer.encode(spelled, special=False)) == spelled


def test_user_defined_words_are_found_in_any_text() -> None:
    tokenizer = tiny("sentence-piece")
    word = tokenizer.vocab_size - 1
    assert word in tokenizer.encode("x[INST]y", special=False)
    assert tokenizer.token_bytes(word) == b"[INST]"


def test_bos_comes_once() -> None:
    tokenizer = tiny("sentence-piece")
    once = [1, *tokenizer.encode("hello", special=False)]
    assert tokenizer.encode("hello", special=False, bos=True) == once
    assert tokenizer.encode("<s>hello", special=True, bos=True) == once
    nameless = Tokenizer.from_gguf(byte_level(bos_token_id=None))
    assert nameless.bos_id is None
    assert nameless.encode("a", special=False, bos=True) == nameless.encode("a", special=False)


@pytest.mark.parametrize("name", TINY)
def test_lone_surrogates_become_replacement_characters(name: str) -> None:
    tokenizer = tiny(name)
    assert tokenizer.decode(tokenizer.encode("a\ud800b\ud83d\ude00\udfff", special=False)) == "a\ufffdb😀\ufffd"


@pytest.mark.parametrize("name", TINY)
@given(text=st.text())
def test_any_text_comes_back(name: str, text: str) -> None:
    tokenizer = tiny(name)
    ids = tokenizer.encode(text, special=False)
    # SentencePiece writes a space as U+2581, so that it cannot tell the two apart.
    same = text.replace("▁", " ") if tokenizer.space_prefix else text
    assert tokenizer.decode(ids) == same
    assert all(0 <= token < tokenizer.vocab_size for token in ids)


@settings(deadline=None)
@given(text=st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=0x2FFFF, exclude_categories=["Cs"])))
def test_any_printable_text_comes_back_from_smollm2(default_model: Path, text: str) -> None:
    tokenizer = smollm2(default_model)
    assert tokenizer.decode(tokenizer.encode(text, special=False)) == text


@cache
def smollm2(path: Path) -> Tokenizer:
    with GgufFile.open(path) as file:
        return Tokenizer.from_gguf(file.metadata)


def test_threads_do_not_disturb_each_other() -> None:
    tokenizer = tiny("byte-level")
    spelled = "<|im_start|>hell<|im_end|>" * 20
    expected = {special: tokenizer.encode(spelled, special=special) for special in (True, False)}
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda i: (i % 2 == 0, tokenizer.encode(spelled, special=i % 2 == 0)), range(400)))
    assert all(ids == expected[special] for special, ids in done)


# bytes


def test_bytes_of_control_unused_and_unknown_ids_are_empty() -> None:
    tokenizer = tiny("byte-level")
    pad = tokenizer.vocab_size - 1
    assert [tokenizer.token_bytes(token) for token in (0, 1, 2, pad, tokenizer.vocab_size, -1)] == [b""] * 6
    assert [tokenizer.token_text(token) for token in (2, pad, tokenizer.vocab_size)] == ["<|im_end|>", "[PAD]", ""]


def test_a_byte_is_a_byte() -> None:
    assert {tiny("byte-level").token_bytes(token) for token in range(4, 260)} == {bytes([b]) for b in range(256)}
    assert [tiny("sentence-piece").token_bytes(3 + b) for b in range(256)] == [bytes([b]) for b in range(256)]
    assert tiny("sentence-piece").token_text(3 + 0xC3) == "\ufffd"


# ends and beginnings


def test_ends_are_gathered_from_ids_and_known_texts() -> None:
    assert tiny("byte-level").eos_ids == {0, 2}
    named = Tokenizer.from_gguf(byte_level(eos_token_id=3, eot_token_id=10, eom_token_id=11))
    assert named.eos_ids == {0, 2, 3, 10, 11}
    assert named.eos_id == 3
    assert named.token_bytes(10) == b""
    kinds = list(byte_level()["tokenizer.ggml.token_type"])  # type: ignore[call-overload]
    kinds[0] = NORMAL
    assert Tokenizer.from_gguf(byte_level(token_type=kinds)).eos_ids == {2}


def test_a_message_of_several_does_not_end_the_answer() -> None:
    metadata = byte_level()
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    assert isinstance(tokens, list)
    assert isinstance(kinds, list)

    def ends(*texts: str) -> set[str]:
        new = byte_level(tokens=[*tokens, *texts], token_type=[*kinds, *[CONTROL] * len(texts)])
        found = Tokenizer.from_gguf(new)
        return {found.token_text(token) for token in found.eos_ids} & set(texts)

    assert ends("<|end|>", "<|call|>") == {"<|end|>"}
    assert ends("<|end|>", "<|call|>", "<|return|>") == {"<|call|>", "<|return|>"}


def test_more_ends_leave_the_first_tokenizer_alone() -> None:
    first = tiny("byte-level")
    more = first.with_eos([7, 300_000])
    assert more.eos_ids == {0, 2, 7, 300_000}
    assert first.eos_ids == {0, 2}
    assert more.encode("hello", special=False) == first.encode("hello", special=False)
    with pytest.raises(LoadError, match="-1 is not a token id"):
        first.with_eos([-1])


def test_whether_a_text_starts_with_bos() -> None:
    assert tiny("sentence-piece").add_bos
    assert not tiny("byte-level").add_bos
    assert Tokenizer.from_gguf(byte_level(pre="llama-bpe")).add_bos
    assert not Tokenizer.from_gguf(byte_level(pre="llama-bpe", add_bos_token=False)).add_bos
    assert not Tokenizer.from_gguf(byte_level(pre="llama-bpe", bos_token_id=None)).add_bos
    assert Tokenizer.from_gguf(byte_level(add_bos_token=True)).add_bos


def test_old_sentence_piece_files_have_the_default_ids() -> None:
    tokenizer = tiny("sentence-piece")
    assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)


# pre-tokenizers


@pytest.mark.parametrize("pre", sorted(PRETOKENIZERS))
@given(text=st.text(alphabet="aZ é'slLI1239\n\r\t.,!<|世界 \u3000\u0301ß"))
@settings(max_examples=20, deadline=None)
def test_every_pretokenizer_keeps_all_of_a_text(pre: str, text: str) -> None:
    tokenizer = with_pretokenizer(pre)
    assert tokenizer.decode(tokenizer.encode(text, special=False)) == text


@cache
def with_pretokenizer(pre: str) -> Tokenizer:
    return Tokenizer.from_gguf(byte_level(pre=pre))


def test_the_known_names_hold_those_of_the_first_models() -> None:
    expected = "llama-bpe llama3 llama-v3 smollm starcoder refact command-r gpt-2 phi-2 mpt olmo qwen2 deepseek-llm"
    assert {*expected.split(), "deepseek-coder", "falcon", "default", "tekken"} <= PRETOKENIZERS.keys()


def test_an_unknown_pretokenizer_is_named_with_those_known() -> None:
    with pytest.raises(LoadError, match=r"'klingon' is unknown; known: .*llama-bpe, .*smollm, "):
        Tokenizer.from_gguf(byte_level(pre="klingon"))


def test_a_missing_pretokenizer_is_the_default_one(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = Tokenizer.from_gguf(byte_level(pre=None))
    assert "does not name its pre-tokenizer" in caplog.text
    assert tokenizer.encode("hello 1234", special=False) == with_pretokenizer("default").encode(
        "hello 1234", special=False
    )


# refusals

REFUSED: list[tuple[str, dict[str, object]]] = [
    ("'tokenizer.ggml.model' is missing", byte_level(model=None)),
    ("model 'bert' is not supported; supported: gpt2, llama", byte_level(model="bert")),
    ("model' is a int", byte_level(model=3)),
    ("tokens' is missing", byte_level(tokens=None)),
    ("tokens' is empty", byte_level(tokens=[], token_type=[])),
    ("tokens' is a str", byte_level(tokens="abc")),
    ("tokens' holds a int, expected only str", byte_level(tokens=["a", 1])),
    ("tokens' has the same token twice", byte_level(tokens=["a", "a"], token_type=[1, 1])),
    ("tokens' holds a text that is not Unicode", byte_level(tokens=["\ud800"], token_type=[1])),
    ("token_type' has 1 entries", byte_level(token_type=[1])),
    ("token_type' holds the unknown type 9", byte_level(tokens=["a"], token_type=[9])),
    ("token_type' holds a float", byte_level(tokens=["a"], token_type=[1.0])),
    ("merges' is missing", byte_level(merges=None)),
    ("merges' holds 'ab', expected two pieces", byte_level(merges=["ab"])),
    ("merges' holds 'a b c', expected two pieces", byte_level(merges=["a b c"])),
    ("cannot be built: .*zz", byte_level(merges=["zz yy"])),
    ("cannot be built: ", byte_level(merges=["a "])),
    ("bos_token_id' is 9999, outside the vocabulary of 265 tokens", byte_level(bos_token_id=9999)),
    ("eos_token_id' is -1, outside", byte_level(eos_token_id=-1)),
    ("eot_token_id' is a str", byte_level(eot_token_id="2")),
    ("unknown_token_id' is a bool", byte_level(unknown_token_id=True)),
    ("add_bos_token' is a int", byte_level(add_bos_token=1)),
    ("pre' is a list", byte_level(pre=["gpt-2"])),
    ("scores' is missing", sentence_piece(scores=None)),
    ("scores' has 2 entries", sentence_piece(scores=[0.0, 1.0])),
    ("scores' holds a score that is not finite", sentence_piece(scores=[math.nan] * 274)),
    ("add_space_prefix' is a str", sentence_piece(add_space_prefix="yes")),
    ("has a token of 513 characters", sentence_piece(tokens=["a" * 513], scores=[0.0], token_type=[1])),
]


@pytest.mark.parametrize(("reason", "metadata"), REFUSED, ids=[reason for reason, _ in REFUSED])
def test_hostile_metadata_is_refused_by_name(reason: str, metadata: dict[str, object]) -> None:
    with pytest.raises(LoadError, match=reason):
        Tokenizer.from_gguf(metadata)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.floats(),
    st.text(max_size=4),
    st.lists(st.one_of(st.text(max_size=3), st.integers(-1, 7), st.floats()), max_size=6),
    st.lists(st.integers(0, 6), min_size=274, max_size=274),
    st.lists(st.floats(allow_nan=False), min_size=274, max_size=274),
)
KEYS = "model pre tokens token_type scores merges bos_token_id eos_token_id unknown_token_id add_bos_token"


@pytest.mark.parametrize("name", TINY)
@given(changes=st.dictionaries(st.sampled_from(KEYS.split()), VALUES, min_size=1))
@settings(deadline=None)
def test_any_metadata_loads_or_is_refused(name: str, changes: dict[str, Any]) -> None:
    try:
        tokenizer = Tokenizer.from_gguf(TINY[name](**changes))
    except LoadError:
        return
    ids = tokenizer.encode("hello <|im_end|> wörld", special=True, bos=True)
    assert all(0 <= token < tokenizer.vocab_size for token in ids)
    tokenizer.decode(ids)


# tokenizer.json


def json_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """The tokenizer.json that Hugging Face would have for it, with the decoder that such files carry."""
    fields: dict[str, Any] = json.loads(tokenizer._backend.to_str())
    if tokenizer.space_prefix:
        replace = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
        fields["decoder"] = {"type": "Sequence", "decoders": [replace, {"type": "ByteFallback"}, {"type": "Fuse"}]}
    else:
        fields["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    return fields


@pytest.mark.parametrize("name", TINY)
def test_a_json_equals_its_gguf(name: str, tmp_path: Path) -> None:
    ours = tiny(name)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json_of(ours)), encoding="utf-8")
    theirs = Tokenizer.from_json(path, bos=ours.bos_id, eos=[ours.eos_id or 0], add_bos=ours.add_bos)
    assert theirs.vocab_size == ours.vocab_size
    assert theirs.space_prefix == ours.space_prefix
    assert (theirs.bos_id, theirs.eos_id, theirs.eos_ids) == (ours.bos_id, ours.eos_id, ours.eos_ids)
    assert theirs.add_bos == ours.add_bos
    text = "hello <|im_end|> </s> <s> [INST] wörld"
    for special in (True, False):
        assert theirs.encode(text, special=special) == ours.encode(text, special=special)
    unused = ours.vocab_size - 1
    assert all(theirs.token_bytes(i) == ours.token_bytes(i) for i in range(ours.vocab_size) if i != unused)


def test_a_json_finds_its_bos_by_what_it_puts_in_front() -> None:
    fields = json_of(tiny("sentence-piece"))
    fields["post_processor"] = json.loads(
        tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)]).__getstate__()
    )
    found = Tokenizer.from_json(json.dumps(fields))
    assert (found.bos_id, found.add_bos, found.eos_id) == (1, True, 2)
    assert found.encode("hello", special=False) == tiny("sentence-piece").encode("hello", special=False)
    assert not Tokenizer.from_json(json.dumps(fields), add_bos=False).add_bos


def test_a_json_takes_ends_by_text_even_if_it_marks_them_as_words() -> None:
    fields = json_of(tiny("byte-level"))
    for token in fields["added_tokens"]:
        token["special"] = False
    tokenizer = Tokenizer.from_json(json.dumps(fields), eos=["<|im_sep|>"])
    assert tokenizer.eos_id == 3
    assert tokenizer.eos_ids == {0, 2, 3}
    assert 3 in tokenizer.encode("<|im_sep|>", special=True)
    assert 3 not in tokenizer.encode("<|im_sep|>", special=False)


def test_truncation_and_padding_of_a_json_are_turned_off() -> None:
    fields = json_of(tiny("byte-level"))
    fields["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    tokenizer = Tokenizer.from_json(json.dumps(fields))
    assert tokenizer.decode(tokenizer.encode("a long text", special=False)) == "a long text"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not a usable tokenizer.json"),
        ("[]", "not a usable tokenizer.json"),
        ('{"model": 1}', "not a usable tokenizer.json"),
        (json.dumps({**json_of(tiny("byte-level")), "decoder": None}), "by no decoder, which is not supported"),
    ],
)
def test_an_unusable_json_is_refused(text: str, reason: str) -> None:
    with pytest.raises(LoadError, match=reason):
        Tokenizer.from_json(text)


def test_a_json_refuses_tokens_it_does_not_have(tmp_path: Path) -> None:
    text = json.dumps(json_of(tiny("byte-level")))
    with pytest.raises(LoadError, match="has no token '<end>'"):
        Tokenizer.from_json(text, eos=["<end>"])
    with pytest.raises(LoadError, match="token 9999 is outside"):
        Tokenizer.from_json(text, bos=9999)
    with pytest.raises(LoadError, match="cannot be read"):
        Tokenizer.from_json(tmp_path / "none.json")


def test_control_and_user_defined_tokens_are_distinguished() -> None:
    kinds = list(byte_level()["tokenizer.ggml.token_type"])  # type: ignore[call-overload]
    kinds[3] = USER_DEFINED
    tokenizer = Tokenizer.from_gguf(byte_level(token_type=kinds))
    assert tokenizer.encode("<|im_sep|>", special=False) == [3]
    assert tokenizer.token_bytes(3) == b"<|im_sep|>"
