"""Text to token ids and back.

Builds on the `tokenizers` library, and is equal to llama.cpp on its published vectors. Knows nothing of chats, of
models or of how a token was chosen.
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

# The library would start threads of its own for a batch of one text, and warn at every fork that follows.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_MAX_MODEL_BYTES = 64 << 20
"""Of a `tokenizer.model`. Real ones have 0.5 to 5 MB."""
_NO_CONFIG = TokenizerConfig()
_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROLS = (CONTROL, UNKNOWN)
_MADE_ON_DEMAND = ("_lock", "controls", "control_resource", "_resource")
_logger = logging.getLogger(__name__)


class Tokenizer:
    """Safe from any thread. Ids from ``vocab_size`` on, which a model's padded head may yield, have no text.

    Nothing is cached for the way back: a token's bytes cost about a microsecond.
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
        self._lock = threading.Lock()  # of the backend's flag that says how the next text is read

    def __getstate__(self) -> dict[str, object]:
        """All but the lock and what is made on demand: a tokenizer may cross to another process."""
        return {name: value for name, value in self.__dict__.items() if name not in _MADE_ON_DEMAND}

    def __setstate__(self, state: Mapping[str, object]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, object]) -> Tokenizer:
        """From a GGUF file's metadata. Raises LoadError naming what is missing, unknown or contradictory."""
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
        """From a `tokenizer.json`, as a path or as its text.

        ``bos`` and ``eos`` are ids or texts, from `tokenizer_config.json` or the model's own file; the first of
        ``eos`` is the main one. What is not given is looked up: BOS where the file puts a control token in front of a
        text, EOS among the known ends. Raises LoadError when the file is unusable or a token is not in it; if
        ``lenient``, such a token is left out with a warning.
        """
        return cls(*read_json_vocabulary(source, bos=bos, eos=eos, add_bos=add_bos, lenient=lenient))

    @classmethod
    def from_model(cls, path: Path, config: TokenizerConfig = _NO_CONFIG) -> Tokenizer:
        """From a `tokenizer.model`: SentencePiece's, of byte-pair kind, or tiktoken's as Llama 3 has it.

        ``config`` is what the files beside it say. Raises LoadError when the file is broken or of another kind.
        """
        hint = "fetch the model's tokenizer.model again, or name a tokenizer.json with --tokenizer-json"
        data = read_bytes(path, limit=_MAX_MODEL_BYTES, hint=hint)
        if not data:
            raise LoadError(f"{path} is empty", hint=hint)
        data = data.removeprefix(codecs.BOM_UTF8)  # of tiktoken's format, which is a text
        if not is_tiktoken(data):
            refuse_other_kinds(path, data, expected=set())
        read = read_tiktoken_vocabulary if is_tiktoken(data) else read_sentencepiece_vocabulary
        return cls(*read(data, str(path), config))

    def words_beyond(self, size: int) -> int:
        """How many tokens with an id of ``size`` or more ordinary text can become. Tokens that were added to a
        vocabulary, such as those that stand for images, do not count."""
        return sum(kind in (NORMAL, BYTE) for kind in self._vocabulary.kinds[size:])

    def to_gguf(self, *, size: int) -> dict[str, Value]:
        """What a GGUF file with an embedding of ``size`` rows says of this tokenizer, for ``from_gguf``. Tokens without
        a row are left out with a warning, as llama.cpp's converter leaves them out: such a file has a token for every
        row.

        Raises LoadError when such a file cannot hold it. Where it does not say how text with combining characters or
        beside control tokens is read, a warning says so.
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
        """This tokenizer with more tokens that end an answer, as `generation_config.json` may name.

        Raises LoadError if one is below 0.
        """
        more = frozenset(ids)
        if min(more, default=0) < 0:
            raise LoadError(f"{min(more)} is not a token id", hint="see eos_token_id in generation_config.json")
        other = copy.copy(self)
        other._lock = self._lock  # as the backend, which a copy shares
        other.eos_ids = self.eos_ids | more
        return other

    @cached_property
    def controls(self) -> ControlTexts:
        """The spellings that ``encode(special=True)`` takes for control tokens."""
        return ControlTexts(self._control_texts())

    @cached_property
    def control_resource(self) -> Resource:
        """``controls``, for the process that keeps them out of the prompts of chats."""
        texts = self._control_texts()
        return Resource("controls", {}, lambda: json.dumps(texts).encode(), TOKENIZER_LOADING)

    def _control_texts(self) -> dict[str, tuple[bool, bool]]:
        strips = self._vocabulary.strips
        tokens = zip(self._vocabulary.texts, self._vocabulary.kinds, strict=True)
        return {t: strips.get(i, (False, False)) for i, (t, kind) in enumerate(tokens) if t and kind in _CONTROLS}

    def encode(self, text: str, *, special: bool, bos: bool = False) -> list[int]:
        """Token ids. With ``special=False`` text that spells a control token stays text (what a user wrote).
        Bytes that the vocabulary has no token for are dropped, as llama.cpp does: SmolLM2's lacks six control
        characters and those of planes that Unicode does not use.

        ``bos`` puts BOS in front unless it is there already or there is none. Lone surrogates become U+FFFD. A text
        that may take long is tokenized in a process of its own, which Ctrl-C or a ``Cancellation`` ends. Raises
        RequestError where the library fails or the text takes more time or memory than ``worker`` allows.
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
            # which lets other threads run, and ``encode`` does not
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
        """How many tokens the text has at least, without tokenizing it; stops counting beyond ``enough``."""
        return self._bound.least(text, special=special, enough=enough)

    def tail(self, text: str, *, special: bool, tokens: int) -> str:
        """The end of the text that has more than so many tokens; all of it where none is certain to."""
        return self._bound.tail(text, special=special, tokens=tokens)

    @cached_property
    def quick_bytes(self) -> int:
        """Texts of so many bytes in UTF-8 are tokenized in a moment; 0: of any text nobody knows."""
        return Components.of_backend(self._backend).quick_bytes

    @cached_property
    def _bound(self) -> TokenBound:
        return TokenBound.of(self._vocabulary, self._backend)

    def prepare(self) -> None:
        """Makes what long texts will need, which then crosses to another process as well."""
        assert self._bound

    @cached_property
    def _resource(self) -> Resource:
        return Resource("tokenizer", {}, lambda: self._backend.to_str().encode(), TOKENIZER_LOADING)

    def token_bytes(self, token: int) -> bytes:
        """What a token adds to a text: bytes that need not be whole characters; none for control tokens."""
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
        """A token for display: control tokens spelled out, half characters as U+FFFD."""
        if not 0 <= token < self.vocab_size:
            return ""
        if self._vocabulary.kinds[token] in (CONTROL, UNKNOWN, UNUSED):
            return self._vocabulary.texts[token]
        return self.token_bytes(token).decode("utf-8", "replace")

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens, without control tokens and without the space that ``encode`` wrote in front."""
        text = b"".join(map(self.token_bytes, tokens)).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.space_prefix else text


def _not_tokenized(words: str) -> RequestError:
    return RequestError(f"the text cannot be tokenized: {words}", hint="send another text, or a shorter one")


def _byte_value(text: str) -> bytes | None:
    """The byte that a piece such as ``<0x0A>`` stands for."""
    match = re.fullmatch("<0x([0-9A-Fa-f]{2})>", text)
    return bytes.fromhex(match[1]) if match else None
