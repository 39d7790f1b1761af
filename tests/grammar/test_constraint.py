"""Masks, acceptance, rollback and forced tokens of a constraint, and many masks at once."""

from __future__ import annotations

import random
from array import array

import pytest

from mistralrs.errors import RequestError
from mistralrs.grammar.constraint import MaskExecutor
from mistralrs.grammar.token_table import TokenTable
from mistralrs.text.tokenizer import Tokenizer
from tests.grammar.walks import PADDING, accepts, allowed, compiled, table, tokenizer
from tests.text.vocabularies import byte_level, fetched, sentence_piece


def ids(text: str) -> list[int]:
    return tokenizer().encode(text, special=False)


def texts(tokens: list[int]) -> set[str]:
    return {table().token_bytes[token].decode("utf-8", "replace") for token in tokens} - {""}


def test_mask_has_the_tokens_that_may_come_next_and_no_padding() -> None:
    constraint = compiled("regex", "he(ll)?o").constraint()
    assert texts(allowed(constraint)) == {"h", "he", "hell"}
    assert max(allowed(constraint)) < tokenizer().vocab_size
    assert constraint.accept(ids("hell")) == 1
    assert texts(allowed(constraint)) == {"o"}


def test_everything_allows_no_control_token_and_no_padding() -> None:
    tokens = allowed(compiled("regex", "(?s:.)*").constraint())
    controls = {token for token in range(tokenizer().vocab_size) if not tokenizer().token_bytes(token)}
    assert set(tokens) & controls == set(table().eos_ids)
    assert max(tokens) < tokenizer().vocab_size < tokenizer().vocab_size + PADDING == table().vocab_size


def test_every_end_token_is_allowed_exactly_where_the_grammar_accepts() -> None:
    assert len(table().eos_ids) == 2
    for end in table().eos_ids:
        constraint = compiled("regex", "a?").constraint()
        assert constraint.is_accepting
        assert set(allowed(constraint)) >= set(table().eos_ids)
        assert constraint.accept([end]) == 1
        assert constraint.is_accepting
        assert constraint.must_end
        assert constraint.accept(ids("a")) == 0
    constraint = compiled("regex", "ab").constraint()
    assert not constraint.is_accepting
    assert constraint.accept([table().eos_ids[0]]) == 0
    assert constraint.accept([*ids("a"), table().eos_ids[0]]) == 1
    assert not set(allowed(constraint)) & set(table().eos_ids)


def test_must_end_where_nothing_else_may_follow() -> None:
    constraint = compiled("choice", '["a", "ab"]').constraint()
    constraint.accept(ids("a"))
    assert (constraint.is_accepting, constraint.must_end) == (True, False)
    constraint.accept(ids("b"))
    assert (constraint.is_accepting, constraint.must_end) == (True, True)
    assert allowed(constraint) == list(table().eos_ids)


def test_accept_stops_at_the_first_token_that_is_not_allowed() -> None:
    constraint = compiled("regex", "abc").constraint()
    assert constraint.accept(ids("abx")) == 2
    assert texts(allowed(constraint)) == {"c"}


@pytest.mark.parametrize("seed", range(5))
def test_rollback_restores_every_mask(seed: int) -> None:
    rng = random.Random(seed)
    constraint = compiled("json_schema", '{"type": "object", "additionalProperties": {"type": "integer"}}').constraint()
    masks = [allowed(constraint)]
    for _ in range(30):
        token = rng.choice(masks[-1])
        assert constraint.accept([token]) == 1
        if token in table().eos_ids:
            break
        masks.append(allowed(constraint))
    else:
        token = None
    count = 0 if token not in table().eos_ids else 1
    constraint.rollback(count)
    for mask in reversed(masks):
        assert allowed(constraint) == mask
        if mask is not masks[0]:
            constraint.rollback(1)
    with pytest.raises(ValueError, match="fewer"):
        constraint.rollback(1)


def test_forced_tokens_are_those_of_the_tokenizer() -> None:
    constraint = compiled("regex", "hello( w)?").constraint()
    forced = constraint.forced_tokens()
    assert forced == ids("hello")[: len(forced)]
    assert len(forced) >= 1
    assert constraint.accept(forced) == len(forced)
    assert compiled("regex", "a|b").constraint().forced_tokens() == []


def test_copies_move_apart() -> None:
    constraint = compiled("regex", "ab|ac").constraint()
    constraint.accept(ids("a"))
    other = constraint.copy()
    assert other.accept(ids("c")) == 1
    assert constraint.accept(ids("b")) == 1


