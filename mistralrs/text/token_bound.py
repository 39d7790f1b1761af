"""A lower bound of a text's tokens, computed without tokenizing it, to refuse texts that are far too long.

A token of n bytes covers n bytes of the text. If a byte occurs in no token longer than n bytes, it counts for 1/n of a
token, and a text counts for the sum of its bytes. Bytes that may vanish without a token count for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import tokenizers

from mistralrs.text.components import SPACE, SQUEEZE, Components, pattern_text
from mistralrs.text.vocabulary import BYTE_OF_LETTER, CONTROL, NORMAL, UNKNOWN, Vocabulary

_SLICE = 64 << 10
"""Characters that are counted at once."""
_ROUNDING = 1e-6
_SPACE_BYTES = SPACE.encode()
_NON_ASCII = range(0x80, 0x100)
_COMBINING_LEADS = (0xCC, 0xCD)
"""First bytes of the characters that Unicode composes with ASCII ones."""
_COMPOSING = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz<=>"
_COMPOSED_TO = b"K;`"
"""The ASCII characters that are results of Unicode's composition."""
_NFC_SHRINKS = 3
"""Factor by which NFC shortens a text in UTF-8, at most."""
_NORMALIZERS = {"NFC", "Prepend", "Replace", "Strip", "ByteLevel"}
_PRE_TOKENIZERS = {"ByteLevel", "Metaspace", "Split", "Digits", "Punctuation"}
_WHITESPACE_BYTES = frozenset(b"".join(chr(code).encode() for code in range(0x3001) if chr(code).isspace()))


@dataclass(frozen=True, slots=True)
class TokenBound:
    """The bound for one tokenizer."""

    classes: bytes
    """The index of each byte's class."""
    tokens_per_byte: tuple[float, ...]
    """For each class, the tokens that one byte of it counts for; 0 for the first."""
    controls: Mapping[str, float]
    """By the first two characters of control tokens, how much more than one token their texts may count for."""

    @classmethod
    def of(cls, vocabulary: Vocabulary, backend: tokenizers.Tokenizer) -> TokenBound:
        """The bound for a tokenizer. It is 0 for every text if the tokenizer has unknown components."""
        by_byte = _tokens_per_byte(vocabulary, backend)
        if by_byte is None:
            return cls(bytes(256), (0.0,), {})
        tokens_per_byte = tuple({0.0: None} | dict.fromkeys(by_byte))
        controls: dict[str, float] = {}
        for text in _control_texts(vocabulary):
            excess = sum(max(by_byte[byte], 0.0) for byte in text.encode("utf-8", "ignore")) - 1
            controls[text[:2]] = max(controls.get(text[:2], 0.0), excess)
        return cls(
            bytes(map(tokens_per_byte.index, by_byte)),
            tokens_per_byte,
            {start: most for start, most in controls.items() if most},
        )

    def least(self, text: str, *, special: bool, enough: int) -> int:
        """A lower bound of the text's tokens; ``special`` is as for ``Tokenizer.encode``. Stops counting beyond
        ``enough``.
        """
        total = self._in_controls(text) if special else 0.0
        for start in range(0, len(text), _SLICE):
            total += self._of(text[start : start + _SLICE])
            if total > enough + 1:
                break
        return max(0, int(total - _ROUNDING))

    def tail(self, text: str, *, special: bool, tokens: int) -> str:
        """An end of the text that has more than ``tokens`` tokens; the whole text if no end is certain to."""
        total = self._in_controls(text) if special else 0.0
        start = len(text)
        while start > 0 and total <= tokens + 1:
            end, start = start, max(0, start - _SLICE)
            total += self._of(text[start:end])
        return text[start:]

    def _of(self, text: str) -> float:
        # lone surrogates, which become U+FFFD later, count for nothing
        count = text.encode("utf-8", "ignore").translate(self.classes).count
        return sum(value * count(number) for number, value in enumerate(self.tokens_per_byte) if value)

    def _in_controls(self, text: str) -> float:
        return -sum(excess * text.count(start) for start, excess in self.controls.items())


def _control_texts(vocabulary: Vocabulary) -> Iterable[str]:
    pairs = zip(vocabulary.texts, vocabulary.kinds, strict=True)
    return (text for text, kind in pairs if text and kind in (CONTROL, UNKNOWN))


