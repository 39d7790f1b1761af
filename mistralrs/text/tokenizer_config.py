"""Reads the files beside a Hugging Face tokenizer: `tokenizer_config.json` and the older `special_tokens_map.json` and
`added_tokens.json`.

The formats of all versions are read. A key of an unexpected type counts as missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from mistralrs.errors import LoadError
from mistralrs.text.vocabulary import MAX_TOKENS

_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
_LISTS = ("additional_special_tokens", "extra_special_tokens")


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that was added to a vocabulary, or whose meaning was changed."""

    text: str
    control: bool
    strips: tuple[bool, bool] = (False, False)
    """Whether whitespace (before, after) it belongs to the token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerConfig:
    """Settings of a tokenizer; None or empty if the files lack them. ``add_eos_token`` is ignored: prompts are
    continued."""

    bos: str | None = None
    eos: str | None = None
    add_bos: bool | None = None
    """Whether a text that is not a chat starts with BOS."""
    space_prefix: bool | None = None
    """Whether a space is written in front of a text."""
    added: Mapping[int, AddedToken] = field(default_factory=dict)
    """Added tokens by id."""


def read_tokenizer_config(
    config: Mapping[str, object],
    *,
    special_tokens_map: Mapping[str, object] | None = None,
    added_tokens: Mapping[str, object] | None = None,
) -> TokenizerConfig:
    """The settings from the content of the three files, of which `tokenizer_config.json` takes priority.

    Raises LoadError when an added token has no text, or no id that a vocabulary could have.
    """
    specials = special_tokens_map or {}
    controls = {text for source in (config, specials) for text in _special_texts(source)}
    added = {}
    for key, id in (added_tokens or {}).items():
        added[_token_id(id, "added_tokens.json")] = _added_token("added_tokens.json", key, controls)
    decoder = config.get("added_tokens_decoder")
    for key, entry in decoder.items() if isinstance(decoder, Mapping) else ():
        added[_token_id(key, "added_tokens_decoder")] = _added_token("tokenizer_config.json", entry, controls)
    return TokenizerConfig(
        bos=_text(config.get("bos_token")) or _text(specials.get("bos_token")),
        eos=_text(config.get("eos_token")) or _text(specials.get("eos_token")),
        add_bos=_flag(config.get("add_bos_token")),
        space_prefix=_flag(config.get("add_prefix_space")),
        added=added,
    )


def _special_texts(source: Mapping[str, object]) -> Iterator[str]:
    values: list[object] = [source.get(name) for name in _NAMED]
    for name in _LISTS:
        more = source.get(name)
        values.extend(more.values() if isinstance(more, Mapping) else more if isinstance(more, list) else ())
    yield from filter(None, map(_text, values))


def _added_token(place: str, entry: object, controls: set[str]) -> AddedToken:
    text = _text(entry)
    if text is None:
        raise LoadError(f"{place}: an added token has no text", hint=_HINT)
    flags = entry if isinstance(entry, Mapping) else {}
    return AddedToken(
        text,
        control=flags.get("special") is True or text in controls,
        strips=(flags.get("lstrip") is True, flags.get("rstrip") is True),
    )


def _token_id(value: object, place: str) -> int:
    digits = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(digits, str) and digits.isascii() and digits.isdigit() and len(digits) < 10:
        token = int(digits)
        if token < MAX_TOKENS:
            return token
    raise LoadError(f"{place}: {value!r} is not a token id below {MAX_TOKENS}", hint=_HINT)


def _text(value: object) -> str | None:
    """The text of a token, given as text or as an object with ``content``; None for other values and invalid
    Unicode."""
    if isinstance(value, Mapping):
        value = value.get("content")
    if not isinstance(value, str) or not value:
        return None
    return value if value.isascii() or _is_unicode(value) else None


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _flag(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


_HINT = "repair the file, or take another tokenizer with --tokenizer-json FILE"