def test_mask_checks_the_length_of_its_buffer() -> None:
    constraint = compiled("regex", "a").constraint()
    with pytest.raises(ValueError, match="bytes"):
        constraint.mask(array("i", [0]) * (table().mask_words + 1))
    with pytest.raises(ValueError, match="writable"):
        constraint.mask(memoryview(bytes(4 * table().mask_words)))


def test_masks_of_many_answers_equal_those_of_each() -> None:
    grammars = [compiled("regex", pattern) for pattern in ("a+", "b|c", "(?s:.)*", "hello")]
    constraints = [grammar.constraint() for grammar in grammars]
    rows = array("i", [0]) * (table().mask_words * (len(constraints) + 1))
    order = [3, 0, 4, 1]
    MaskExecutor(2).masks(list(zip(constraints, order, strict=True)), rows)
    for constraint, row in zip(constraints, order, strict=True):
        alone = array("i", [0]) * table().mask_words
        constraint.mask(alone)
        assert rows[row * table().mask_words : (row + 1) * table().mask_words] == alone
    assert not any(rows[2 * table().mask_words : 3 * table().mask_words])


def test_masks_behind_draft_tokens_equal_those_after_accepting_them() -> None:
    constraint = compiled("regex", "abc+").constraint()
    drafts = ids("abz")
    words = table().mask_words
    rows = array("i", [0]) * (words * 5)
    MaskExecutor(2).masks_with_drafts([(constraint, 1, drafts)], rows)
    for number in range(3):
        expected = constraint.copy()
        assert expected.accept(drafts[:number]) == number
        alone = array("i", [0]) * words
        expected.mask(alone)
        assert rows[(1 + number) * words : (2 + number) * words] == alone
    assert not any(rows[:words])
    assert texts(allowed(constraint)) == {"a"}
    with pytest.raises(ValueError, match="do not fit"):
        MaskExecutor(2).masks_with_drafts([(constraint, 2, drafts)], rows)


def test_an_answer_that_cannot_be_completed_fails_by_name() -> None:
    constraint = compiled("lark", "start: A | B C\nA: /a/\nB: /b/\nC: /x/ & /y/").constraint()
    assert constraint.accept(ids("b")) == 1
    with pytest.raises(RequestError, match="no answer that begins like this") as caught:
        allowed(constraint)
    assert caught.value.code == "grammar_failed"


def test_a_named_control_token_is_allowed_where_the_grammar_has_it() -> None:
    constraint = compiled("lark", 'start: "a" <|im_sep|> "b"').constraint()
    assert constraint.accept(ids("a")) == 1
    assert [tokenizer().token_text(token) for token in allowed(constraint)] == ["<|im_sep|>"]


def test_a_vocabulary_without_an_end_token_has_no_constraints() -> None:
    plain = Tokenizer.from_gguf(byte_level())
    plain.eos_ids = frozenset()
    with pytest.raises(RequestError, match="no end token"):
        TokenTable(plain)


@pytest.mark.parametrize("text", ["hello w", " hello", "é", "", "\n", "a b  c"])
def test_tokens_of_a_text_join_to_it(text: str) -> None:
    for tiny in (table(), TokenTable(Tokenizer.from_gguf(sentence_piece()))):
        tokens = tiny.tokens_of(text.encode())
        joined = b"".join(tiny.token_bytes[token] for token in tokens)
        assert text.encode().startswith(joined)
        assert tiny is not table() or joined == text.encode()
    half = "é".encode()[:1]
    assert [table().token_bytes[token] for token in table().tokens_of(half)] == [half]


def test_a_sentencepiece_vocabulary_forces_its_own_tokens() -> None:
    path = fetched("ggml-vocab-llama-spm.gguf")
    import gguf

    reader = gguf.GGUFReader(path)
    spm = Tokenizer.from_gguf({name: field.contents() for name, field in reader.fields.items()})
    tokens = TokenTable(spm)
    for text in ("hello world", '{"name":', "a", " and"):
        found = tokens.tokens_of(text.encode())
        assert b"".join(tokens.token_bytes[token] for token in found) == text.encode()
    assert len(tokens.tokens_of(b"hello world")) <= 3


def test_accepts_is_a_fair_walk() -> None:
    assert accepts(compiled("regex", "hello|help"), "hello")
    assert not accepts(compiled("regex", "hello|help"), "hel")