def _tokens_per_byte(vocabulary: Vocabulary, backend: tokenizers.Tokenizer) -> list[float] | None:
    """For each byte the tokens that it counts for; None if the tokenizer has unknown components."""
    components = Components.of_backend(backend)
    spaces_as_signs = _spaces_as_signs(components)
    byte_level = any(part["type"] == "ByteLevel" for part in (*components.pre_tokenizers, *components.normalizers))
    if spaces_as_signs is None or not _is_plain(components, backend) or byte_level != vocabulary.byte_level:
        return None
    texts = _plain_texts(vocabulary, backend)
    if byte_level:
        longest = _longest_of_letters(texts)
    else:
        longest = _longest_of_characters(texts, byte_fallback=backend.model.byte_fallback)
    tokens_per_byte = [1 / length if length else 0.0 for length in longest]
    kinds = {part["type"] for part in components.normalizers}
    squeezes = any(part["type"] == "Replace" and pattern_text(part) != " " for part in components.normalizers)
    vanishing: set[int] = set(_WHITESPACE_BYTES) if vocabulary.strips or "Strip" in kinds else set()
    if squeezes:
        vanishing.update(b" " + _SPACE_BYTES)
    for byte in vanishing:
        tokens_per_byte[byte] = 0.0
    if "NFC" in kinds:
        composed = min([tokens_per_byte[byte] for byte in (*_NON_ASCII, *_COMPOSED_TO)]) / _NFC_SHRINKS
        for byte in _NON_ASCII:
            tokens_per_byte[byte] = composed
        for byte in _COMBINING_LEADS:
            tokens_per_byte[byte] -= max(tokens_per_byte[letter] for letter in _COMPOSING)
    return tokens_per_byte


def _is_plain(components: Components, backend: tokenizers.Tokenizer) -> bool:
    """Whether a token covers only its own bytes of a text, apart from bytes that count for nothing."""
    model = backend.model
    if not isinstance(model, tokenizers.models.BPE) or model.continuing_subword_prefix or model.end_of_word_suffix:
        return False
    return all(part["type"] in _NORMALIZERS for part in components.normalizers) and all(
        part["type"] in _PRE_TOKENIZERS and part.get("behavior") != "Removed" for part in components.pre_tokenizers
    )


def _spaces_as_signs(components: Components) -> bool | None:
    """Whether U+2581 stands for a space; None if the tokenizer makes other replacements."""
    found = False
    for part in components.normalizers:
        if part["type"] != "Replace":
            continue
        if pattern_text(part) == " " and part["content"] == SPACE:
            found = True
        elif part["pattern"] != {"Regex": SQUEEZE} or part["content"]:
            return None
    for part in components.pre_tokenizers:
        if part["type"] == "Metaspace":
            if part["replacement"] != SPACE:
                return None
            found = True
    return found


def _plain_texts(vocabulary: Vocabulary, backend: tokenizers.Tokenizer) -> Iterable[tuple[str, int]]:
    """Texts and kinds of the tokens that a text may give without spelling a control token."""
    ignore_merges = backend.model.ignore_merges
    for text, kind in zip(vocabulary.texts, vocabulary.kinds, strict=True):
        if kind not in (CONTROL, UNKNOWN) or (ignore_merges and _is_a_word(text, backend)):
            yield text, kind


def _is_a_word(text: str, backend: tokenizers.Tokenizer) -> bool:
    """Whether the pre-tokenizer leaves the text whole, so that the vocabulary may have it as one token."""
    return backend.pre_tokenizer is None or len(backend.pre_tokenizer.pre_tokenize_str(text)) == 1


def _longest_of_letters(texts: Iterable[tuple[str, int]]) -> list[int]:
    """For each byte the length of the longest token that contains it; 0 if the byte may be dropped."""
    spelled: dict[int, list[str]] = {}
    longest = [0] * 256
    for text, kind in texts:
        spelled.setdefault(len(text), []).append(text)
        if kind != NORMAL:  # such a token may stand for its own text
            data = text.encode("utf-8", "ignore")
            _raise(longest, data, len(data))
    for length, members in spelled.items():
        letters = set().union(*members) & BYTE_OF_LETTER.keys()
        _raise(longest, [BYTE_OF_LETTER[letter] for letter in letters], length)
    single = {BYTE_OF_LETTER[text] for text in BYTE_OF_LETTER.keys() & set(spelled.get(1, ()))}
    return [length if byte in single else 0 for byte, length in enumerate(longest)]


def _longest_of_characters(texts: Iterable[tuple[str, int]], *, byte_fallback: bool) -> list[int]:
    """Like ``_longest_of_letters``, for tokens spelled in plain characters, with U+2581 for spaces."""
    spelled = {text for text, _ in texts}
    all_bytes = byte_fallback and all(f"<0x{byte:02X}>" in spelled for byte in range(256))
    by_length: dict[int, list[bytes]] = {}
    longest = [0] * 256
    for text in spelled:
        data = text.encode("utf-8", "ignore")
        by_length.setdefault(len(data), []).append(data)
    for length, members in by_length.items():
        found = set().union(*members)
        _raise(longest, found | set(b" " + _SPACE_BYTES) if found.issuperset(_SPACE_BYTES) else found, length)

    def is_known(byte: int) -> bool:
        return all_bytes or (byte < 0x80 and (chr(byte) in spelled or (byte == 0x20 and SPACE in spelled)))

    return [max(length, 1) if is_known(byte) else 0 for byte, length in enumerate(longest)]


def _raise(longest: list[int], members: Iterable[int], length: int) -> None:
    for byte in members:
        if longest[byte] < length:
            longest[byte] = length
