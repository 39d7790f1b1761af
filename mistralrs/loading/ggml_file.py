"""Reads the Llama files that llama.cpp wrote before GGUF (`.bin`), and gives them GGUF's metadata.

The file is mapped. Metadata that these files lack, because it was the same for all, are constants here. The tensors
keep their own names (`layers.0.attention.wq.weight`). The format has no description; this module follows the readers
and writers that llama.cpp had at the time:

- `ggml`, without a version (March 2023): header, tokens, tensors one behind the other.
- `ggmf` version 1: a score after each token.
- `ggjt` version 1 (April): each tensor's data starts at a multiple of 32 bytes.
- `ggjt` version 2 (12 May): other order of nibbles in quantized blocks. Version 3 (19 May): float16 scales for float32.

Blocks of an older layout are types of their own (`quant.types`): `Q4_0_V1` and so on.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import NamedTuple

from mistralrs.errors import FormatError, LoadError
from mistralrs.files import HEAD_BYTES, refuse_other_kinds
from mistralrs.loading.checkpoint import DescribedCheckpoint, MappedFile, Span, map_file
from mistralrs.loading.cursor import U32, Cursor, round_up, shown
from mistralrs.quant.types import DECODED, EXPANDED, TYPES, QuantType

MAX_TOKENS = 1 << 18
"""Tokens of a vocabulary, at most: eight times Llama's 32000."""
MAX_VOCABULARY_BYTES = 64 << 20
MAX_TENSORS = 1 << 16
MAX_NAME_BYTES = 512

CONTEXT_LENGTH = 4096
RMS_EPSILON = 1e-5
ROPE_BASE = 10000.0

_DAMAGED = "the file is damaged or not a GGML Llama model: fetch it again, or use a GGUF file"
_FLOAT = struct.Struct("<f")
_HEADER = struct.Struct("<7I")
_ALIGNMENT = 32
_UNKNOWN, _BOS, _EOS = range(3)
_BYTE_TOKENS = range(3, 259)
# Token types, by the numbers that GGUF files use.
_NORMAL, _UNKNOWN_TYPE, _CONTROL, _UNUSED, _BYTE = 1, 2, 3, 5, 6


def _table(*names: str) -> dict[int, QuantType]:
    known = TYPES | EXPANDED | DECODED
    return {known[name].ggml_id: known[name] for name in names}


class _Version(NamedTuple):
    """The differences between the formats."""

    name: str
    types: dict[int, QuantType]
    scores: bool = True
    aligned: bool = True


_V1 = ("F32", "F16", "Q4_0_V1", "Q4_1_V1")
_VERSIONS: dict[tuple[bytes, int], _Version] = {
    (b"lmgg", 0): _Version("ggml", _table("F32", "F16", "Q4_0_V1"), scores=False, aligned=False),
    (b"fmgg", 1): _Version("ggmf version 1", _table(*_V1), aligned=False),
    (b"tjgg", 1): _Version("ggjt version 1", _table(*_V1, "Q4_2", "Q4_3", "Q5_0_V1", "Q5_1_V1", "Q8_0_V1")),
    (b"tjgg", 2): _Version("ggjt version 2", _table("F32", "F16", "Q4_0_V2", "Q4_1_V2", "Q5_0", "Q5_1", "Q8_0_V1")),
    (b"tjgg", 3): _Version("ggjt version 3", _table(*(name for name in TYPES if name != "BF16"))),
}
"""Formats by their magic, in the file's byte order, and version, which is 0 for the format without one."""

MAGICS = frozenset(magic for magic, _ in _VERSIONS)
"""The first four bytes of all formats."""


