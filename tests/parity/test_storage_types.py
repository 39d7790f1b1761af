"""Every role of a model in every type that a file may store it in: the kernels' logits are those of plain torch.

A sample of the pairs; `make soak` has all of them (``tests.soak.quantized_whole``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mistralrs.errors import FormatError, LoadError
from mistralrs.ops.native_checks import MAX_HEAD_DIM
from mistralrs.quant.types import DECODED, EXPANDED
from tests.architectures import VARIANTS, write_folder
from tests.ggml_writer import FORMATS, write_ggml
from tests.gguf_edits import edited
from tests.parity.running import Running
from tests.retyped import FAMILIES, STORABLE, TOKENS, Base, difference, write_base
from tests.tiny import TinyConfig, write_tiny
from tests.tolerances import TWO_TERMS

pytestmark = [pytest.mark.native, pytest.mark.usefixtures("one_torch_thread")]

Bases = Callable[[str], Base]
PAIRS = 6
"""Pairs of a family."""


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    @cache
    def base(name: str) -> Base:
        return Base.read(write_base(tmp_path_factory.mktemp(name), name))

    return base


@pytest.mark.parametrize("name", FAMILIES)
def test_pairs_of_role_and_type(name: str, bases: Bases, tmp_path: Path) -> None:
    base = bases(name)
    pairs = [
        (names, type_.name)
        for role, names in base.roles().items()
        for type_ in STORABLE.values()
        if base.can_store(names[0], type_) and not role.startswith("rope")
    ]
    for names, type_name in Random(name).sample(pairs, PAIRS):
        path = base.write(tmp_path / "pair.gguf", dict.fromkeys(names, type_name))
        assert difference(path) <= TWO_TERMS, (names[0], type_name)


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_weights_that_stay_in_the_file_give_the_same_logits(name: str, bases: Bases, tmp_path: Path) -> None:
    """To the bit, in types drawn for each matrix; a router is read as floats, and therefore copied."""
    base, random = bases(name), Random(name)
    types = [type_ for type_ in STORABLE.values() if type_.name not in EXPANDED | DECODED]
    matrices = [each for each, values in base.tensors.items() if values.ndim > 1]
    path = base.write(tmp_path / "mixed.gguf", {each: random.choice(types).name for each in matrices})
    packed, stored = (Running.load(path, precision="default", in_place=each) for each in (False, True))
    assert torch.equal(stored.whole(TOKENS), packed.whole(TOKENS))
    assert torch.equal(stored.whole(TOKENS[:1]), packed.whole(TOKENS[:1]))


def test_weights_that_stay_in_files_of_other_formats(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder", VARIANTS["llama"], dtype=torch.bfloat16)
    tiny = write_tiny(tmp_path / "tiny.gguf", TinyConfig(tied=False, kv_heads=4))
    legacy = write_ggml(tmp_path / "legacy.bin", tiny, version="ggjt version 3", type_="Q4_0")
    for path in (folder, legacy.path):
        packed, stored = (Running.load(path, in_place=each).whole(TOKENS) for each in (False, True))
        assert torch.equal(stored, packed), path
    first = write_ggml(tmp_path / "first.bin", tiny, version="ggjt version 1", type_="Q4_0")
    with pytest.raises(LoadError, match="--no-pack leaves weights as they are stored, but all have to be converted"):
        Running.load(first.path, in_place=True)


@pytest.mark.parametrize("type_name", STORABLE)
def test_a_router_of_any_type(type_name: str, bases: Bases, tmp_path: Path) -> None:
    """Kernels read it as floats; a quantized one crashed them."""
    base = bases("mixtral")
    path = base.write(tmp_path / "router.gguf", dict.fromkeys(base.roles()["ffn_gate_inp.weight"], type_name))
    assert difference(path) <= TWO_TERMS


@pytest.mark.parametrize("type_name", ["Q8_0", "Q4_K", "IQ4_NL", "F16"])
def test_vectors_of_any_type(type_name: str, bases: Bases, tmp_path: Path) -> None:
    """Norms and biases."""
    base = bases("llama")
    vectors = [name for name, values in base.tensors.items() if values.ndim == 1 and not name.startswith("rope")]
    fits = [name for name in vectors if base.can_store(name, STORABLE[type_name])]
    assert any("norm" in name for name in fits)
    assert any(name.endswith(".bias") for name in fits)
    assert difference(base.write(tmp_path / "vectors.gguf", dict.fromkeys(fits, type_name))) <= TWO_TERMS


def test_experts_of_a_layer_in_different_types(bases: Bases, tmp_path: Path) -> None:
    base, random = bases("mixtral-single"), Random(4)
    experts = [name for name in base.tensors if ".ffn_" in name and base.tensors[name].ndim == 2 and "inp" not in name]
    for _ in range(3):
        types = {name: random.choice(list(STORABLE)) for name in experts}
        assert difference(base.write(tmp_path / "experts.gguf", types)) <= TWO_TERMS
    folder = write_folder(tmp_path / "folder", VARIANTS["mixtral"])
    weights = load_file(folder / "model.safetensors")
    dtypes = [torch.float32, torch.float16, torch.bfloat16]
    for name in weights:
        weights[name] = weights[name].to(random.choice(dtypes))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert difference(folder) <= TWO_TERMS


@pytest.mark.parametrize("part", ["ffn_gate_inp", "ffn_up_exps", "ffn_down_exps"])
def test_biases_of_a_mixture_are_added(part: str, bases: Bases, tmp_path: Path) -> None:
    """No model of today has them; they were left out in silence, or a defect."""
    base = bases("mixtral")
    biases = {
        name.replace("weight", "bias"): np.linspace(-1, 1, values[..., 0].size, dtype=np.float32).reshape(
            values.shape[:-1]
        )
        for name, values in base.tensors.items()
        if f".{part}." in name
    }
    plain, biased = base.write(tmp_path / "plain.gguf", {}), tmp_path / "biased.gguf"
    edited(plain, biased, lambda metadata, tensors: tensors.update(biases))
    assert difference(biased) <= TWO_TERMS
    before, after = (Running.load(path, precision="f32").whole(TOKENS) for path in (plain, biased))
    assert (after - before).abs().max() > 0.01 * (before.max() - before.min())


@pytest.mark.parametrize(
    ("family", "name", "shape", "message"),
    [
        ("mixtral", "blk.0.ffn_up_exps.bias", (5,), r"has shape \(5,\), expected \(5, 256\)"),
        ("llama", "token_embd.bias", (288,), "1 tensors that this architecture does not have"),
        ("gemma3", "blk.1.attn_q_norm.bias", (256,), "1 tensors that this architecture does not have"),
    ],
)
def test_biases_that_nothing_adds_are_refused(
    family: str, name: str, shape: tuple[int, ...], message: str, bases: Bases, tmp_path: Path
) -> None:
    plain = bases(family).write(tmp_path / "plain.gguf", {})
    path = edited(plain, tmp_path / "biased.gguf", lambda _, tensors: tensors.update({name: np.ones(shape, "f4")}))
    with pytest.raises(LoadError, match=message):
        difference(path)


def test_vectors_that_do_not_split_in_blocks_are_refused(bases: Bases, tmp_path: Path) -> None:
    base = bases("llama")
    assert not base.can_store("rope_freqs.weight", STORABLE["Q4_K"])
    with pytest.raises(FormatError, match="not a multiple of Q4_K's 256"):
        difference(damaged(base.write(tmp_path / "factors.gguf", {"rope_freqs.weight": "Q8_0"})))


def damaged(path: Path) -> Path:
    """The file, in which the rotary factors say that they are Q4_K."""
    data = bytearray(path.read_bytes())
    place = data.index(b"rope_freqs.weight") + len(b"rope_freqs.weight") + 4 + 8
    assert data[place : place + 4] == STORABLE["Q8_0"].ggml_id.to_bytes(4, "little")
    data[place : place + 4] = STORABLE["Q4_K"].ggml_id.to_bytes(4, "little")
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("version", "type_name"),
    [(format_.name, type_name) for format_ in FORMATS.values() for type_name in format_.types if format_.layout < 3],
)
def test_types_of_old_files(version: str, type_name: str, tmp_path: Path) -> None:
    """One role at a time, drawn anew for each type: a matrix and a norm."""
    tiny = write_tiny(tmp_path / "tiny.gguf", TinyConfig(tied=False))
    random = Random(version + type_name)
    matrices = ("embed_tokens", "lm_head", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    norms = ("norm", "input_layernorm", "post_attention_layernorm")
    for role in (random.choice(matrices), random.choice(norms)):
        legacy = write_ggml(tmp_path / "old.bin", tiny, version=version, others={role: type_name})
        assert difference(legacy.path, gqa=2) <= TWO_TERMS, role


def test_heads_that_are_too_wide_are_refused(bases: Bases, tmp_path: Path) -> None:
    """Kernels keep rows of heads on the stack; heads of 65536 overran it."""
    head_dim = MAX_HEAD_DIM + 1

    def widen(metadata: dict[str, object], tensors: dict[str, np.ndarray]) -> None:
        metadata |= {
            "llama.attention.key_length": head_dim,
            "llama.attention.value_length": head_dim,
            "llama.attention.head_count": 1,
            "llama.attention.head_count_kv": 1,
            "llama.rope.dimension_count": 64,
        }
        for name in [name for name in tensors if ".attn_" in name and "norm" not in name]:
            output = "output" in name
            if name.endswith(".bias"):
                tensors[name] = np.zeros(256 if output else head_dim, np.float32)
            else:
                tensors[name] = np.zeros((256, head_dim) if output else (head_dim, 256), np.float32)

    path = edited(bases("llama").write(tmp_path / "plain.gguf", {}), tmp_path / "wide.gguf", widen)
    with pytest.raises(LoadError, match=f"heads of {head_dim} are not 1 to 4096 wide"):
        difference(path)
