"""A tokenizer written to a GGUF file's section and read again gives the same tokens, or is refused by name."""

from __future__ import annotations

import itertools
import json
import logging
import unicodedata
from pathlib import Path
from typing import Any, cast

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from mistralrs.errors import LoadError
from mistralrs.loading.gguf_file import GgufFile
from mistralrs.text.backends import byte_level_pre_tokenizer
from mistralrs.text.gguf_metadata import PROBE
from mistralrs.text.pretokenizers import PRETOKENIZERS
from mistralrs.text.tokenizer import Tokenizer
from mistralrs.text.tokenizer_config import AddedToken as ConfigToken
from mistralrs.text.tokenizer_config import TokenizerConfig
from tests.text import sentencepiece_bytes
from tests.text.vocabularies import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    byte_letters,
    byte_level,
    fetched,
    sentence_piece,
)

TEXTS = ("hello world", " hello  wörld\n", "<|im_start|>he<|im_end|> 12", "</s>hello[INST] we<s>", "漢字🙂", "", PROBE)


def assert_same(tokenizer: Tokenizer, read: Tokenizer) -> None:
    for text, special in itertools.product(TEXTS, (False, True)):
        assert read.encode(text, special=special, bos=True) == tokenizer.encode(text, special=special, bos=True)
    for name in ("bos_id", "eos_id", "eos_ids", "unk_id", "add_bos", "space_prefix"):
        assert getattr(read, name) == getattr(tokenizer, name), name
    assert [read.token_bytes(i) for i in range(read.vocab_size)] == [
        tokenizer.token_bytes(i) for i in range(read.vocab_size)
    ]


def values(metadata: dict[str, Any], key: str) -> Any:
    return metadata[f"tokenizer.ggml.{key}"]


# Supported tokenizers


@pytest.mark.parametrize(
    "metadata",
    [
        byte_level(),
        byte_level(add_bos_token=True, pre="llama-bpe"),
        sentence_piece(),
        sentence_piece(add_bos_token=False),
    ],
)
def test_there_and_back(metadata: dict[str, object]) -> None:
    tokenizer = Tokenizer.from_gguf(metadata)
    assert_same(tokenizer, Tokenizer.from_gguf(tokenizer.to_gguf(size=tokenizer.vocab_size)))


def test_rows_without_a_token_are_unused() -> None:
    tokenizer = Tokenizer.from_gguf(byte_level())
    count = tokenizer.vocab_size
    metadata = tokenizer.to_gguf(size=count + 2)
    assert values(metadata, "tokens")[count:] == [f"[PAD{count}]", f"[PAD{count + 1}]"]
    assert values(metadata, "token_type")[count:] == [UNUSED, UNUSED]
    assert len(values(metadata, "tokens")) == len(values(metadata, "token_type")) == count + 2


def test_a_sentencepiece_model(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(sentencepiece_bytes.model())
    added = {len(sentencepiece_bytes.PIECES) + 1: ConfigToken("<|im_end|>", control=True)}
    tokenizer = Tokenizer.from_model(path, TokenizerConfig(added=added))
    metadata = tokenizer.to_gguf(size=tokenizer.vocab_size)
    assert_same(tokenizer, Tokenizer.from_gguf(metadata))
    assert values(metadata, "model") == "llama"
    kinds, tokens = values(metadata, "token_type"), values(metadata, "tokens")
    assert [kinds[tokens.index(text)] for text in ("<unk>", "<s>", "<0x0A>", "hell", "[INST]", "<|im_end|>")] == [
        UNKNOWN,
        CONTROL,
        BYTE,
        NORMAL,
        USER_DEFINED,
        CONTROL,
    ]
    scores = dict(zip(tokens, values(metadata, "scores"), strict=True))
    merged = [text for text, _, kind in sentencepiece_bytes.PIECES if kind == NORMAL and len(text) > 1]
    assert sorted(merged, key=lambda text: -scores[text]) == merged


def test_more_ends_of_an_answer_are_named(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = Tokenizer.from_gguf(byte_level())
    read = Tokenizer.from_gguf(tokenizer.with_eos([3]).to_gguf(size=tokenizer.vocab_size))
    assert read.eos_ids == tokenizer.eos_ids | {3}
    changed = byte_level()
    for token in range(4):
        changed["tokenizer.ggml.tokens"][token] = f"<{token}>"  # type: ignore[index]
    several = Tokenizer.from_gguf(changed).with_eos([0, 1, 3])
    metadata = several.to_gguf(size=several.vocab_size)
    assert [values(metadata, f"{name}_token_id") for name in ("eos", "eot", "eom")] == [2, 0, 1]
    assert "a GGUF file cannot say that '<3>' ends an answer" in caplog.text


@pytest.mark.parametrize("name", ["llama-spm", "llama-bpe", "qwen2", "phi-3"])
def test_real_vocabularies(name: str) -> None:
    file = GgufFile.open(fetched(f"ggml-vocab-{name}.gguf"))
    tokenizer = Tokenizer.from_gguf(file.metadata)
    metadata = tokenizer.to_gguf(size=tokenizer.vocab_size)
    assert_same(tokenizer, Tokenizer.from_gguf(metadata))
    if values(metadata, "model") == "gpt2":
        assert values(metadata, "merges") == file.metadata["tokenizer.ggml.merges"]
        before = file.require("tokenizer.ggml.pre", str)
        assert PRETOKENIZERS[values(metadata, "pre")].patterns == PRETOKENIZERS[before].patterns
    else:
        scores = values(metadata, "scores")
        pieces = [
            token
            for token, kind in enumerate(values(metadata, "token_type"))
            if kind == NORMAL and len(values(metadata, "tokens")[token]) > 1
        ]
        theirs = cast("list[float]", file.require("tokenizer.ggml.scores", list))
        assert sorted(pieces, key=lambda token: -scores[token]) == sorted(pieces, key=lambda token: -theirs[token])


# Pre-tokenizers


def test_the_probe_tells_all_pre_tokenizers_apart() -> None:
    splits = {
        name: [piece for piece, _ in byte_level_pre_tokenizer(name).pre_tokenize_str(PROBE)] for name in PRETOKENIZERS
    }
    alike = {
        (PRETOKENIZERS[one].patterns, PRETOKENIZERS[other].patterns)
        for one, other in itertools.combinations(PRETOKENIZERS, 2)
        if splits[one] == splits[other] and PRETOKENIZERS[one].patterns != PRETOKENIZERS[other].patterns
    }
    # These two are equal: a letter after a sign, or none, and line feeds with all spaces before them.
    assert alike == {(PRETOKENIZERS["qwen2"].patterns, PRETOKENIZERS["bailingmoe"].patterns)}
    assert unicodedata.is_normalized("NFC", PROBE)


def json_of(**changes: Any) -> dict[str, Any]:
    """A byte-level `tokenizer.json` with GPT-2's words."""
    ids = {letter: token for token, letter in enumerate(byte_letters())} | {"he": 256, "ll": 257, "hell": 258}
    backend = Backend(models.BPE(ids, [("h", "e"), ("l", "l"), ("he", "ll")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    controls = ("<|endoftext|>", "<|user|>")
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in controls])
    fields: dict[str, Any] = json.loads(backend.to_str())
    return fields | changes


def from_json(fields: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_json(json.dumps(fields))


def part(each: Any) -> Any:
    """A normalizer's or pre-tokenizer's JSON."""
    return json.loads(each.__getstate__())


@pytest.mark.parametrize(
    ("pre_tokenizer", "name"),
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=False), "gpt-2"),
        (
            pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            ),
            "smollm",
        ),
        (byte_level_pre_tokenizer("qwen2"), "qwen2"),
        (byte_level_pre_tokenizer("tekken"), "tekken"),
        (byte_level_pre_tokenizer("llama-bpe"), "llama3"),
    ],
)
def test_the_pre_tokenizer_gets_its_name(pre_tokenizer: pre_tokenizers.PreTokenizer, name: str) -> None:
    fields = json_of(pre_tokenizer=part(pre_tokenizer))
    fields["model"]["ignore_merges"] = PRETOKENIZERS[name].ignore_merges
    tokenizer = from_json(fields)
    metadata = tokenizer.to_gguf(size=tokenizer.vocab_size)
    assert values(metadata, "pre") == name
    assert_same(tokenizer, Tokenizer.from_gguf(metadata))