class GgmlFile(DescribedCheckpoint):
    """An open GGML file; a context manager. Its metadata has GGUF's keys."""

    def __init__(
        self, path: Path, mapping: MappedFile, spans: dict[str, Span], *, metadata: dict[str, object], version: str
    ) -> None:
        super().__init__(path, [mapping], spans, metadata=metadata)
        self.version = version
        """For example "ggjt version 3"."""

    @classmethod
    def open(cls, path: Path, *, gqa: int = 1) -> GgmlFile:
        """Maps the file and reads its headers, but no tensors.

        ``gqa``: how many query heads share a KV head, which the file does not say; 8 for Llama-2-70B.
        Raises LoadError if the file is missing or cannot be read, FormatError if it is not valid.
        """
        mapping = map_file(path, hint=_DAMAGED)
        refuse_other_kinds(path, mapping[:HEAD_BYTES], expected={"ggml"})
        cursor = Cursor(path, mapping, limit=MAX_VOCABULARY_BYTES, hint=_DAMAGED)
        version = _read_version(cursor)
        sizes = _Sizes(*_HEADER.unpack(cursor.read_bytes(_HEADER.size)))
        vocabulary = _read_vocabulary(cursor, sizes.vocab, scores=version.scores)
        tensors = Cursor(path, mapping, limit=len(mapping), hint=_DAMAGED)
        tensors.position = cursor.position
        spans = _read_tensors(tensors, mapping, version)
        metadata = _describe(path, sizes, spans, gqa) | vocabulary
        return cls(path, mapping, spans, metadata=metadata, version=version.name)


class _Sizes(NamedTuple):
    """The header. ``multiple``: the feed-forward width is rounded up to a multiple of it; the tensors have the
    result."""

    vocab: int
    embed: int
    multiple: int
    heads: int
    layers: int
    rotary: int
    file_type: int


def _read_version(cursor: Cursor) -> _Version:
    magic = cursor.read_bytes(4)
    number = 0 if magic == b"lmgg" else cursor.read(U32)
    version = _VERSIONS.get((magic, number))
    if version is None:
        if any(magic == known for known, _ in _VERSIONS):
            known = ", ".join(version.name for version in _VERSIONS.values())
            raise cursor.error(f"has version {number} of {magic[::-1].decode()}", hint=f"supported: {known}")
        raise cursor.error(f"starts with {magic!r}, which no GGML file does")
    return version


def _read_vocabulary(cursor: Cursor, count: int, *, scores: bool) -> dict[str, object]:
    """The vocabulary under GGUF's keys. The files have raw bytes and spaces where GGUF has `<0x0A>` and U+2581."""
    cursor.place = "vocabulary"
    if not _EOS < count <= MAX_TOKENS:
        raise cursor.error(f"claims {count} tokens, expected {_EOS + 1} to {MAX_TOKENS}")
    cursor.check_count("tokens", count, smallest=8 if scores else 4)
    texts: list[object] = []
    ranks: list[object] = []
    types: list[object] = []
    for token in range(count):
        cursor.place = f"token {token}"
        text, type_ = _token(cursor, token, cursor.read_bytes(cursor.read(U32)))
        texts.append(text)
        types.append(type_)
        # Llama's scores are the negated ids, so that files without scores lose nothing.
        ranks.append(_FLOAT.unpack(cursor.read_bytes(4))[0] if scores else float(-token))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.scores": ranks,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.unknown_token_id": _UNKNOWN,
        "tokenizer.ggml.bos_token_id": _BOS,
        "tokenizer.ggml.eos_token_id": _EOS,
    }


def _token(cursor: Cursor, token: int, data: bytes) -> tuple[str, int]:
    """Text and type of a token. The file has no useful texts for the first three."""
    if token <= _EOS:
        return ("<unk>", "<s>", "</s>")[token], _UNKNOWN_TYPE if token == _UNKNOWN else _CONTROL
    if not data:
        return "", _UNUSED
    if token in _BYTE_TOKENS and len(data) == 1:
        return f"<0x{data[0]:02X}>", _BYTE
    try:
        return data.decode().replace(" ", "\u2581"), _NORMAL
    except UnicodeDecodeError as error:
        raise cursor.error("is not UTF-8") from error


def _read_tensors(cursor: Cursor, mapping: MappedFile, version: _Version) -> dict[str, Span]:
    spans: dict[str, Span] = {}
    while cursor.position < cursor.file_size:
        cursor.place = f"tensor {len(spans)}"
        if len(spans) == MAX_TENSORS:
            raise cursor.error(f"more than {MAX_TENSORS} tensors are refused")
        num_dims, name_length, type_id = cursor.read(U32), cursor.read(U32), cursor.read(U32)
        if not 1 <= num_dims <= 2:
            raise cursor.error(f"has {num_dims} dimensions, expected 1 or 2")
        if not 1 <= name_length <= MAX_NAME_BYTES:
            raise cursor.error(f"has a name of {name_length} bytes, expected 1 to {MAX_NAME_BYTES}")
        dims = [cursor.read(U32) for _ in range(num_dims)]
        name = cursor.read_text(name_length)
        cursor.place = f"tensor {shown(name)}"
        if name in spans:
            raise cursor.error("appears twice")
        if 0 in dims:
            raise cursor.error(f"has a dimension of length 0: {dims}")
        type_ = _type(cursor, version, type_id)
        if dims[0] % type_.block_len:
            raise cursor.error(f"has rows of {dims[0]} weights, not a multiple of {type_.name}'s {type_.block_len}")
        if version.aligned:
            cursor.take(round_up(cursor.position, _ALIGNMENT) - cursor.position)
        size = math.prod(dims[1:]) * type_.row_bytes(dims[0])
        spans[name] = Span(mapping, type_, tuple(reversed(dims)), cursor.take(size), size)
    return spans


