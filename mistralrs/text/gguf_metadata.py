"""Writes the tokenizer section of a GGUF file from a vocabulary; the inverse of `gguf_vocabulary`.

The section holds byte-level merges and the name of a pre-tokenizer, or SentencePiece pieces with scores. Tokenizers of
other kinds are refused by name.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Set
from dataclasses import replace

from tokenizers import Tokenizer, pre_tokenizers

from mistralrs.errors import LoadError
from mistralrs.text.backends import byte_level_pre_tokenizer, derived_merges
from mistralrs.text.pretokenizers import PRETOKENIZERS
from mistralrs.text.vocabulary import (
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
    known_ends,
)

Value = bool | int | str | list[str] | list[int] | list[float]
Merges = list[tuple[str, str]]

PROBE = (
    "It's I'LL they've WE'D don't I'm you're USA's I'mma\n1 12 123 1234 12345 1234567 3.14 1,000,000 x86_64   12\n"
    'Hello, World! (round) [square] {curly} <tag name="v"> a+b=c; x**2 != y_z // C:\\dir #1 $5 50% @me ^ ` ~\n\n\n'
    "  two   three     five\t\ttabs \r\n windows\n  \n \n   behind   \n" + " " * 9 + "nine" + " " * 70 + "seventy\n"
    "Straße naïve café Ünïcödé q\u0303a\u0331 ﬁ ½ ² Ⅷ ① — – … “double” ‘single’ «angle» §5 €10 ©\u00a0nbsp\u3000wide\n"
    "你好，世界。こんにちは、カタカナ。ｱｲｳ １２３ ㄅㄆ 안녕하세요 ㅋㅋ Привет, мир! Γειά σου שלום مرحبا، नमस्ते\n"
    "ไทยได้ Տառ ა\n"
    "camelCase HTTPServer iPhone ALLCAPSword ǅ ªº ʰ 🙂 👍🏽 \u200b -->> ==/n/ ./path/to.txt\n"
    "IMGIMGABCZ <sentinel:12> a.\n\nb?\n c!/\nd    \n\te 12 345 6789 \U0001d400 end  "
)
"""A text that two pre-tokenizers split alike only if they split all texts alike. Composing characters (NFC) leaves it
as it is."""

_PREFIX = "tokenizer.ggml."
_OTHER_ENDS = ("eot", "eom")
_logger = logging.getLogger(__name__)


def gguf_metadata(vocabulary: Vocabulary, backend: Tokenizer, *, ends: Set[int], size: int) -> dict[str, Value]:
    """The metadata's keys and values. ``ends``: tokens that end an answer. ``size``: tokens of the file; padding tokens
    are added to a smaller vocabulary, and the tokens beyond are left out of a larger one.

    Raises LoadError for a tokenizer that such a file cannot hold.
    """
    model = json.loads(backend.to_str())["model"]
    if model["type"] != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise _refusal(f"is {model['type']}, or byte pairs that mark the parts of words; supported: byte pairs alone")
    merges: Merges = [(first, second) for first, second in model["merges"]]
    ends = frozenset(token for token in ends if token < size)
    padded = _padded(_truncated(vocabulary, size), {first + second for first, second in merges}, size)
    section: dict[str, Value] = {
        "tokens": padded.texts,
        "token_type": padded.kinds,
        "add_bos_token": vocabulary.add_bos,
    }
    if vocabulary.byte_level:
        pre = _pre(backend, ignore_merges=bool(model.get("ignore_merges")))
        section |= {"model": "gpt2", "pre": pre, "merges": [" ".join(pair) for pair in merges]}
    else:
        scores = _scores(padded, merges)
        section |= {"model": "llama", "pre": "default", "scores": scores, "add_space_prefix": vocabulary.space_prefix}
    section |= {f"{name}_token_id": token for name, token in _named_ids(padded, ends).items()}
    return {_PREFIX + key: value for key, value in section.items()}


def _refusal(reason: str) -> LoadError:
    hint = "another tokenizer.json or tokenizer.model of the same model, put in its place, may be one that it can hold"
    return LoadError(f"a GGUF file cannot hold this tokenizer: it {reason}", hint=hint)


def _truncated(vocabulary: Vocabulary, size: int) -> Vocabulary:
    """The vocabulary without the tokens from ``size`` on."""
    bos, eos, unk = (
        None if token is None or token >= size else token
        for token in (vocabulary.bos_id, vocabulary.eos_id, vocabulary.unk_id)
    )
    return replace(
        vocabulary,
        texts=vocabulary.texts[:size],
        kinds=vocabulary.kinds[:size],
        bos_id=bos,
        eos_id=eos,
        unk_id=unk,
        end_ids=frozenset(token for token in vocabulary.end_ids if token < size),
        add_bos=vocabulary.add_bos and bos is not None,
        strips={token: strips for token, strips in vocabulary.strips.items() if token < size},
    )


def _padded(vocabulary: Vocabulary, merged: Set[str], size: int) -> Vocabulary:
    """The vocabulary with a text for every id. Added words of spaces that merges give as well become normal tokens,
    because readers of these files search for added words before spaces become U+2581."""
    gap = size - len(vocabulary.texts)
    kinds = [
        NORMAL if kind == USER_DEFINED and "▁" in text and text in merged else kind
        for text, kind in zip(vocabulary.texts, vocabulary.kinds, strict=True)
    ]
    texts = [text or f"[PAD{token}]" for token, text in enumerate([*vocabulary.texts, *[""] * gap])]
    return replace(vocabulary, texts=texts, kinds=[*kinds, *[UNUSED] * gap])


def _pre(backend: Tokenizer, *, ignore_merges: bool) -> str:
    """The name of the pre-tokenizer that splits as this one does."""
    split = None if backend.pre_tokenizer is None else _split_probe(backend.pre_tokenizer)
    for name, row in PRETOKENIZERS.items():
        if row.ignore_merges == ignore_merges and _split_probe(byte_level_pre_tokenizer(name)) == split:
            return name
    rule = "and takes whole tokens before merges" if ignore_merges else "and merges them"
    raise _refusal(f"cuts a text into words {rule} in a way that has no name there")


def _split_probe(pre_tokenizer: pre_tokenizers.PreTokenizer) -> list[str]:
    return [piece for piece, _ in pre_tokenizer.pre_tokenize_str(PROBE)]


def _scores(vocabulary: Vocabulary, merges: Merges) -> list[float]:
    """A score for each token, by which neighbours merge in the order of ``merges``."""
    whole = (UNKNOWN, CONTROL, USER_DEFINED)  # these are found in a text before anything is merged
    live = {text for text, kind in zip(vocabulary.texts, vocabulary.kinds, strict=True) if kind not in whole}
    usable_merges = [pair for pair in merges if live.issuperset((*pair, pair[0] + pair[1]))]
    pieces = [first + second for first, second in usable_merges]
    rank = {piece: place for place, piece in enumerate(dict.fromkeys(pieces))}
    ranks = [rank[piece] for piece in pieces]
    scores = [-float(rank.get(text, len(rank))) for text in vocabulary.texts]
    if ranks != sorted(ranks) or set(derived_merges(vocabulary, scores)) != set(usable_merges):
        raise _refusal("joins pieces by merges that no scores can stand for")
    return scores


def _named_ids(vocabulary: Vocabulary, ends: Set[int]) -> dict[str, int]:
    """Special tokens to name in the file, by purpose. End tokens that readers recognise by their text need no name."""
    named = {"bos": vocabulary.bos_id, "eos": vocabulary.eos_id, "unknown": vocabulary.unk_id}
    others = sorted(ends - known_ends(vocabulary.texts, vocabulary.kinds) - {vocabulary.eos_id})
    named |= dict(zip(_OTHER_ENDS, others, strict=False))
    for token in others[len(_OTHER_ENDS) :]:
        _logger.warning("a GGUF file cannot say that %r ends an answer", vocabulary.texts[token])
    return {name: token for name, token in named.items() if token is not None}
