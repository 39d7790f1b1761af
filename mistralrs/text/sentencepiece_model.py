"""Reads a SentencePiece `tokenizer.model` of the type BPE.

Field numbers are those of SentencePiece's `sentencepiece_model.proto`. Settings that the backend cannot compute are
refused by name.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field

from tokenizers import Tokenizer

from mistralrs.errors import LoadError
from mistralrs.text.backends import MAX_PIECE_LENGTH, derived_merges, sentence_piece_backend
from mistralrs.text.native_errors import native_errors
from mistralrs.text.protobuf import WireError, fields, signed
from mistralrs.text.tokenizer_config import TokenizerConfig
from mistralrs.text.vocabulary import (
    BYTE,
    CONTROL,
    MAX_TOKENS,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
    known_ends,
)

HINT = "use the tokenizer.json of the same model: --tokenizer-json FILE"

# Field numbers of the message, of a piece, and of the settings of trainer and normalizer.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE_TEXT, _PIECE_SCORE, _PIECE_KIND = 1, 2, 3
_MODEL_TYPE, _SPACE_AS_SUFFIX, _BYTE_FALLBACK, _BOS_TEXT, _EOS_TEXT = 3, 24, 35, 46, 47
_RULES, _CHARACTER_MAP, _DUMMY_PREFIX, _EXTRA_SPACES, _ESCAPE_SPACES = 1, 2, 3, 4, 5

_BPE = 2
_MODEL_TYPES = {1: "unigram", _BPE: "BPE", 3: "word", 4: "char"}


@dataclass(slots=True)
class _Model:
    """The content of the file, with SentencePiece's defaults for missing fields."""

    texts: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    model_type: int = 1
    space_as_suffix: bool = False
    byte_fallback: bool = False
    bos: str = "<s>"
    eos: str = "</s>"
    rules: str = ""
    character_map: bool = False
    dummy_prefix: bool = True
    squeeze_spaces: bool = True
    escape_spaces: bool = True


def read_sentencepiece_vocabulary(data: bytes, name: str, config: TokenizerConfig) -> tuple[Vocabulary, Tokenizer]:
    """The vocabulary, and the backend that encodes with it. ``name`` is the file's, for errors; ``config`` takes
    priority.

    Raises LoadError when the file is broken, or of a kind that is not supported.
    """
    try:
        model = _read(memoryview(data))
    except WireError as error:
        raise LoadError(f"{name} is not a SentencePiece model: {error}", hint=HINT) from error
    reason = _unsupported(model) or _contradiction(model)
    if reason is not None:
        raise LoadError(f"{name} {reason}", hint=HINT)
    vocabulary = _vocabulary(model, name, config)
    scores = model.scores + [0.0] * (len(vocabulary.texts) - len(model.scores))
    longest = max(map(len, vocabulary.texts))
    if longest > MAX_PIECE_LENGTH:
        raise LoadError(f"{name} has a token of {longest} characters; more than {MAX_PIECE_LENGTH} are refused")
    with native_errors(lambda message: LoadError(f"{name} cannot be used: {message}", hint=HINT)):
        merges = derived_merges(vocabulary, scores)
        return vocabulary, sentence_piece_backend(vocabulary, merges, squeeze_spaces=model.squeeze_spaces)


def _read(data: memoryview) -> _Model:
    model = _Model()
    for number, value in fields(data):
        if number == _PIECES:
            _read_piece(_bytes(value, "a piece"), model)
        elif number == _TRAINER:
            _read_trainer(_bytes(value, "the trainer's settings"), model)
        elif number == _NORMALIZER:
            _read_normalizer(_bytes(value, "the normalizer's settings"), model)
    return model


def _read_piece(message: memoryview, model: _Model) -> None:
    text, score, kind = "", 0.0, NORMAL
    place = f"piece {len(model.texts)}"
    for number, value in fields(message):
        if number == _PIECE_TEXT:
            text = _text(value, place)
        elif number == _PIECE_SCORE:
            score = _float(value, place)
        elif number == _PIECE_KIND:
            kind = _int(value, place)
    if not text:
        raise WireError(f"{place} has no text")
    if not NORMAL <= kind <= BYTE:
        raise WireError(f"{place} is of the unknown type {kind}")
    model.texts.append(text)
    model.scores.append(score)
    model.kinds.append(kind)


def _read_trainer(message: memoryview, model: _Model) -> None:
    place = "the trainer's settings"
    for number, value in fields(message):
        if number == _MODEL_TYPE:
            model.model_type = _int(value, place)
        elif number == _SPACE_AS_SUFFIX:
            model.space_as_suffix = bool(_int(value, place))
        elif number == _BYTE_FALLBACK:
            model.byte_fallback = bool(_int(value, place))
        elif number == _BOS_TEXT:
            model.bos = _text(value, place)
        elif number == _EOS_TEXT:
            model.eos = _text(value, place)


