"""The files beside a tokenizer, in the formats of all versions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistralrs.errors import LoadError
from mistralrs.text.tokenizer_config import AddedToken, TokenizerConfig, read_tokenizer_config


@pytest.mark.parametrize("token", ["</s>", {"content": "</s>", "lstrip": False, "__type": "AddedToken"}])
def test_a_token_is_a_text_or_an_object(token: object) -> None:
    config = read_tokenizer_config({"bos_token": token, "eos_token": token, "add_bos_token": True})
    assert config == TokenizerConfig(bos="</s>", eos="</s>", add_bos=True)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"bos_token": None, "eos_token": 3, "add_bos_token": "yes", "added_tokens_decoder": []},
        {"eos_token": {}, "bos_token": {"content": None}, "additional_special_tokens": 7},
        {"eos_token": "", "bos_token": "\ud800"},
    ],
)
def test_missing_and_unexpected_values_are_ignored(config: dict[str, object]) -> None:
    assert read_tokenizer_config(config) == TokenizerConfig()


def test_older_files_fill_gaps_of_the_newer_one() -> None:
    config = read_tokenizer_config(
        {"eos_token": "<|im_end|>"},
        special_tokens_map={
            "bos_token": {"content": "<s>"},
            "eos_token": "</s>",
            "additional_special_tokens": ["<|user|>", {"content": "<|tool|>"}],
        },
        added_tokens={"<|user|>": 10, "<|tool|>": 11, "<|im_end|>": 12, "word": 13},
    )
    assert (config.bos, config.eos) == ("<s>", "<|im_end|>")
    assert {token: added.control for token, added in config.added.items()} == {10: True, 11: True, 12: True, 13: False}


def test_the_decoder_has_whether_a_token_strips_whitespace() -> None:
    decoder = {
        "5": {"content": "<a>", "special": True, "rstrip": True},
        "6": {"content": "b", "special": False, "lstrip": True},
        "7": {"content": "<c>", "special": False},
    }
    config = read_tokenizer_config(
        {"added_tokens_decoder": decoder, "extra_special_tokens": {"c_token": "<c>"}}, added_tokens={"old": 5}
    )
    assert config.added == {
        5: AddedToken("<a>", control=True, strips=(False, True)),
        6: AddedToken("b", control=False, strips=(True, False)),
        7: AddedToken("<c>", control=True),
    }


@pytest.mark.parametrize("token", ["-1", "x", "", "99999999999", "4194304", "٣", True, None, 1.5])
def test_ids_that_no_vocabulary_has_are_refused(token: Any) -> None:
    with pytest.raises(LoadError, match="is not a token id below"):
        read_tokenizer_config({"added_tokens_decoder": {token: {"content": "x"}}})
    with pytest.raises(LoadError, match="is not a token id below"):
        read_tokenizer_config({}, added_tokens={"x": token})


def test_an_added_token_has_a_text() -> None:
    with pytest.raises(LoadError, match=r"tokenizer_config\.json: an added token has no text"):
        read_tokenizer_config({"added_tokens_decoder": {"3": {"special": True}}})
    with pytest.raises(LoadError, match=r"added_tokens\.json: an added token has no text"):
        read_tokenizer_config({}, added_tokens={"": 3})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["content", "1", "x"]), inner),
)
KEYS = ["bos_token", "eos_token", "add_bos_token", "added_tokens_decoder"]
LISTS = ["additional_special_tokens", "extra_special_tokens"]


@given(config=st.dictionaries(st.sampled_from(KEYS + LISTS), JSON), added=st.dictionaries(st.text(max_size=2), JSON))
def test_anything_is_read_or_refused(config: dict[str, object], added: dict[str, object]) -> None:
    try:
        read = read_tokenizer_config(config, special_tokens_map=config, added_tokens=added)
    except LoadError:
        return
    assert all(type(token) is int and entry.text for token, entry in read.added.items())
