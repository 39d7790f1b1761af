"""Encodes text to token ids and decodes them.

The `tokenizers` library does the encoding. Results equal llama.cpp's on its published test vectors.
"""

from __future__ import annotations

import codecs
import copy
import json
import logging
import os
import re
import threading
from array import array
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import tokenizers

from mistralrs.errors import LoadError, RequestError
from mistralrs.files import read_bytes, refuse_other_kinds
from mistralrs.text.components import Components
from mistralrs.text.control import ControlTexts
from mistralrs.text.gguf_metadata import PROBE, Value, gguf_metadata
from mistralrs.text.gguf_vocabulary import read_gguf_vocabulary
from mistralrs.text.json_vocabulary import read_json_vocabulary
from mistralrs.text.native_errors import native_errors
from mistralrs.text.sentencepiece_model import read_sentencepiece_vocabulary
from mistralrs.text.tiktoken_model import is_tiktoken, read_tiktoken_vocabulary
from mistralrs.text.token_bound import TokenBound
from mistralrs.text.tokenizer_config import TokenizerConfig
from mistralrs.text.vocabulary import BYTE, BYTE_OF_LETTER, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Vocabulary
from mistralrs.text.worker import (
    TOKENIZER_LOADING,
    TOKENIZING,
    FailedError,
    LimitError,
    Resource,
    check_cancelled,
    workers,
)

# The library would start threads even for a batch of one text, and then warn at every fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_MAX_MODEL_BYTES = 64 << 20
"""Largest `tokenizer.model`, in bytes. Real ones have 0.5 to 5 MB."""
_NO_CONFIG = TokenizerConfig()
_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROLS = (CONTROL, UNKNOWN)
_NOT_PICKLED = ("_lock", "controls", "control_resource", "_resource")
_logger = logging.getLogger(__name__)


