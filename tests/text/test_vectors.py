"""The tokenizer gives the ids that llama.cpp publishes with its vocabularies, and the texts back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mistralrs.loading.gguf_file import GgufFile
from mistralrs.text.tokenizer import Tokenizer
from tests.text.vocabularies import fetched

GOLDEN = json.loads(Path(__file__).with_name("smollm2_tokens.json").read_text(encoding="utf-8"))
BOS_BY_DEFAULT = {"llama-spm", "llama-bpe", "phi-3", "command-r", "deepseek-llm", "deepseek-coder"}
ENDS = {
    "llama-spm": ["</s>"],
    "llama-bpe": ["<|end_of_text|>", "<|eot_id|>"],
    "gpt-2": ["<|endoftext|>"],
    "phi-3": ["</s>", "<|endoftext|>", "<|end|>"],
    "qwen2": ["<|endoftext|>", "<|im_end|>"],
    "qwen35": ["<|endoftext|>", "<|im_end|>"],
    "starcoder": ["<|endoftext|>"],
    "refact": ["<|endoftext|>"],
    "falcon": ["<|endoftext|>"],
    "command-r": ["<|END_OF_TURN_TOKEN|>"],
    "mpt": ["<|endoftext|>"],
    "deepseek-llm": ["<｜end▁of▁sentence｜>"],
    "deepseek-coder": ["<｜end▁of▁sentence｜>"],
}


def load(path: Path) -> Tokenizer:
    with GgufFile.open(path) as file:
        return Tokenizer.from_gguf(file.metadata)


@pytest.mark.parametrize("name", sorted(ENDS))
def test_llama_cpp_vectors(name: str) -> None:
    tokenizer = load(fetched(f"ggml-vocab-{name}.gguf"))
    given = fetched(f"ggml-vocab-{name}.gguf.inp").read_bytes().decode()
    texts = given.removesuffix("\n__ggml_vocab_test__\n").split("\n__ggml_vocab_test__\n")
    lines = fetched(f"ggml-vocab-{name}.gguf.out").read_text().splitlines()
    assert len(texts) == len(lines) >= 46
    for text, line in zip(texts, lines, strict=True):
        ids = [int(token) for token in line.split()]
        assert tokenizer.encode(text, special=False) == ids, text
        assert tokenizer.decode(ids) == text
    assert sorted(map(tokenizer.token_text, tokenizer.eos_ids)) == ENDS[name]
    assert tokenizer.add_bos == (name in BOS_BY_DEFAULT)


@pytest.mark.parametrize("name", ["aquila", "gpt-neox"])
def test_files_without_a_pretokenizer_load_with_a_warning(name: str, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = load(fetched(f"ggml-vocab-{name}.gguf"))
    assert "does not name its pre-tokenizer" in caplog.text
    text = "It's 12345 o'clock, здравствуй 世界!"
    assert tokenizer.decode(tokenizer.encode(text, special=False)) == text


def test_smollm2_equals_llama_cpp(default_model: Path) -> None:
    tokenizer = load(default_model)
    assert len(GOLDEN) > 10
    for row in GOLDEN:
        assert tokenizer.encode(row["text"], special=False) == row["plain"], row["text"]
        assert tokenizer.encode(row["text"], special=True) == row["special"], row["text"]
        assert tokenizer.decode(row["plain"]) == row["text"]


def test_smollm2_facts(default_model: Path) -> None:
    tokenizer = load(default_model)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (49152, 1, 2, 0)
    assert tokenizer.eos_ids == {0, 2}
    assert not tokenizer.add_bos
    assert not tokenizer.space_prefix
    assert [tokenizer.token_text(token) for token in (0, 1, 2)] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
