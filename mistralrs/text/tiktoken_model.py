"""Reads a `tokenizer.model` in tiktoken's format, as Meta ships Llama 3: a line for each token with its bytes in base64
and its rank.

The file has neither special tokens, which come from `tokenizer_config.json`, nor a pre-tokenizer, which is known by the
number of tokens.
"""

from __future__ import annotations

import base64
import binascii
import re

from tokenizers import Tokenizer

from mistralrs.errors import LoadError
from mistralrs.text.backends import MAX_PIECE_LENGTH, byte_level_backend, derived_merges
from mistralrs.text.native_errors import native_errors
from mistralrs.text.pretokenizers import PRETOKENIZERS
from mistralrs.text.tokenizer_config import TokenizerConfig
from mistralrs.text.vocabulary import BYTE_OF_LETTER, CONTROL, NORMAL, UNUSED, USER_DEFINED, Vocabulary, known_ends

HINT = "use the tokenizer.json of the same model: --tokenizer-json FILE"

PRETOKENIZER_BY_SIZE = {128_000: "llama-bpe"}
"""Pre-tokenizers of the known vocabularies in this format, by their number of tokens: Llama 3's."""

_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} [0-9]{1,9}")
_LETTERS = str.maketrans({chr(byte): letter for letter, byte in BYTE_OF_LETTER.items()})


def is_tiktoken(data: bytes) -> bool:
    """Whether a `tokenizer.model` is of this format, by its first line."""
    return _LINE.fullmatch(data[:4096].split(b"\n", 1)[0].rstrip(b"\r")) is not None


def read_tiktoken_vocabulary(data: bytes, name: str, config: TokenizerConfig) -> tuple[Vocabulary, Tokenizer]:
    """The vocabulary, and the backend that encodes with it. ``name`` is the file's, for errors.

    Raises LoadError when the file is broken, of an unknown size, or ``config`` names no special tokens for it.
    """
    texts = _texts(data, name)
    pre = PRETOKENIZER_BY_SIZE.get(len(texts))
    if pre is None:
        known = ", ".join(map(str, PRETOKENIZER_BY_SIZE))
        raise LoadError(f"{name} has {len(texts)} tokens in tiktoken's format; known vocabularies: {known}", hint=HINT)
    ranks = [-float(token) for token in range(len(texts))]
    vocabulary = _vocabulary(texts, name, config, add_bos=PRETOKENIZERS[pre].add_bos)
    ranks += [0.0] * (len(vocabulary.texts) - len(ranks))
    with native_errors(lambda message: LoadError(f"{name} cannot be used: {message}", hint=HINT)):
        return vocabulary, byte_level_backend(vocabulary, pre, derived_merges(vocabulary, ranks))


def _texts(data: bytes, name: str) -> list[str]:
    """Texts of tokens by rank, each byte spelled as its letter."""
    texts: dict[int, str] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not _LINE.fullmatch(line):
            raise LoadError(f"{name}, line {number}: expected base64, a space and a rank", hint=HINT)
        encoded, rank = line.split(b" ")
        try:
            token = base64.b64decode(encoded, validate=True)
        except binascii.Error as error:
            raise LoadError(f"{name}, line {number}: {error}", hint=HINT) from error
        if int(rank) in texts or not 0 < len(token) <= MAX_PIECE_LENGTH:
            raise LoadError(f"{name}, line {number}: a rank twice, or a token that is empty or too long", hint=HINT)
        texts[int(rank)] = token.decode("latin-1").translate(_LETTERS)
    if max(texts, default=-1) != len(texts) - 1 or len(set(texts.values())) != len(texts):
        raise LoadError(f"{name}: ranks with gaps between them, or the same token twice", hint=HINT)
    if not BYTE_OF_LETTER.keys() <= set(texts.values()):
        raise LoadError(f"{name} does not have a token for every byte", hint=HINT)
    return [texts[rank] for rank in range(len(texts))]


def _vocabulary(texts: list[str], name: str, config: TokenizerConfig, *, add_bos: bool) -> Vocabulary:
    count = len(texts)
    if not any(token >= count for token in config.added):
        raise LoadError(f"{name} has no special tokens, and no tokenizer_config.json names them", hint=HINT)
    gap = max(config.added) + 1 - count
    texts, kinds = texts + [""] * gap, [NORMAL] * count + [UNUSED] * gap
    for token, added in config.added.items():
        if token < count:
            raise LoadError(f"{name}: the added token {added.text!r} has the id of another one, {token}", hint=HINT)
        texts[token], kinds[token] = added.text, CONTROL if added.control else USER_DEFINED
    ids = {text: token for token, text in enumerate(texts) if text}
    if len(ids) != sum(map(bool, texts)):
        raise LoadError(f"{name}: an added token has the text of another one", hint=HINT)
    bos, eos = (ids.get(text) if text is not None else None for text in (config.bos, config.eos))
    ends = known_ends(texts, kinds).union([] if eos is None else [eos])
    for token in ends.union([] if bos is None else [bos]):
        kinds[token] = CONTROL  # its use decides, not the file's type
    return Vocabulary(
        texts=texts,
        kinds=kinds,
        byte_level=True,
        bos_id=bos,
        eos_id=min(ends, default=None) if eos is None else eos,
        unk_id=None,
        end_ids=frozenset(ends),
        add_bos=bos is not None and (add_bos if config.add_bos is None else config.add_bos),
        space_prefix=False,
        strips={token: added.strips for token, added in config.added.items() if any(added.strips)},
    )