class Tokenizer:
    """Encodes and decodes with one vocabulary. Any thread may use it.

    Ids from ``vocab_size`` on, which the padded LM head of a model may yield, have no text. Decoding caches nothing,
    because the bytes of a token cost about a microsecond.
    """

    def __init__(self, vocabulary: Vocabulary, backend: tokenizers.Tokenizer) -> None:
        self.vocab_size = len(vocabulary.texts)
        self.bos_id = vocabulary.bos_id
        self.eos_id = vocabulary.eos_id
        self.unk_id = vocabulary.unk_id
        self.eos_ids = vocabulary.end_ids
        self.add_bos = vocabulary.add_bos
        self.space_prefix = vocabulary.space_prefix
        self._vocabulary = vocabulary
        self._backend = backend
        self._lock = threading.Lock()  # for the backend's flag ``encode_special_tokens``

    def __getstate__(self) -> dict[str, object]:
        """The state for another process: all but the lock and cached properties."""
        return {name: value for name, value in self.__dict__.items() if name not in _NOT_PICKLED}

    def __setstate__(self, state: Mapping[str, object]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, object]) -> Tokenizer:
        """The tokenizer of a GGUF file's metadata. Raises LoadError naming the key that is missing, unknown or
        wrong."""
        return cls(*read_gguf_vocabulary(metadata))

    @classmethod
    def from_json(
        cls,
        source: Path | str,
        *,
        bos: int | str | None = None,
        eos: Sequence[int | str] = (),
        add_bos: bool | None = None,
        lenient: bool = False,
    ) -> Tokenizer:
        """The tokenizer of a `tokenizer.json`, given as a path or as its text.

        ``bos`` and ``eos`` are ids or texts, from `tokenizer_config.json` or the model's own file; the first of
        ``eos`` is the main one. If they are not given, BOS is the control token that the file puts in front of a text,
        and EOS is one of the known end tokens. Raises LoadError when the file is unusable or a token is not in it; if
        ``lenient``, such a token is left out with a warning.
        """
        return cls(*read_json_vocabulary(source, bos=bos, eos=eos, add_bos=add_bos, lenient=lenient))

    @classmethod
    def from_model(cls, path: Path, config: TokenizerConfig = _NO_CONFIG) -> Tokenizer:
        """The tokenizer of a `tokenizer.model`: SentencePiece's of the type BPE, or tiktoken's as Llama 3 has it.

        ``config`` comes from the files beside it. Raises LoadError when the file is broken or of another kind.
        """
        hint = "fetch the model's tokenizer.model again, or name a tokenizer.json with --tokenizer-json"
        data = read_bytes(path, limit=_MAX_MODEL_BYTES, hint=hint)
        if not data:
            raise LoadError(f"{path} is empty", hint=hint)
        data = data.removeprefix(codecs.BOM_UTF8)  # tiktoken's format is a text
        if not is_tiktoken(data):
            refuse_other_kinds(path, data, expected=set())
        read = read_tiktoken_vocabulary if is_tiktoken(data) else read_sentencepiece_vocabulary
        return cls(*read(data, str(path), config))

    def num_text_tokens_beyond(self, size: int) -> int:
        """Number of tokens with an id of ``size`` or more that ordinary text can give. Tokens that were added to a
        vocabulary, such as those that stand for images, do not count."""
        return sum(kind in (NORMAL, BYTE) for kind in self._vocabulary.kinds[size:])

    def first_difference(self, other: Tokenizer, size: int) -> int | None:
        """The first id below ``size`` whose token ``other`` lacks or spells differently; None: there is none. Ids that
        stand for no text, such as those that pad a vocabulary, do not count."""
        own, others = self._vocabulary, other._vocabulary
        if own.byte_level != others.byte_level:
            return 0
        kinds = own.kinds[:size]
        for token, (text, kind) in enumerate(zip(own.texts[:size], kinds, strict=True)):
            if kind != UNUSED and text and (token >= len(others.texts) or others.texts[token] != text):
                return token
        return None

    def to_gguf(self, *, size: int) -> dict[str, Value]:
        """The metadata of this tokenizer for a GGUF file whose embedding has ``size`` rows, as ``from_gguf`` reads it.

        Such a file has one token for every row: tokens without a row are left out with a warning, as in llama.cpp's
        converter. Raises LoadError if the format cannot hold this tokenizer. Logs a warning if it cannot hold how text
        with combining characters or beside control tokens is encoded.
        """
        left_out = [text for text in self._vocabulary.texts[size:] if text]
        if left_out:
            names = ", ".join(map(ascii, left_out[:3])) + (" and others" if len(left_out) > 3 else "")
            _logger.warning("the model has no embedding for %s: the GGUF file does not have these tokens", names)
        metadata = gguf_metadata(self._vocabulary, self._backend, ends=self.eos_ids, size=size)
        read, probe = Tokenizer.from_gguf(metadata), PROBE
        for text in left_out:
            probe = probe.replace(text, "")
        for special in (False, True):
            if read.encode(probe, special=special) != self.encode(probe, special=special):
                raise LoadError("a GGUF file cannot hold this tokenizer: the same text would become other tokens")
        controls = [self.bos_id, *sorted(self.eos_ids), *self._vocabulary.strips]
        near = [
            f"a {self.token_text(token)} b" for token in dict.fromkeys(controls) if token is not None and token < size
        ]
        changed = [
            text for text in ("e\u0301", *near) if read.encode(text, special=True) != self.encode(text, special=True)
        ]
        if changed:
            shown = ", ".join(map(ascii, changed[:3]))
            _logger.warning("a GGUF file cannot say how the tokenizer reads all texts; other tokens come of %s", shown)
        return metadata

    def with_eos(self, ids: Iterable[int]) -> Tokenizer:
        """A copy of this tokenizer with more tokens that end an answer, as `generation_config.json` may name.

        Raises LoadError if one is below 0.
        """
        more = frozenset(ids)
        if min(more, default=0) < 0:
            raise LoadError(f"{min(more)} is not a token id", hint="see eos_token_id in generation_config.json")
        other = copy.copy(self)
        other._lock = self._lock  # the copy shares the backend, so it shares the lock
        other.eos_ids = self.eos_ids | more
        return other

    @cached_property
    def controls(self) -> ControlTexts:
        """The texts that ``encode(special=True)`` turns into control tokens."""
        return ControlTexts(self._control_texts())

    @cached_property
    def control_resource(self) -> Resource:
        """``controls`` as a resource of the worker process, which keeps them out of users' messages."""
        texts = self._control_texts()
        return Resource("controls", {}, lambda: json.dumps(texts).encode(), TOKENIZER_LOADING)

    def _control_texts(self) -> dict[str, tuple[bool, bool]]:
        strips = self._vocabulary.strips
        tokens = zip(self._vocabulary.texts, self._vocabulary.kinds, strict=True)
        return {t: strips.get(i, (False, False)) for i, (t, kind) in enumerate(tokens) if t and kind in _CONTROLS}

    def encode(self, text: str, *, special: bool, bos: bool = False) -> list[int]:
        """The token ids of a text. With ``special=False`` the spelling of a control token stays text, as for text that
        a user wrote. Bytes for which the vocabulary has no token are dropped, as in llama.cpp: SmolLM2's vocabulary
        lacks six control characters and those of planes that Unicode does not use.

        ``bos`` puts BOS in front unless it is there already or there is none. Lone surrogates become U+FFFD. A text
        that may take long is tokenized in a worker process, which Ctrl-C or a ``Cancellation`` ends. Raises
        RequestError if the library fails or the text takes more time or memory than ``worker`` allows.
        """
        if _SURROGATE.search(text):
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        check_cancelled()
        data = text.encode()
        is_quick = len(data) <= self.quick_bytes
        ids = self._encoded(text, special=special) if is_quick else self._encoded_elsewhere(data, special=special)
        if bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        return ids

    def _encoded(self, text: str, *, special: bool) -> list[int]:
        with native_errors(_not_tokenized), self._lock:
            self._backend.encode_special_tokens = not special
            # encode_batch_fast releases the GIL, ``encode`` does not
            [encoding] = self._backend.encode_batch_fast([text], add_special_tokens=False)
            ids: list[int] = encoding.ids
        return ids

    def _encoded_elsewhere(self, data: bytes, *, special: bool) -> list[int]:
        try:
            _, ids = workers.call(
                "encode", {"special": special}, {"tokenizer": self._resource}, limits=TOKENIZING, payload=data
            )
        except (FailedError, LimitError) as error:
            raise _not_tokenized(error.message) from None
        return array("I", ids).tolist()

    def least_tokens(self, text: str, *, special: bool, enough: int) -> int:
        """A lower bound of the text's tokens, computed without tokenizing it; stops counting beyond ``enough``."""
        return self._bound.least(text, special=special, enough=enough)

    def tail(self, text: str, *, special: bool, tokens: int) -> str:
        """An end of the text that has more than ``tokens`` tokens; the whole text if no end is certain to."""
        return self._bound.tail(text, special=special, tokens=tokens)

    @cached_property
    def quick_bytes(self) -> int:
        """Length, in bytes of UTF-8, up to which texts are tokenized in this process; 0 if no length is known to be
        safe."""
        return Components.of_backend(self._backend).quick_bytes

    @cached_property
    def _bound(self) -> TokenBound:
        return TokenBound.of(self._vocabulary, self._backend)

    def prepare(self) -> None:
        """Computes the bound that long texts need, so that pickling passes it to other processes."""
        assert self._bound

    @cached_property
    def _resource(self) -> Resource:
        return Resource("tokenizer", {}, lambda: self._backend.to_str().encode(), TOKENIZER_LOADING)

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token adds to a text, which need not be whole characters; empty for control tokens."""
        if not 0 <= token < self.vocab_size:
            return b""
        text, kind = self._vocabulary.texts[token], self._vocabulary.kinds[token]
        if kind in (CONTROL, UNKNOWN, UNUSED):
            return b""
        if self._vocabulary.byte_level:
            if kind != USER_DEFINED and BYTE_OF_LETTER.keys() >= set(text):
                return bytes([BYTE_OF_LETTER[letter] for letter in text])
            return text.encode()
        if kind == BYTE and (byte := _byte_value(text)) is not None:
            return byte
        return text.replace("▁", " ").encode()

    def token_text(self, token: int) -> str:
        """A token's text for display: control tokens by name, incomplete characters as U+FFFD."""
        if not 0 <= token < self.vocab_size:
            return ""
        if self._vocabulary.kinds[token] in (CONTROL, UNKNOWN, UNUSED):
            return self._vocabulary.texts[token]
        return self.token_bytes(token).decode("utf-8", "replace")

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens, without control tokens and without the space that ``encode`` adds in front."""
        text = b"".join(map(self.token_bytes, tokens)).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.space_prefix else text


def _not_tokenized(message: str) -> RequestError:
    return RequestError(f"the text cannot be tokenized: {message}", hint="send another text, or a shorter one")


def _byte_value(text: str) -> bytes | None:
    """The byte of a piece such as ``<0x0A>``; None for other pieces."""
    match = re.fullmatch("<0x([0-9A-Fa-f]{2})>", text)
    return bytes.fromhex(match[1]) if match else None
