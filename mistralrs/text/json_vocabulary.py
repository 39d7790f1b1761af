"""Reads a Hugging Face `tokenizer.json`, with BOS and EOS from other files if they name them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from mistralrs.errors import LoadError
from mistralrs.files import TOKENIZER_BYTES, read_json_text
from mistralrs.parsing import parse_nested
from mistralrs.text.components import Components
from mistralrs.text.native_errors import native_errors
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
from mistralrs.text.worker import TOKENIZER_LOADING, TOKENIZING, FailedError, LimitError, Resource, workers

_logger = logging.getLogger(__name__)
_HINT = "give the tokenizer.json of a fast tokenizer"
_PROBE = "a"
_BYTE_TEXTS = frozenset(f"<0x{byte:02X}>" for byte in range(0x100))


def read_json_vocabulary(
    source: Path | str,
    *,
    bos: int | str | None,
    eos: Sequence[int | str],
    add_bos: bool | None,
    lenient: bool = False,
) -> tuple[Vocabulary, Tokenizer]:
    """The vocabulary, and the backend that encodes with it; ``source`` is a file, or its text.

    Raises LoadError when the file cannot be read or used, or a named token is not in it; if ``lenient``, such a token
    is left out with a warning.
    """
    name, text = _content(source)
    fields, backend, (plain, framed) = _read(name, text)
    backend.no_truncation()
    backend.no_padding()
    texts, kinds = _tokens(name, fields, backend)
    if lenient:
        bos = next(_known(name, texts, [] if bos is None else [bos]), None)
        eos = list(_known(name, texts, eos))
    bos_id = None if bos is None else _resolve(name, texts, bos)
    given_ends = [_resolve(name, texts, token) for token in eos]
    first = framed[0] if framed[1 : 1 + len(plain)] == plain != [] else None
    if bos_id is None:
        bos_id = first
    ends = known_ends(texts, kinds).union(given_ends)
    specials = ends if bos_id is None else ends | {bos_id}
    for token in specials:
        kinds[token] = CONTROL  # its use decides, not the file's type
    backend.add_special_tokens([AddedToken(texts[token], normalized=False, special=True) for token in specials])
    strips = {i: (t.lstrip, t.rstrip) for i, t in backend.get_added_tokens_decoder().items() if t.lstrip or t.rstrip}
    return Vocabulary(
        texts=texts,
        kinds=kinds,
        byte_level=_is_byte_level(name, fields),
        bos_id=bos_id,
        eos_id=given_ends[0] if given_ends else min(ends, default=None),
        unk_id=_unknown(fields, backend),
        end_ids=frozenset(ends),
        add_bos=(first is not None and first == bos_id) if add_bos is None else add_bos and bos_id is not None,
        space_prefix=bool(plain) and texts[plain[0]].startswith("▁"),
        strips=strips,
    ), backend


def _content(source: Path | str) -> tuple[str, str]:
    if isinstance(source, str):
        return "the tokenizer's text", source
    return str(source), read_json_text(source, limit=TOKENIZER_BYTES, hint=_HINT)


def _read(name: str, text: str) -> tuple[dict[str, Any], Tokenizer, list[list[int]]]:
    """The file's fields, the library's tokenizer, and its tokens of a probe without and with added special tokens.

    If the tokenizer has unknown parts, it is tried in a worker process first, where a panic, an endless loop or a lack
    of memory does no harm.
    """

    def unusable(message: str) -> LoadError:
        return LoadError(f"{name} is not a usable tokenizer.json: {message}", hint=_HINT)

    try:
        fields = parse_nested(json.loads, text)
    except ValueError as error:
        raise unusable(str(error)) from error
    if not isinstance(fields, dict):
        raise unusable("it holds no object")
    with native_errors(unusable):
        if Components.of_json(fields).quick_bytes:
            backend = Tokenizer.from_str(text)
            framed = [backend.encode(_PROBE, add_special_tokens=framed).ids for framed in (False, True)]
        else:
            framed = _probe_in_worker(text, unusable)
            backend = Tokenizer.from_str(text)
    return fields, backend, framed


def _probe_in_worker(text: str, unusable: Callable[[str], LoadError]) -> list[list[int]]:
    """The probe's tokens without and with special tokens, from a worker process."""
    tokenizer = Resource("tokenizer", {}, lambda: text.encode("utf-8", "replace"), TOKENIZER_LOADING)
    try:
        answer, _ = workers.call(
            "frame", {}, {"tokenizer": tokenizer}, limits=replace(TOKENIZING, cpu_s=2.0), payload=_PROBE.encode()
        )
    except (FailedError, LimitError) as error:
        raise unusable(error.message) from None
    return [[int(token) for token in ids] for ids in answer["ids"]]


def _tokens(name: str, fields: dict[str, object], backend: Tokenizer) -> tuple[list[str], list[int]]:
    ids = backend.get_vocab(with_added_tokens=True)
    count = max(ids.values(), default=-1) + 1
    if not 0 < count <= MAX_TOKENS:
        raise LoadError(f"{name} has {count} tokens, expected 1 to {MAX_TOKENS}", hint=_HINT)
    texts, kinds = [""] * count, [UNUSED] * count
    byte_fallback = bool(_model(fields).get("byte_fallback"))
    for text, token in ids.items():
        texts[token] = text
        kinds[token] = BYTE if byte_fallback and text in _BYTE_TEXTS else NORMAL
    for token, added in backend.get_added_tokens_decoder().items():
        kinds[token] = CONTROL if added.special else USER_DEFINED
    unknown = _unknown(fields, backend)
    if unknown is not None:
        kinds[unknown] = UNKNOWN
    return texts, kinds


def _model(fields: dict[str, object]) -> dict[str, object]:
    model = fields.get("model")
    return model if isinstance(model, dict) else {}


def _unknown(fields: dict[str, object], backend: Tokenizer) -> int | None:
    text = _model(fields).get("unk_token")
    return backend.token_to_id(text) if isinstance(text, str) else None


def _is_byte_level(name: str, fields: dict[str, object]) -> bool:
    kinds = set(_decoder_kinds(fields.get("decoder")))
    if "ByteLevel" in kinds:
        return True
    if kinds.isdisjoint({"ByteFallback", "Metaspace", "Replace"}):
        decoders = ", ".join(sorted(kinds)) or "no decoder"
        raise LoadError(f"{name} turns tokens into text by {decoders}, which is not supported", hint=_HINT)
    return False


def _decoder_kinds(decoder: object) -> Iterator[str]:
    if isinstance(decoder, dict):
        if decoder.get("type") == "Sequence":
            for part in decoder.get("decoders", []):
                yield from _decoder_kinds(part)
        else:
            yield str(decoder.get("type"))


def _known(name: str, texts: list[str], tokens: Sequence[int | str]) -> Iterator[int]:
    for token in tokens:
        try:
            yield _resolve(name, texts, token)
        except LoadError as error:
            _logger.warning("%s; it is left out", error.message)


def _resolve(name: str, texts: list[str], token: int | str) -> int:
    if isinstance(token, str):
        if token not in texts:
            raise LoadError(f"{name} has no token {token!r}", hint="name one that is in its vocabulary")
        return texts.index(token)
    if not 0 <= token < len(texts):
        raise LoadError(f"token {token} is outside the {len(texts)} tokens of {name}", hint=_HINT)
    return token
