"""The components of a tokenizer of the `tokenizers` library, and the length of text up to which they are fast.

The library panics on some components, and a regular expression may take any time for a short text; nothing could stop
it in this process. A tokenizer therefore runs here only if all its components are known to take time proportional to
the text, and only on texts that take a fraction of a second.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers

from mistralrs.text.pretokenizers import PRETOKENIZERS

QUICK_BYTES = 128 << 10
"""Bytes of the longest text that is tokenized in this process; it takes 0.2 s if every byte is a token."""
QUICK_BYTES_SQUARED = 4 << 10
"""The same for a pattern that looks ahead over a run of characters from each of them, which takes squared time."""
MAX_INSERTED = 64
"""Characters that a normalizer may write for one."""
SPACE = "▁"
"""U+2581 stands for a space in the vocabularies of SentencePiece."""
SQUEEZE = r"\A +|[ ▁]+\z| +(?= )"
"""Matches the spaces that ``sentence_piece_backend`` drops."""

_SQUARED = {
    pattern
    for name in ("tiny_aya", "deepseek-llm")
    for pattern in PRETOKENIZERS[name].patterns
    if pattern.startswith((r"\d{1,3}(?=", r"\s+$"))
}
_LINEAR = {pattern for row in PRETOKENIZERS.values() for pattern in row.patterns} - _SQUARED
_NORMALIZERS = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "StripAccents", "ByteLevel"}
_PRE_TOKENIZERS = {"ByteLevel", "Metaspace", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit"}
_DECODERS = {"ByteLevel", "ByteFallback", "Fuse", "Strip", "Metaspace"}
_POST_PROCESSORS = {"ByteLevel", "BertProcessing", "RobertaProcessing"}
_LISTS = ("normalizers", "pretokenizers", "processors", "decoders")
"""Keys of the list in a sequence of components, in the order of the fields of ``Components``."""
_MAX_DEPTH = 8

Part = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Components:
    """The components as `tokenizer.json` has them, in the order of application, with sequences flattened."""

    model: str
    normalizers: tuple[Part, ...]
    pre_tokenizers: tuple[Part, ...]
    post_processors: tuple[Part, ...]
    decoders: tuple[Part, ...]

    @classmethod
    def of_json(cls, fields: Mapping[str, Any]) -> Components:
        """The components of a parsed `tokenizer.json`, whose content is not checked yet."""
        names = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
        model = fields.get("model")
        kind = model.get("type", "BPE" if "merges" in model else "") if isinstance(model, dict) else ""
        return cls(str(kind), *(tuple(_flat(fields.get(name), key)) for name, key in zip(names, _LISTS, strict=True)))

    @classmethod
    def of_backend(cls, backend: tokenizers.Tokenizer) -> Components:
        parts = (backend.normalizer, backend.pre_tokenizer, backend.post_processor, backend.decoder)
        states = (None if part is None else json.loads(part.__getstate__()) for part in parts)
        kind = type(backend.model).__name__
        return cls(kind, *(tuple(_flat(state, key)) for state, key in zip(states, _LISTS, strict=True)))

    @property
    def quick_bytes(self) -> int:
        """Bytes of UTF-8 up to which a text is tokenized fast and without a panic; 0 if a component is unknown."""
        is_known = (
            self.model == "BPE"
            and all(map(_is_known_normalizer, self.normalizers))
            and all(map(_is_known_pre_tokenizer, self.pre_tokenizers))
            and all(map(_is_known_post_processor, self.post_processors))
            and all(map(_is_known_decoder, self.decoders))
        )
        if not is_known:
            return 0
        squared = any(_regex(part) in _SQUARED for part in self.pre_tokenizers)
        return QUICK_BYTES_SQUARED if squared else QUICK_BYTES


def _flat(part: object, key: str, depth: int = 0) -> Iterator[Part]:
    if part is None:
        return
    if isinstance(part, dict) and part.get("type") == "Sequence" and isinstance(part.get(key), list):
        for each in part[key]:
            if depth < _MAX_DEPTH:
                yield from _flat(each, key, depth + 1)
            else:
                yield {"type": "too deep"}
    else:
        yield part if isinstance(part, dict) else {"type": "no part"}


def _is_known_normalizer(part: Part) -> bool:
    match part.get("type"):
        case "Prepend":
            return _is_short(part.get("prepend"))
        case "Replace":
            return _regex(part) == SQUEEZE or (bool(pattern_text(part)) and _is_short(part.get("content")))
    return part.get("type") in _NORMALIZERS


def _is_known_pre_tokenizer(part: Part) -> bool:
    if part.get("type") == "Split":
        return bool(pattern_text(part)) or _regex(part) in _LINEAR | _SQUARED
    return part.get("type") in _PRE_TOKENIZERS


def _is_known_post_processor(part: Part) -> bool:
    if part.get("type") != "TemplateProcessing":
        return part.get("type") in _POST_PROCESSORS
    specials = part.get("special_tokens")
    pieces = [piece for name in ("single", "pair") for piece in part.get(name) or ()]
    named = [piece["SpecialToken"].get("id") for piece in pieces if isinstance(piece.get("SpecialToken"), dict)]
    return isinstance(specials, dict) and all(name in specials for name in named)


def _is_known_decoder(part: Part) -> bool:
    return bool(pattern_text(part)) if part.get("type") == "Replace" else part.get("type") in _DECODERS


def _is_short(text: object) -> bool:
    return isinstance(text, str) and len(text) <= MAX_INSERTED


def pattern_text(part: Part) -> str | None:
    """The text that a component searches for; None if it searches for a regular expression."""
    pattern = part.get("pattern")
    found = pattern.get("String") if isinstance(pattern, dict) else None
    return found if isinstance(found, str) else None


def _regex(part: Part) -> str | None:
    pattern = part.get("pattern")
    found = pattern.get("Regex") if isinstance(pattern, dict) else None
    return found if isinstance(found, str) else None
