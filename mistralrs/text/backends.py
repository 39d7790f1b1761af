"""Builds tokenizers of the `tokenizers` library for the two kinds of byte-pair vocabularies."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from mistralrs.text.pretokenizers import PRETOKENIZERS
from mistralrs.text.vocabulary import BYTE, CONTROL, UNKNOWN, USER_DEFINED, Vocabulary

MAX_PIECE_LENGTH = 512
"""Characters of the longest token whose merges are derived; trying every split of a longer one would take seconds. Real
tokens have tens of characters, and a few, of spaces or dashes, 128."""


def byte_level_backend(vocabulary: Vocabulary, pre: str, merges: list[tuple[str, str]]) -> Tokenizer:
    """The backend that merges bytes spelled as letters, within words that the pre-tokenizer ``pre`` splits off.

    Raises the library's ``Exception``, which has no narrower class, when the merges do not fit the vocabulary.
    """
    backend = Tokenizer(models.BPE(_ids(vocabulary), merges, ignore_merges=PRETOKENIZERS[pre].ignore_merges))
    backend.pre_tokenizer = byte_level_pre_tokenizer(pre)
    return _with_added_tokens(backend, vocabulary)


def byte_level_pre_tokenizer(pre: str) -> pre_tokenizers.PreTokenizer:
    """The pre-tokenizer named ``pre``, which splits a text into words and spells their bytes as letters."""
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PRETOKENIZERS[pre].patterns]
    to_letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*splits, to_letters])


def sentence_piece_backend(
    vocabulary: Vocabulary, merges: list[tuple[str, str]], *, squeeze_spaces: bool = False
) -> Tokenizer:
    """The backend that merges characters, with U+2581 for a space and bytes for characters that no token has.

    ``squeeze_spaces`` strips spaces at both ends of a text and joins several to one. Raises as ``byte_level_backend``.
    """
    unknown = None if vocabulary.unk_id is None else vocabulary.texts[vocabulary.unk_id] or None
    model = models.BPE(_ids(vocabulary), merges, byte_fallback=True, fuse_unk=True, unk_token=unknown)
    backend = Tokenizer(model)
    # The library normalizes each stretch between control tokens, so that a space follows every control token.
    prefix = [normalizers.Prepend("▁")] if vocabulary.space_prefix else []
    squeeze = [normalizers.Replace(Regex(r"\A +|[ ▁]+\z| +(?= )"), "")] if squeeze_spaces else []
    backend.normalizer = normalizers.Sequence([*squeeze, *prefix, normalizers.Replace(" ", "▁")])
    return _with_added_tokens(backend, vocabulary)


def _ids(vocabulary: Vocabulary) -> dict[str, int]:
    return {text: token for token, text in enumerate(vocabulary.texts) if text}


def _with_added_tokens(backend: Tokenizer, vocabulary: Vocabulary) -> Tokenizer:
    """Adds the tokens that are found in a text before anything is merged: control tokens and user-defined words."""

    def added(kinds: tuple[int, ...], *, special: bool) -> list[AddedToken]:
        tokens = []
        for token, kind in enumerate(vocabulary.kinds):
            if kind in kinds:
                left, right = vocabulary.strips.get(token, (False, False))
                text = vocabulary.texts[token]
                tokens.append(AddedToken(text, normalized=False, special=special, lstrip=left, rstrip=right))
        return tokens

    backend.add_special_tokens(added((CONTROL, UNKNOWN), special=True))
    backend.add_tokens(added((USER_DEFINED,), special=False))
    return backend


def derived_merges(vocabulary: Vocabulary, scores: Sequence[float]) -> list[tuple[str, str]]:
    """The merges, best first, of a vocabulary that has scores instead, as SentencePiece's have.

    Such a vocabulary joins the two neighbours that give the piece with the best score. Each split of a piece into two
    pieces is therefore a merge, ranked by the piece's score. ``scores`` has one per token, of which only the order
    counts.
    """
    kinds = vocabulary.kinds
    skipped = (CONTROL, UNKNOWN, BYTE, USER_DEFINED)
    pieces = {text: token for token, text in enumerate(vocabulary.texts) if kinds[token] not in skipped}
    find = pieces.get
    merges: list[tuple[str, str]] = []
    for piece in sorted(pieces, key=lambda text: -scores[pieces[text]]):
        splits = []
        for middle in range(1, len(piece)):
            left = find(piece[:middle])
            if left is not None and (right := find(piece[middle:])) is not None:
                splits.append((left, right, middle))
        splits.sort()
        merges.extend((piece[:middle], piece[middle:]) for _, _, middle in splits)
    return merges
