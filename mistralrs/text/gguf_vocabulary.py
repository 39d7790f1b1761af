"""Reads and checks the tokenizer section of a GGUF file, with llama.cpp's defaults for missing keys."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from itertools import repeat
from typing import TypeVar

from tokenizers import Tokenizer

from mistralrs.errors import LoadError
from mistralrs.text.backends import MAX_PIECE_LENGTH, byte_level_backend, derived_merges, sentence_piece_backend
from mistralrs.text.native_errors import native_errors
from mistralrs.text.pretokenizers import PRETOKENIZERS
from mistralrs.text.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, Vocabulary, known_ends

_HINT = "the file's tokenizer is damaged or of an unknown kind; --tokenizer-json FILE takes another one"
_PREFIX = "tokenizer.ggml."

Item = TypeVar("Item")
_logger = logging.getLogger(__name__)


def read_gguf_vocabulary(metadata: Mapping[str, object]) -> tuple[Vocabulary, Tokenizer]:
    """The vocabulary, and the backend that encodes with it.

    Raises LoadError that names the key when one is missing, of a wrong type, out of range or contradicts another.
    """
    model = _text(metadata, "model")
    if model not in ("gpt2", "llama"):
        raise LoadError(f"the tokenizer model {model!r} is not supported; supported: gpt2, llama", hint=_HINT)
    pre = _pre(metadata) if model == "gpt2" else "default"
    vocabulary = _vocabulary(metadata, sentence_piece=model == "llama", add_bos=PRETOKENIZERS[pre].add_bos)
    merges = _merges(metadata) if model == "gpt2" else derived_merges(vocabulary, _scores(metadata, vocabulary.texts))
    with native_errors(lambda message: LoadError(f"the tokenizer cannot be built: {message}", hint=_HINT)):
        if model == "gpt2":
            return vocabulary, byte_level_backend(vocabulary, pre, merges)
        return vocabulary, sentence_piece_backend(vocabulary, merges)


def _vocabulary(metadata: Mapping[str, object], *, sentence_piece: bool, add_bos: bool) -> Vocabulary:
    texts = _texts(metadata)
    kinds = _kinds(metadata, len(texts))
    ids = _named_ids(metadata, len(texts))
    if sentence_piece:
        # Old files do not name these tokens; their ids are the same in all such vocabularies.
        for name, default_id, kind in (("unknown", 0, UNKNOWN), ("bos", 1, CONTROL), ("eos", 2, CONTROL)):
            if default_id < len(kinds) and kinds[default_id] == kind:
                ids.setdefault(name, default_id)
    ends = known_ends(texts, kinds).union(ids[name] for name in ("eos", "eot", "eom") if name in ids)
    for token in ends.union(ids[name] for name in ("bos",) if name in ids):
        kinds[token] = CONTROL  # its use decides, not the file's type
    add_bos = _flag(metadata, "add_bos_token", default=sentence_piece or add_bos)
    return Vocabulary(
        texts=texts,
        kinds=kinds,
        byte_level=not sentence_piece,
        bos_id=ids.get("bos"),
        eos_id=ids.get("eos"),
        unk_id=ids.get("unknown"),
        end_ids=frozenset(ends),
        add_bos=add_bos and "bos" in ids,
        space_prefix=sentence_piece and _flag(metadata, "add_space_prefix", default=True),
    )


def _error(key: str, reason: str) -> LoadError:
    return LoadError(f"the tokenizer's metadata key {_PREFIX + key!r} {reason}", hint=_HINT)


def _text(metadata: Mapping[str, object], key: str) -> str:
    value = metadata.get(_PREFIX + key)
    if not isinstance(value, str):
        raise _error(key, "is missing" if value is None else f"is a {type(value).__name__}, expected a text")
    return value


def _flag(metadata: Mapping[str, object], key: str, *, default: bool) -> bool:
    value = metadata.get(_PREFIX + key, default)
    if not isinstance(value, bool):
        raise _error(key, f"is a {type(value).__name__}, expected true or false")
    return value


def _list(
    metadata: Mapping[str, object], key: str, *, of: tuple[type[Item], ...], length: int | None = None
) -> list[Item]:
    value = metadata.get(_PREFIX + key)
    if not isinstance(value, list):
        raise _error(key, "is missing" if value is None else f"is a {type(value).__name__}, expected a list")
    if length is not None and len(value) != length:
        raise _error(key, f"has {len(value)} entries for {length} tokens")
    unexpected = set(map(type, value)).difference(of)
    if unexpected:
        expected = " or ".join(kind.__name__ for kind in of)
        raise _error(key, f"holds a {unexpected.pop().__name__}, expected only {expected}")
    return value


def _texts(metadata: Mapping[str, object]) -> list[str]:
    key = "tokens"
    texts: list[str] = _list(metadata, key, of=(str,))
    if not texts:
        raise _error(key, "is empty")
    seen = set(texts)
    if len(seen.difference([""])) != sum(map(bool, texts)):
        raise _error(key, "has the same token twice")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise _error(key, "holds a text that is not Unicode") from error
    return texts


def _kinds(metadata: Mapping[str, object], count: int) -> list[int]:
    key = "token_type"
    if _PREFIX + key not in metadata:
        return [NORMAL] * count
    kinds: list[int] = _list(metadata, key, of=(int,), length=count)
    unexpected = set(kinds).difference(range(BYTE + 1))
    if unexpected:
        raise _error(key, f"holds the unknown type {unexpected.pop()}")
    return list(kinds)


def _scores(metadata: Mapping[str, object], texts: list[str]) -> list[float]:
    key = "scores"
    scores: list[float] = _list(metadata, key, of=(float, int), length=len(texts))
    if not all(map(math.isfinite, scores)):
        raise _error(key, "holds a score that is not finite")
    longest = max(map(len, texts))
    if longest > MAX_PIECE_LENGTH:
        raise _error("tokens", f"has a token of {longest} characters; more than {MAX_PIECE_LENGTH} are refused")
    return scores


def _merges(metadata: Mapping[str, object]) -> list[tuple[str, str]]:
    key = "merges"
    lines = _list(metadata, key, of=(str,))
    if set(map(str.count, lines, repeat(" "))) - {1}:
        bad_line = next(line for line in lines if line.count(" ") != 1)
        raise _error(key, f"holds {bad_line[:80]!r}, expected two pieces with a space between")
    pieces = iter(" ".join(lines).split(" ") if lines else ())
    return list(zip(pieces, pieces, strict=True))


def _named_ids(metadata: Mapping[str, object], count: int) -> dict[str, int]:
    """Ids of the special tokens that the file names, by purpose."""
    ids = {}
    for name in ("bos", "eos", "eot", "eom", "unknown"):
        key = f"{name}_token_id"
        value = metadata.get(_PREFIX + key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise _error(key, f"is a {type(value).__name__}, expected a token id")
        if not 0 <= value < count:
            raise _error(key, f"is {value}, outside the vocabulary of {count} tokens")
        ids[name] = value
    return ids


def _pre(metadata: Mapping[str, object]) -> str:
    if _PREFIX + "pre" not in metadata:
        _logger.warning("the file does not name its pre-tokenizer; 'default' is used, and answers may be worse")
        return "default"
    pre = _text(metadata, "pre")
    if pre not in PRETOKENIZERS:
        known = ", ".join(sorted(PRETOKENIZERS))
        raise LoadError(f"the pre-tokenizer {pre!r} is unknown; known: {known}", hint=_HINT)
    return pre
