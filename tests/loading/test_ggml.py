"""The reader of legacy GGML files on files of every version, valid and broken."""

from __future__ import annotations

import ctypes
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mistralrs.errors import FormatError, LoadError
from mistralrs.loading.ggml_file import GgmlFile
from mistralrs.quant.dequantize import dequantize
from mistralrs.text.tokenizer import Tokenizer
from tests.ggml_writer import (
    FORMATS,
    SPACE,
    TYPE_IDS,
    ggml_name,
    header,
    padding,
    tensor_start,
    token,
    tokens,
    write_ggml,
)
from tests.loading.mutations import check_and_read
from tests.tiny import TinyConfig, TinyModel, write_tiny

CONFIG = TinyConfig(tied=False, feed_forward=96, kv_heads=2)
CASES = [(version, type_) for version, format_ in FORMATS.items() for type_ in format_.types]
LAST = FORMATS["ggjt version 3"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return write_tiny(tmp_path_factory.mktemp("ggml") / "tiny.gguf", CONFIG)


def paired(name: str, rows: torch.Tensor) -> torch.Tensor:
    """Rows of q and k in the file's order: the members of a rotary pair side by side."""
    heads = {"q_proj": CONFIG.heads, "k_proj": CONFIG.kv_heads}.get(name.split(".")[-2])
    return rows if heads is None else rows.view(heads, 2, -1, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


@pytest.mark.parametrize(("version", "type_"), CASES)
def test_tensors_of_every_version_and_type(tiny: TinyModel, version: str, type_: str, tmp_path: Path) -> None:
    written = write_ggml(tmp_path / "model.bin", tiny, version=version, type_=type_)
    with GgmlFile.open(written.path, gqa=2) as file:
        assert file.version == version
        assert file.file_bytes == written.path.stat().st_size
        assert list(file.tensors) == [ggml_name(name) for name in written.weights]
        for name, expected in written.weights.items():
            tensor = file.tensor(ggml_name(name))
            assert tensor.shape == expected.shape
            rows = torch.from_numpy(np.frombuffer(tensor.data, np.uint8).copy()).view(
                -1, tensor.type.row_bytes(tensor.shape[-1])
            )
            decoded = dequantize(tensor.type, rows, tensor.shape[-1]).view(tensor.shape)
            assert torch.equal(decoded, paired(name, torch.from_numpy(expected))), name
            original = torch.from_numpy(tiny.weights[name])
            limit = 0.0 if type_ == "F32" else 0.2 * original.abs().max().item()
            assert (paired(name, original) - decoded).abs().max().item() <= limit
            assert ctypes.addressof(ctypes.c_char.from_buffer(tensor.data)) % FORMATS[version].alignment == 0
        check_and_read(file)


def test_metadata_equals_that_of_gguf(tiny: TinyModel, tmp_path: Path) -> None:
    path = write_ggml(tmp_path / "llama-7b.q4_0.bin", tiny, version="ggjt version 3").path
    with GgmlFile.open(path, gqa=2) as file:
        described = {key: value for key, value in file.metadata.items() if not key.startswith("tokenizer.")}
        tokens_of_file = file.require("tokenizer.ggml.tokens", list)
        types = file.require("tokenizer.ggml.token_type", list)
        scores = file.require("tokenizer.ggml.scores", list)
    assert described == {
        "general.architecture": "llama",
        "general.name": "llama-7b.q4_0",
        "llama.vocab_size": CONFIG.vocab,
        "llama.context_length": 4096,
        "llama.embedding_length": 64,
        "llama.block_count": 2,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 10000.0,
    }
    assert tokens_of_file[:5] == ["<unk>", "<s>", "</s>", "<0x00>", "<0x01>"]
    assert tokens_of_file[258:263] == ["<0xFF>", SPACE, "t", "h", "e"]
    assert types[:5] == [2, 3, 3, 6, 6]
    assert types[258:261] == [6, 1, 1]
    assert scores[259:262] == [0.0, -1.0, -2.0]
    assert len(tokens_of_file) == len(types) == len(scores) == CONFIG.vocab


@pytest.mark.parametrize("version", FORMATS)
def test_the_vocabulary_makes_a_tokenizer(tiny: TinyModel, version: str, tmp_path: Path) -> None:
    path = write_ggml(tmp_path / "model.bin", tiny, version=version).path
    with GgmlFile.open(path, gqa=2) as file:
        tokenizer = Tokenizer.from_gguf(file.metadata)
        names = file.require("tokenizer.ggml.tokens", list)
    ids = tokenizer.encode("the and é\n", special=False)
    assert [names[token] for token in ids] == [SPACE + "the", SPACE + "and", SPACE, "é", "<0x0A>"]
    assert tokenizer.decode(ids).strip(" ") == "the and é\n"
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (1, frozenset({2}))


def whole(format_version: str = "ggjt version 3", *, vocab: int = 3, change: dict[str, bytes] | None = None) -> bytes:
    """A minimal model of width 2, with one head and one layer; ``change`` replaces pieces by name."""
    format_, change = FORMATS[format_version], change or {}
    data = change.get("header", header(format_, vocab, 2, 1, 1, 1, 2, 0))
    data += change.get("tokens", token(format_, b"") * vocab)
    for name, rows in (("tok_embeddings", vocab), ("layers.0.attention.wk", 2), ("layers.0.feed_forward.w1", 5)):
        start = change.get(name, tensor_start(f"{name}.weight".encode(), (2, rows), 0))
        data += start + padding(format_, len(data) + len(start)) + bytes(8 * rows)
    return data + change.get("end", b"")


def refusal(data: bytes, path: Path, *, gqa: int = 1) -> LoadError:
    path.write_bytes(data)
    with pytest.raises(LoadError) as caught:
        GgmlFile.open(path, gqa=gqa)
    assert str(path) in caught.value.message
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("version", FORMATS)
def test_the_minimal_model_is_valid(version: str, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(whole(version))
    with GgmlFile.open(path) as file:
        assert file.require("llama.feed_forward_length", int) == 5


@pytest.mark.parametrize("version", FORMATS)
def test_every_truncation_is_refused(version: str, tmp_path: Path) -> None:
    data = whole(version)
    for size in range(len(data)):
        refusal(data[:size], tmp_path / "model.bin")


K = "layers.0.attention.wk"
BROKEN: dict[str, tuple[bytes, str]] = {
    "magic": (b"abcd" + bytes(50), "header: starts with b'abcd'"),
    "GGUF": (b"GGUF" + bytes(50), "is a GGUF file"),
    "adapter": (b"algg" + bytes(50), "is a LoRA adapter"),
    "session": (b"nsgg" + bytes(50), "is a saved session"),
    "pickle": (b"PK\3\4" + bytes(26) + b"x/data.pkl", "is a pickled PyTorch checkpoint"),
    "old pickle": (b"\x80\2}q" + bytes(50), "is a pickled PyTorch checkpoint"),
    "version": (struct.pack("<II", 0x67676A74, 4) + bytes(50), "has version 4 of ggjt"),
    "version of ggmf": (struct.pack("<II", 0x67676D66, 2) + bytes(50), "has version 2 of ggmf"),
    "no tokens": (whole(change={"header": header(LAST, 0, 2, 1, 1, 1, 2, 0)}), "vocabulary: claims 0 tokens"),
    "many tokens": (whole(change={"header": header(LAST, 2**32 - 1, 2, 1, 1, 1, 2, 0)}), "claims 4294967295 tokens"),
    "more tokens": (whole(change={"header": header(LAST, 1000, 2, 1, 1, 1, 2, 0)}), "claims 1000 tokens, but only"),
    "token length": (
        whole(change={"tokens": token(LAST, b"") * 2 + struct.pack("<If", 2**32 - 1, 0)}), "token 2: 4294967295 bytes",
    ),
    "token text": (
        whole(vocab=4, change={"tokens": token(LAST, b"") * 3 + token(LAST, b"\xff\xfe")}),
        "token 3: is not UTF-8",
    ),
    "no dimensions": (whole(change={K: tensor_start(b"a", (), 0)}), "tensor 1: has 0 dimensions"),
    "three dimensions": (whole(change={K: tensor_start(b"a", (1, 1, 1), 0)}), "tensor 1: has 3 dimensions"),
    "dimension 0": (whole(change={K: tensor_start(b"a", (0, 4), 0)}), "tensor 'a': has a dimension of length 0"),
    "no name": (whole(change={K: tensor_start(b"", (2, 2), 0)}), "tensor 1: has a name of 0 bytes"),
    "long name": (whole(change={K: tensor_start(b"a" * 513, (2, 2), 0)}), "tensor 1: has a name of 513 bytes"),
    "name text": (whole(change={K: tensor_start(b"\xff", (2, 2), 0)}), "tensor 1: text at byte"),
    "same name": (whole(change={K: tensor_start(b"tok_embeddings.weight", (2, 2), 0)}), "appears twice"),
    "unknown type": (whole(change={K: tensor_start(b"a", (2, 2), 77)}), "tensor 'a': has the unknown type 77"),
    "Q8_1": (whole(change={K: tensor_start(b"a", (32, 2), 9)}), "tensor 'a': has the unknown type 9"),
    "row length": (whole(change={K: tensor_start(b"a", (33, 2), 2)}), "rows of 33 weights, not a multiple of Q4_0's"),
    "data": (whole(change={K: tensor_start(b"a", (2**31, 2**31), 0)}), "'a': 18446744073709551616 bytes at byte"),
    "too early for Q4_K": (
        whole("ggjt version 2", change={K: tensor_start(b"a", (256, 2), 12)}), "stored as Q4_K, which ggjt version 2",
    ),
    "Q4_1 without a version": (
        whole("ggml", change={K: tensor_start(b"a", (32, 2), 3)}), "stored as Q4_1, whose layout changed in March",
    ),
    "heads": (whole(change={"header": header(LAST, 3, 2, 1, 3, 1, 2, 0)}), "3 heads, 1 layers and width 2 do not fit"),
    "no heads": (whole(change={"header": header(LAST, 3, 2, 1, 0, 1, 2, 0)}), "0 heads"),
    "embedding": (whole(change={"tok_embeddings": tensor_start(b"tok_embeddings.weight", (3, 2), 0)}), "is 2 x 3"),
    "one of several parts": (
        whole(change={"header": header(LAST, 3, 4, 1, 1, 1, 2, 0)}), "is 3 x 2, the header says 3 x 4",
    ),
    "other model": (whole(change={"tok_embeddings": tensor_start(b"wte", (2, 3), 0)}), "'tok_embeddings.weight': is"),
    "vector": (
        whole(change={K: tensor_start(f"{K}.weight".encode(), (4,), 0)}), f"tensor '{K}.weight': has 1 dimension",
    ),
    "trailing bytes": (whole(change={"end": b"abc"}), "tensor 3: 4 bytes at byte"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file_is_refused(name: str, tmp_path: Path) -> None:
    data, message = BROKEN[name]
    assert message in refusal(data, tmp_path / "model.bin").message


def test_one_of_several_parts_is_refused_by_name(tmp_path: Path) -> None:
    error = refusal(BROKEN["one of several parts"][0], tmp_path / "model.bin")
    assert "several parts" in str(error.hint)


def test_the_sharing_of_heads_must_fit_the_tensors(tiny: TinyModel, tmp_path: Path) -> None:
    path = write_ggml(tmp_path / "model.bin", tiny, version="ggjt version 3").path
    with pytest.raises(FormatError, match=r"attention\.wk\.weight': has 32 rows") as caught:
        GgmlFile.open(path)
    assert caught.value.hint == "give --gqa 2"
    for gqa in (0, 3):
        with pytest.raises(LoadError, match="has 4 heads"):
            GgmlFile.open(path, gqa=gqa)


def test_a_token_without_text_is_unused(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(whole(vocab=4))
    with GgmlFile.open(path) as file:
        assert file.metadata["tokenizer.ggml.token_type"] == [2, 3, 3, 5]


def test_all_types_of_the_writer_have_an_id() -> None:
    assert {name for format_ in FORMATS.values() for name in format_.types} == TYPE_IDS.keys()
    assert len(tokens(CONFIG.vocab)) == CONFIG.vocab


def test_needs_neither_torch_nor_numpy() -> None:
    program = "import sys, mistralrs.loading.ggml_file; print(sorted({'torch', 'numpy', 'gguf'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
