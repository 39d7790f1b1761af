"""What turns a text into ids, built on the `tokenizers` library for the two kinds of byte-pair vocabularies.

Knows what a vocabulary's kinds of tokens mean to the library; does not know which file the vocabulary came from.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from mistralrs.text.pretokenizers import PRETOKENIZERS
from mistralrs.text.vocabulary import BYTE, CONTROL, UNKNOWN, USER_DEFINED, Vocabulary

MAX_PIECE_LENGTH = 512
"""Characters of a token whose merges are derived; trying every cut of a longer one would cost seconds. Real ones have
tens, and a few, of spaces or dashes, 128."""


def byte_level_backend(vocabulary: Vocabulary, pre: str, merges: list[tuple[str, str]]) -> Tokenizer:
    """Merges of bytes spelled as letters, within the words that the row ``pre`` of the pre-tokenizers cuts.

    The library raises an ``Exception`` of no narrower kind when the merges do not fit the vocabulary.
    """
    backend = Tokenizer(models.BPE(_ids(vocabulary), merges, ignore_merges=PRETOKENIZERS[pre].ignore_merges))
    backend.pre_tokenizer = byte_level_cut(pre)
    return _with_added_tokens(backend, vocabulary)


def byte_level_cut(pre: str) -> pre_tokenizers.PreTokenizer:
    """The row ``pre`` of the pre-tokenizers: cuts a text into words and spells their bytes as letters."""
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PRETOKENIZERS[pre].patterns]
    to_letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*splits, to_letters])


def sentence_piece_backend(
    vocabulary: Vocabulary, merges: list[tuple[str, str]], *, squeeze_spaces: bool = False
) -> Tokenizer:
    """Merges of characters, with U+2581 for a space and bytes for characters that no token has.

    ``squeeze_spaces`` drops spaces at both ends of a text and makes one of several. Raises as ``byte_level_backend``.
    """
    unknown = None if vocabulary.unk_id is None else vocabulary.texts[vocabulary.unk_id] or None
    model = models.BPE(_ids(vocabulary), merges, byte_fallback=True, fuse_unk=True, unk_token=unknown)
    backend = Tokenizer(model)
    # Applied to each stretch between control tokens, so that the space comes after every one of them.
    prefix = [normalizers.Prepend("▁")] if vocabulary.space_prefix else []
    squeeze = [normalizers.Replace(Regex(r"\A +|[ ▁]+\z| +(?= )"), "")] if squeeze_spaces else []
    backend.normalizer = normalizers.Sequence([*squeeze, *prefix, normalizers.Replace(" ", "▁")])
    return _with_added_tokens(backend, vocabulary)


def _ids(vocabulary: Vocabulary) -> dict[str, int]:
    return {text: token for token, text in enumerate(vocabulary.texts) if text}


def _with_added_tokens(backend: Tokenizer, vocabulary: Vocabulary) -> Tokenizer:
    """Tokens found in a text before anything else: control tokens, and words that the file's maker added."""

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
    """The merges behind a vocabulary that has scores and no merges, as those of SentencePiece do; most wanted first.

    Such a vocabulary joins whatever two neighbours make the piece of the best score. So each way to cut a piece into
    two pieces is a merge, ranked by the piece's score. ``scores`` has one per token, of which only the order counts.
    """
    kinds = vocabulary.kinds
    skipped = (CONTROL, UNKNOWN, BYTE, USER_DEFINED)
    pieces = {text: token for token, text in enumerate(vocabulary.texts) if kinds[token] not in skipped}
    find = pieces.get
    merges: list[tuple[str, str]] = []
    for piece in sorted(pieces, key=lambda text: -scores[pieces[text]]):
        cuts = []
        for middle in range(1, len(piece)):
            left = find(piece[:middle])
            if left is not None and (right := find(piece[middle:])) is not None:
                cuts.append((left, right, middle))
        cuts.sort()
        merges.extend((piece[:middle], piece[middle:]) for _, _, middle in cuts)
    return merges
