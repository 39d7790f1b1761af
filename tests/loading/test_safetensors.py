"""The safetensors reader on files and folders: valid ones against the `safetensors` package, and broken ones."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mistralrs.errors import FormatError, LoadError
from mistralrs.files import MAX_CONTAINERS
from mistralrs.loading.safetensors_file import INDEX_NAME, MAX_HEADER_BYTES, SafetensorsFile
from tests.loading.mutations import check_and_read
from tests.loading.test_gguf import mapped

TENSORS = {
    "model.embed_tokens.weight": torch.randn(7, 4, dtype=torch.bfloat16),
    "model.norm.weight": torch.randn(4, dtype=torch.float32),
    "lm_head.weight": torch.randn(7, 4, dtype=torch.float16),
    "model.deep": torch.randn(2, 3, 4),
    "model.scalar": torch.tensor(2.5),
    "model.none": torch.zeros(0, 4),
}


def values(checkpoint: SafetensorsFile) -> dict[str, torch.Tensor]:
    dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    found = {}
    for name, tensor in checkpoint.tensors.items():
        data = bytearray(tensor.data)
        flat = torch.frombuffer(data, dtype=dtypes[tensor.type.name]) if data else torch.zeros(0)
        found[name] = flat.reshape(tensor.shape)
    return found


def assert_equal(checkpoint: SafetensorsFile, expected: dict[str, torch.Tensor]) -> None:
    found = values(checkpoint)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    check_and_read(checkpoint)


def write_shards(folder: Path, shards: dict[str, dict[str, torch.Tensor]]) -> Path:
    """The files and an index over them."""
    for name, tensors in shards.items():
        save_file(tensors, folder / name)
    weight_map = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return folder / INDEX_NAME


SHARDS = {
    "model-00001-of-00002.safetensors": dict(list(TENSORS.items())[:3]),
    "model-00002-of-00002.safetensors": dict(list(TENSORS.items())[3:]),
}


def test_a_file_equals_the_safetensors_package(tmp_path: Path) -> None:
    path = tmp_path / "any.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    with SafetensorsFile.open(path) as file:
        assert file.path == path
        assert file.file_bytes == path.stat().st_size
        assert file.tensor("model.deep").shape == (2, 3, 4)
        assert_equal(file, TENSORS)
        with pytest.raises(FormatError, match=r"any\.safetensors: tensor 'model\.x': is missing"):
            file.tensor("model.x")


def test_a_folder_with_one_file(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    save_file({"other": torch.zeros(1)}, tmp_path / "consolidated.safetensors")
    save_file({"other": torch.zeros(1)}, tmp_path / "adapter.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "llama", "quantization_config": null}')
    with SafetensorsFile.open(tmp_path) as file:
        assert_equal(file, TENSORS)


@pytest.mark.parametrize("opened", ["", INDEX_NAME, *SHARDS])
def test_shards_with_an_index(opened: str, tmp_path: Path) -> None:
    write_shards(tmp_path, SHARDS)
    save_file({"layers.0.attention.wq.weight": torch.zeros(1)}, tmp_path / "consolidated.safetensors")
    with SafetensorsFile.open(tmp_path / opened) as file:
        assert_equal(file, TENSORS)
        assert file.file_bytes == sum((tmp_path / name).stat().st_size for name in SHARDS)


def test_a_file_that_the_index_does_not_name_is_opened_alone(tmp_path: Path) -> None:
    write_shards(tmp_path, SHARDS)
    other = tmp_path / "other.safetensors"
    save_file({"x": torch.ones(2)}, other)
    with SafetensorsFile.open(other) as file:
        assert list(file.tensors) == ["x"]


def test_the_index_chooses_between_two_files(tmp_path: Path) -> None:
    write_shards(tmp_path, {"a.safetensors": {"x": torch.ones(2)}, "b.safetensors": {"y": torch.ones(2)}})
    save_file({"x": torch.zeros(2), "y": torch.ones(2)}, tmp_path / "b.safetensors")
    with SafetensorsFile.open(tmp_path) as file:
        assert_equal(file, {"x": torch.ones(2), "y": torch.ones(2)})


def test_files_without_an_index(tmp_path: Path) -> None:
    for name, tensors in SHARDS.items():
        save_file(tensors, tmp_path / name)
    save_file({"other": torch.zeros(1)}, tmp_path / "consolidated.safetensors")
    with SafetensorsFile.open(tmp_path) as file:
        assert_equal(file, TENSORS)
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(LoadError, match=r"model-00001-of-00002\.safetensors is missing"):
        SafetensorsFile.open(tmp_path)


def test_consolidated_files_are_read_where_they_are_all_there_is(tmp_path: Path) -> None:
    save_file({"x": torch.ones(2)}, tmp_path / "consolidated.safetensors")
    with SafetensorsFile.open(tmp_path) as file:
        assert list(file.tensors) == ["x"]


def test_the_prefix_of_tuned_models_is_taken_off(tmp_path: Path) -> None:
    name = "base_model.model.model"
    tuned = {f"{name}.layers.0.mlp.up_proj.weight": torch.ones(2, 2), f"{name}.norm.weight": torch.ones(2)}
    write_shards(tmp_path, {"model-00001-of-00001.safetensors": tuned})
    with SafetensorsFile.open(tmp_path) as file:
        assert set(file.tensors) == {"model.layers.0.mlp.up_proj.weight", "model.norm.weight"}
        assert file.tensor("model.norm.weight").name == "model.norm.weight"
    save_file({**tuned, "model.norm.weight": torch.ones(2)}, tmp_path / "twice.safetensors")
    with pytest.raises(FormatError, match="is in the model twice"):
        SafetensorsFile.open(tmp_path / "twice.safetensors")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path, SHARDS)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(LoadError, match=r"index\.json names 'model-00002-of-00002\.safetensors', which is missing"):
        SafetensorsFile.open(tmp_path)


def test_a_tensor_that_the_shard_lacks_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path, SHARDS)
    save_file({"model.scalar": TENSORS["model.scalar"]}, tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(FormatError, match=r"00002-of-00002\.safetensors: tensor 'model\.deep': is missing, though"):
        SafetensorsFile.open(tmp_path)


def test_the_same_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({"x": torch.ones(2)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(FormatError, match=r"b\.safetensors: tensor 'x': is in the model twice"):
        SafetensorsFile.open(tmp_path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "index.json is empty"),
        ("[]", "is not a JSON object"),
        ("{", "is not JSON"),
        ("{}", "weight_map: is missing"),
        ('{"weight_map": {}}', "weight_map: is missing"),
        ('{"weight_map": ["a"]}', "weight_map: is missing"),
        ('{"weight_map": {"x": 5}}', "tensor 'x': is said to be in 5"),
        ('{"weight_map": {"x": "../a.safetensors"}}', "expected the name of a .safetensors file beside the index"),
        ('{"weight_map": {"x": "pytorch_model.bin"}}', "is said to be in 'pytorch_model.bin'"),
        ('{"weight_map": {"x": "a.safetensors", "x": "b.safetensors"}}', "has the key 'x' twice"),
        ('{"weight_map": {"x": "\\ud800.safetensors"}}', r"names '\ud800.safetensors', which is missing"),
        ('{"weight_map": {"x": "\\u0000.safetensors"}}', r"names '\x00.safetensors', which is missing"),
    ],
)
def test_a_broken_index_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / INDEX_NAME).write_text(text)
    with pytest.raises(LoadError) as caught:
        SafetensorsFile.open(tmp_path)
    assert reason in caught.value.message
    assert str(tmp_path / INDEX_NAME) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("config", "how"),
    [
        ({"quant_method": "gptq", "bits": 4}, "with GPTQ"),
        ({"quant_method": "awq"}, "with AWQ"),
        ({"quant_method": "compressed-tensors"}, "with COMPRESSED-TENSORS"),
        ({"load_in_4bit": True}, "in an unknown way"),
        ("\x1b[31m", "in an unknown way"),
    ],
)
def test_quantized_models_are_refused_by_name(config: object, how: str, tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": config}))
    for path in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(LoadError, match=f"a model quantized {how}, which is not supported") as caught:
            SafetensorsFile.open(path)
        assert "--isq" in str(caught.value.hint)


@pytest.mark.parametrize("suffix", ["qweight", "qzeros"])
def test_quantized_tensors_are_refused_by_name(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({f"model.layers.0.mlp.up_proj.{suffix}": torch.zeros(2, 2, dtype=torch.int32)}, path)
    with pytest.raises(LoadError, match=f"is quantized with GPTQ or AWQ, as its tensor .*{suffix}'") as caught:
        SafetensorsFile.open(path)
    assert "--isq" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "consolidated.00.pth"])
def test_pickles_are_refused_by_name(name: str, tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(2)}, tmp_path / name)
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(LoadError, match=f"{name} is a pickled PyTorch checkpoint") as caught:
            SafetensorsFile.open(path)
        assert "save_pretrained" in str(caught.value.hint)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_under_another_name_is_seen(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    torch.save({"x": torch.zeros(2)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(LoadError, match="is a pickled PyTorch checkpoint"):
        SafetensorsFile.open(path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"has no \.safetensors file"):
        SafetensorsFile.open(tmp_path)
    with pytest.raises(LoadError, match=r"none\.safetensors cannot be read: No such file"):
        SafetensorsFile.open(tmp_path / "none.safetensors")


def container(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin: int, end: int, *, dtype: object = "F32", shape: object = (2,)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HUGE = 2**64 - 1
BROKEN: dict[str, tuple[bytes, str]] = {
    "three bytes": (b"abc", "header: 8 bytes at byte 0 run past the end of the file at byte 3"),
    "header length": (container({}, length=HUGE), f"header: has a length of {HUGE} bytes, more than"),
    "header past the end": (container({}, length=100), "header: 100 bytes at byte 8 run past the end"),
    "empty header": (container(b""), "header: starts with b''"),
    "not an object": (container([]), "header: starts with b'[' instead of b'{'"),
    "not JSON": (container(b"{abc}"), "header: is not JSON"),
    "not UTF-8": (container(b'{"\xff": 1}'), "header: is not JSON"),
    "UTF-16": (container('{"a": 1}'.encode("utf-16-le")), "header: is not JSON"),
    "deep": (container(b'{"a":' + b"[" * 100000), "header: is not JSON"),
    "long number": (container(b'{"a":' + b"9" * 5000 + b"}"), "header: is not JSON"),
    "many lists": (container(b"{" + b"[" * (MAX_CONTAINERS + 1)), f"has more than {MAX_CONTAINERS} objects and lists"),
    "same tensor": (container(b'{"t": {}, "t": {}}'), "header: has the key 't' twice"),
    "same key": (container(b'{"t": {"dtype": "F32", "dtype": "F16"}}'), "header: has the key 'dtype' twice"),
    "metadata": (container({"__metadata__": 5}), "__metadata__: is not an object of texts"),
    "metadata value": (container({"__metadata__": {"a": 5}}), "__metadata__: is not an object of texts"),
    "entry": (container({"t": 5}), "tensor 't': is not an object of dtype, shape and data_offsets"),
    "entry keys": (container({"t": {"dtype": "F32"}}), "tensor 't': is not an object of dtype, shape"),
    "more keys": (container({"t": {**entry(0, 8), "x": 1}}, bytes(8)), "tensor 't': is not an object of dtype"),
    "type": (container({"t": entry(0, 8, dtype="I64", shape=[1])}, bytes(8)), "tensor 't': is stored as 'I64', which"),
    "type FP8": (container({"t": entry(0, 2, dtype="F8_E4M3")}, bytes(2)), "tensor 't': is stored as 'F8_E4M3', which"),
    "type number": (container({"t": entry(0, 8, dtype=5)}, bytes(8)), "tensor 't': has the type 5"),
    "shape": (container({"t": entry(0, 8, shape=2)}, bytes(8)), "tensor 't': has the shape 2"),
    "shape negative": (container({"t": entry(0, 8, shape=[-1, -2])}, bytes(8)), "has the shape [-1, -2]"),
    "shape float": (container({"t": entry(0, 8, shape=[2.0])}, bytes(8)), "has the shape [2.0]"),
    "shape bool": (container({"t": entry(0, 4, shape=[True])}, bytes(4)), "has the shape [True]"),
    "shape long": (container({"t": entry(0, 4, shape=[1] * 9)}, bytes(4)), "has the shape [1, 1, 1,"),
    "shape overflow": (container({"t": entry(0, 0, shape=[2**62, 4])}, bytes(8)), "has 0 bytes of data, but F32 of"),
    "shape huge": (container({"t": entry(0, 8, shape=[2**64, 0])}, bytes(8)), "has the shape [18446744073709551616,"),
    "offsets": (container({"t": {**entry(0, 8), "data_offsets": [0]}}, bytes(8)), "has the offsets [0], expected two"),
    "offsets negative": (container({"t": entry(-8, 0)}, bytes(8)), "has the offsets [-8, 0]"),
    "offsets swapped": (container({"t": entry(8, 0)}, bytes(8)), "has -8 bytes of data"),
    "offsets and shape": (container({"t": entry(0, 4)}, bytes(8)), "has 4 bytes of data, but F32 of shape [2] takes 8"),
    "past the end": (container({"t": entry(0, 8)}, bytes(7)), "past the end of the file at byte"),
    "overlap": (container({"t": entry(0, 8), "u": entry(4, 12)}, bytes(12)), "tensor 'u': its data at byte"),
    "same place": (container({"t": entry(0, 8), "u": entry(0, 8)}, bytes(8)), "tensor 'u': its data at byte"),
    "hole": (container({"t": entry(0, 8), "u": entry(12, 20)}, bytes(20)), "tensor 'u': its data starts at byte"),
    "hole first": (container({"t": entry(4, 12)}, bytes(12)), "4 after what comes before"),
    "bytes behind": (container({"t": entry(0, 8)}, bytes(9)), "data: ends at byte"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused(name: str, tmp_path: Path) -> None:
    data, message = BROKEN[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(FormatError) as caught:
            SafetensorsFile.open(path)
        assert time.process_time() - start < 1.0
        assert tracemalloc.get_traced_memory()[1] < (4 << 20)
    finally:
        tracemalloc.stop()
    assert caught.value.message.startswith(f"{path}: ")
    assert message in caught.value.message
    assert len(caught.value.message) < len(str(path)) + 400
    assert caught.value.hint


def test_a_refused_file_is_not_kept_mapped(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(BROKEN["hole"][0])
    with pytest.raises(FormatError):
        SafetensorsFile.open(path)
    assert not mapped(path)


def test_a_long_header_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{")
        file.truncate(2**31)  # sparse
    with pytest.raises(FormatError, match=f"more than {MAX_HEADER_BYTES}"):
        SafetensorsFile.open(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(3), "b": torch.ones(2, dtype=torch.float16)}, path)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(FormatError, match=r"model\.safetensors"):
            SafetensorsFile.open(path)


def test_needs_neither_torch_nor_numpy() -> None:
    program = "import sys, mistralrs.loading.safetensors_file; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