def _read_normalizer(message: memoryview, model: _Model) -> None:
    place = "the normalizer's settings"
    for number, value in fields(message):
        if number == _RULES:
            model.rules = _text(value, place)
        elif number == _CHARACTER_MAP:
            model.character_map = len(_bytes(value, place)) > 0
        elif number == _DUMMY_PREFIX:
            model.dummy_prefix = bool(_int(value, place))
        elif number == _EXTRA_SPACES:
            model.squeeze_spaces = bool(_int(value, place))
        elif number == _ESCAPE_SPACES:
            model.escape_spaces = bool(_int(value, place))


def _unsupported(model: _Model) -> str | None:
    """The reason why the model is not supported, by its first unsupported setting; None if it is supported."""
    if not model.texts:
        return "is not a SentencePiece model: it has no pieces"
    if model.model_type != _BPE:
        kind = _MODEL_TYPES.get(model.model_type, str(model.model_type))
        return f"is a SentencePiece model of the type {kind}; supported: BPE"
    if model.character_map:
        return f"replaces characters by the rules {model.rules!r}; supported: identity"
    if model.space_as_suffix:
        return "writes spaces behind words, which is not supported"
    if not model.escape_spaces:
        return "does not write spaces as U+2581, which is not supported"
    return None


def _contradiction(model: _Model) -> str | None:
    if len(model.texts) > MAX_TOKENS:
        return f"has {len(model.texts)} pieces; more than {MAX_TOKENS} are refused"
    if len(set(model.texts)) != len(model.texts):
        return "has the same piece twice"
    if model.kinds.count(UNKNOWN) != 1:
        return f"has {model.kinds.count(UNKNOWN)} pieces for what is unknown, expected one"
    if model.byte_fallback != (BYTE in model.kinds):
        return "says byte_fallback and has no bytes" if model.byte_fallback else "has bytes and no byte_fallback"
    return None


def _vocabulary(model: _Model, name: str, config: TokenizerConfig) -> Vocabulary:
    texts, kinds = _with_added(model, config)
    ids = {text: token for token, text in enumerate(texts) if text}
    if len(ids) != sum(map(bool, texts)):
        raise LoadError(f"{name}: an added token has the text of another one", hint=HINT)
    bos, eos = (_special(ids, kinds, *texts) for texts in ((config.bos, model.bos), (config.eos, model.eos)))
    ends = known_ends(texts, kinds).union([] if eos is None else [eos])
    for token in ends.union([] if bos is None else [bos]):
        kinds[token] = CONTROL  # its use decides, not the file's type
    return Vocabulary(
        texts=texts,
        kinds=kinds,
        byte_level=False,
        bos_id=bos,
        eos_id=min(ends, default=None) if eos is None else eos,
        unk_id=model.kinds.index(UNKNOWN),
        end_ids=frozenset(ends),
        add_bos=bos is not None and config.add_bos is not False,
        space_prefix=model.dummy_prefix if config.space_prefix is None else config.space_prefix,
        strips={token: added.strips for token, added in config.added.items() if any(added.strips)},
    )


def _with_added(model: _Model, config: TokenizerConfig) -> tuple[list[str], list[int]]:
    """Texts and kinds by id, added tokens included; unnamed ids between these have an empty text."""
    gap = max(config.added, default=-1) + 1 - len(model.texts)
    texts, kinds = model.texts + [""] * gap, model.kinds + [UNUSED] * gap
    for token, added in config.added.items():
        texts[token] = added.text
        if kinds[token] not in (UNKNOWN, BYTE, CONTROL):
            kinds[token] = CONTROL if added.control else USER_DEFINED
    # Added words are searched before spaces become U+2581.
    return [
        text.replace("▁", " ") if kind == USER_DEFINED else text for text, kind in zip(texts, kinds, strict=True)
    ], kinds


def _special(ids: dict[str, int], kinds: list[int], given: str | None, own: str) -> int | None:
    """The token with the configured text, or else the one with the model's own text if that is a control token."""
    if given is not None and given in ids:
        return ids[given]
    token = ids.get(own)
    return token if token is not None and kinds[token] == CONTROL else None


def _bytes(value: int | memoryview, place: str) -> memoryview:
    if isinstance(value, int):
        raise WireError(f"{place}: a number where bytes are expected")
    return value


def _int(value: int | memoryview, place: str) -> int:
    if not isinstance(value, int):
        raise WireError(f"{place}: bytes where a number is expected")
    return signed(value)


def _text(value: int | memoryview, place: str) -> str:
    try:
        return str(_bytes(value, place), "utf-8")
    except UnicodeDecodeError as error:
        raise WireError(f"{place}: a text is not UTF-8") from error


def _float(value: int | memoryview, place: str) -> float:
    data = _bytes(value, place)
    if len(data) != 4:
        raise WireError(f"{place}: {len(data)} bytes where a float32 is expected")
    score: float = struct.unpack("<f", data)[0]
    if not math.isfinite(score):
        raise WireError(f"{place}: a score is not finite")
    return score