def _type(cursor: Cursor, version: _Version, type_id: int) -> QuantType:
    if type_id in version.types:
        return version.types[type_id]
    supported = f"types that {version.name} files have: {', '.join(t.name for t in version.types.values())}"
    if version.name == "ggml" and type_id == 3:
        raise cursor.error(
            "is stored as Q4_1, whose layout changed in March 2023 without a sign of it in the file",
            hint="use a file of a later format",
        )
    known = next((name for name, type_ in TYPES.items() if type_.ggml_id == type_id), None)
    if known is None:
        raise cursor.error(f"has the unknown type {type_id}", hint=supported)
    raise cursor.error(f"is stored as {known}, which {version.name} does not have", hint=supported)


def _describe(path: Path, sizes: _Sizes, spans: dict[str, Span], gqa: int) -> dict[str, object]:
    """The metadata of the model, checked against the shapes of its tensors."""
    if min(sizes.embed, sizes.heads, sizes.layers) < 1 or sizes.embed % sizes.heads:
        reason = f"{sizes.heads} heads, {sizes.layers} layers and width {sizes.embed} do not fit together"
        raise FormatError(str(path), "header", reason, hint=_DAMAGED)
    if gqa < 1 or sizes.heads % gqa:
        raise LoadError(f"{path} has {sizes.heads} heads, which {gqa} cannot share", hint="give a divisor as --gqa")
    embedding = _shape(path, spans, "tok_embeddings.weight")
    if embedding != (sizes.vocab, sizes.embed):
        reason = f"is {_product(embedding)}, the header says {sizes.vocab} x {sizes.embed}"
        parts = embedding[0] == sizes.vocab and embedding[1] < sizes.embed
        hint = (
            "this is one of several parts of a model, which are not supported: use a GGUF file" if parts else _DAMAGED
        )
        raise FormatError(str(path), "tensor 'tok_embeddings.weight'", reason, hint=hint)
    key_rows = _shape(path, spans, "layers.0.attention.wk.weight")[0]
    if key_rows * gqa != sizes.embed:
        fits = key_rows and sizes.embed % key_rows == 0
        hint = f"give --gqa {sizes.embed // key_rows}" if fits else _DAMAGED
        reason = f"has {key_rows} rows, but {sizes.embed} / {gqa} are expected"
        raise FormatError(str(path), "tensor 'layers.0.attention.wk.weight'", reason, hint=hint)
    return {
        "general.architecture": "llama",
        "general.name": path.stem,
        "llama.vocab_size": sizes.vocab,
        "llama.context_length": CONTEXT_LENGTH,
        "llama.embedding_length": sizes.embed,
        "llama.block_count": sizes.layers,
        "llama.feed_forward_length": _shape(path, spans, "layers.0.feed_forward.w1.weight")[0],
        "llama.attention.head_count": sizes.heads,
        "llama.attention.head_count_kv": sizes.heads // gqa,
        "llama.attention.layer_norm_rms_epsilon": RMS_EPSILON,
        "llama.rope.dimension_count": sizes.rotary,
        "llama.rope.freq_base": ROPE_BASE,
    }


def _shape(path: Path, spans: dict[str, Span], name: str) -> tuple[int, int]:
    if name not in spans:
        hint = "only Llama models are supported in this format; others have GGUF files"
        raise FormatError(str(path), f"tensor {name!r}", "is missing", hint=hint)
    shape = spans[name].shape
    if len(shape) != 2:
        raise FormatError(str(path), f"tensor {name!r}", f"has {len(shape)} dimension, expected 2", hint=_DAMAGED)
    return shape[0], shape[1]


def _product(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