# Unsupported tokenizers


def pieces_json(merges: list[tuple[str, str]], **changes: Any) -> dict[str, Any]:
    """A `tokenizer.json` like those converted from SentencePiece models."""
    texts = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "h", "e", "l", "he", "hel", "el", "▁▁"]
    model = models.BPE(
        {text: token for token, text in enumerate(texts)}, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True
    )
    backend = Backend(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken("<unk>", special=True, normalized=False)])
    backend.add_tokens([AddedToken("▁▁", normalized=False)])
    fields: dict[str, Any] = json.loads(backend.to_str())
    return fields | changes


MERGES = [("▁", "▁"), ("h", "e"), ("e", "l"), ("he", "l"), ("h", "el")]


def test_merges_become_scores() -> None:
    tokenizer = from_json(pieces_json(MERGES))
    metadata = tokenizer.to_gguf(size=tokenizer.vocab_size)
    read = Tokenizer.from_gguf(metadata)
    assert_same(tokenizer, read)
    scores = dict(zip(values(metadata, "tokens"), values(metadata, "scores"), strict=True))
    assert scores["▁▁"] > scores["he"] > scores["el"] > scores["hel"] > scores["h"]
    assert read.encode("  hel", special=False) == tokenizer.encode("  hel", special=False)


@pytest.mark.parametrize(
    "merges",
    [MERGES[:-1], [*MERGES[:2], MERGES[3], MERGES[2], MERGES[4]]],
    ids=["a way to cut is missing", "the ways to cut are apart"],
)
def test_merges_that_no_scores_give_are_refused(merges: list[tuple[str, str]]) -> None:
    with pytest.raises(LoadError, match="it joins pieces by merges that no scores can stand for") as refused:
        from_json(pieces_json(merges)).to_gguf(size=300)
    assert refused.value.hint


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pre_tokenizer": part(pre_tokenizers.ByteLevel(add_prefix_space=True))}, "cuts a text into words and merges"),
        ({"pre_tokenizer": None}, "cuts a text into words and merges them in a way that has no name"),
        ({"normalizer": part(normalizers.Lowercase())}, "the same text would become other tokens"),
        ({"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}}, "it is WordLevel"),
    ],
)
def test_refused(changes: dict[str, Any], reason: str) -> None:
    tokenizer = from_json(json_of(**changes))
    with pytest.raises(LoadError, match=f"a GGUF file cannot hold this tokenizer: .*{reason}"):
        tokenizer.to_gguf(size=tokenizer.vocab_size)


def test_small_differences_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = from_json(json_of())
    tokenizer.to_gguf(size=tokenizer.vocab_size)
    assert not caplog.records
    composing = from_json(json_of(normalizer=part(normalizers.NFC())))
    with caplog.at_level(logging.WARNING):
        composing.to_gguf(size=composing.vocab_size)
    assert "other tokens come of 'e\\u0301'" in caplog.text
    caplog.clear()
    fields = json_of()
    fields["added_tokens"][1]["rstrip"] = True
    from_json(fields).to_gguf(size=300)
    assert "other tokens come of 'a <|user|> b'" in caplog.text
