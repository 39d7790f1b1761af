"""The memory of adapters: what they take in slots, and what is left to them when the KV cache is sized."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mistralrs.adapters.adapter_memory import adapter_bytes, largest_adapter_bytes
from mistralrs.adapters.adapter_placement import AdapterPlacement
from mistralrs.adapters.lora.lora import LoraAdapter
from mistralrs.adapters.lora.module_names import module_names
from mistralrs.adapters.lora.peft_files import read_peft
from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.loaded_adapters.adapter_options import ASSUMED_RANK, AdapterOptions, AdapterSource
from mistralrs.api.local_model import LocalModel
from mistralrs.errors import LoadError
from mistralrs.loading.describe import describe
from mistralrs.loading.pipeline import LoadPlan, load
from mistralrs.models.spec import DecoderSpec
from mistralrs.ops.backend import Backend, resolve
from mistralrs.ops.weight import Matrix
from mistralrs.quant.types import TYPES
from tests.adapters.merging import spec_of
from tests.adapters.peft_adapters import write_adapter
from tests.adapters.xlora_files import axis_of, write_xlora
from tests.architectures import Folders

pytestmark = pytest.mark.native

BLOCK_BYTES = 2 * 2 * 16 * 2 * 16
"""Of a KV block in a layer: keys and values, KV heads, head_dim, half precision, tokens."""
LAYERS, BLOCKS = 4, 12
TOKENS = 16 * BLOCKS


@pytest.fixture(scope="module")
def adapters(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("adapters")
    for name, rank in (("small", 2), ("large", 64)):
        write_adapter(path / name, folders("llama"), settings={"r": rank, "target_modules": "all-linear"})
    return path


def read(path: Path, base: Path) -> LoraAdapter:
    return read_peft(path, module_names(*spec_of(base)))


@pytest.fixture(scope="module")
def backend() -> Backend:
    return resolve("cpu", threads=1).backend


@pytest.mark.parametrize("half", [True, False])
def test_the_bytes_are_those_that_are_placed(
    half: bool, adapters: Path, folders: Folders, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(folders("llama"), backend, LoadPlan(max_seqs=1, max_batch_tokens=16, adapter_slots=1))
    adapter = read(adapters / "large", folders("llama"))
    reserved: list[int] = []
    monkeypatch.setattr(backend, "reserve", reserved.append)
    AdapterPlacement(model.decoder, backend, in_half_precision=half).prepare(adapter)
    size = adapter_bytes(adapter, backend, in_half_precision=half)
    assert reserved == [size]
    most = largest_adapter_bytes(model.spec, 64, backend, in_half_precision=half)
    assert size < most < 1.3 * size  # which acts on the embedding and the head as well


def test_experts_may_be_left_out(folders: Folders, backend: Backend) -> None:
    spec = spec_of(folders("mixtral"))[1]
    assert spec.moe is not None
    whole, shared = (
        largest_adapter_bytes(spec, 4, backend, in_half_precision=True, experts=experts) for experts in (True, False)
    )
    pair = sum(
        backend.placed_bytes(Matrix("", TYPES["F16"], rows, columns, memoryview(b"")))
        for rows, columns in ((4, spec.hidden_size), (spec.ffn_size, 4))
    )
    other = sum(
        backend.placed_bytes(Matrix("", TYPES["F16"], rows, columns, memoryview(b"")))
        for rows, columns in ((4, spec.ffn_size), (spec.hidden_size, 4))
    )
    assert whole - shared == len(spec.layers) * spec.moe.experts * (2 * pair + other)


def loaded(base: Path, options: AdapterOptions, free: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """The context that a model has where so many bytes are free beside its weights."""
    weights = describe(base).memory.weights
    monkeypatch.setattr("mistralrs.loading.pipeline.available_bytes", lambda: weights + free)
    with LocalModel.load(
        ModelSource(None, base, None, None), LoadOptions(threads=1, max_seqs=1, adapters=options)
    ) as model:
        return model.info.context_length


def slots_bytes(
    case: str, adapters: Path, spec: DecoderSpec, base: Path, backend: Backend
) -> tuple[AdapterOptions, int]:
    """Options, and the bytes that slots may take by them."""
    sources = tuple(AdapterSource(name, str(adapters / name)) for name in ("small", "large"))
    small, large = (
        adapter_bytes(read(adapters / name, base), backend, in_half_precision=True) for name in ("small", "large")
    )
    own, merged = AdapterOptions(sources), AdapterOptions(sources[1:], active=(("large", 1.0),))

    def of_rank(rank: int) -> int:
        return largest_adapter_bytes(spec, rank, backend, in_half_precision=True)

    cases = {
        "all": (own, small + large),
        "one at a time": (replace(own, max_adapters=1), large),
        "merged": (merged, 0),
        "others may come": (replace(own, root=adapters), large + 7 * of_rank(ASSUMED_RANK)),
        "of a rank": (replace(own, root=adapters, max_adapters=3, max_rank=64), 3 * of_rank(64)),
        "of some bytes": (AdapterOptions(root=adapters, max_adapters=2, max_bytes=5000), 2 * 5000),
        "the lower limit": (
            AdapterOptions(root=adapters, max_adapters=2, max_rank=1, max_bytes=1 << 30),
            2 * of_rank(1),
        ),
    }
    return cases[case]


CASES = ("all", "one at a time", "merged", "others may come", "of a rank", "of some bytes", "the lower limit")


@pytest.mark.parametrize("case", CASES)
def test_the_kv_cache_leaves_the_slots_their_memory(
    case: str, adapters: Path, folders: Folders, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = folders("llama")
    options, size = slots_bytes(case, adapters, spec_of(base)[1], base, backend)
    kv = 2 * LAYERS * BLOCKS * BLOCK_BYTES
    assert loaded(base, options, size + kv, monkeypatch) == TOKENS
    assert loaded(base, options, size + kv - 1, monkeypatch) == TOKENS - 16
    if size:
        with pytest.raises(LoadError, match=r"the weights take .* and the adapters .* of memory are free") as caught:
            loaded(base, options, size, monkeypatch)
        assert "--max-adapters" in str(caught.value.hint)


def test_those_of_an_xlora_count(folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = folders("llama")
    xlora = write_xlora(tmp_path / "xlora", base, axis_of("llama"), layerwise_scalings=True)
    options = AdapterOptions(xlora=str(xlora))
    kv = 2 * 2 * LAYERS * BLOCKS * BLOCK_BYTES  # of two passes
    assert loaded(base, options, kv + (1 << 20), monkeypatch) > loaded(base, options, kv + (1 << 17), monkeypatch)
    with pytest.raises(LoadError, match="and the adapters"):
        loaded(base, options, kv // 2, monkeypatch)


def test_an_adapter_that_does_not_fit_any_more(
    adapters: Path, folders: Folders, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(folders("llama"), backend, LoadPlan(max_seqs=1, max_batch_tokens=16, adapter_slots=1))
    adapter = read(adapters / "large", folders("llama"))
    placement = AdapterPlacement(model.decoder, backend, in_half_precision=True)
    monkeypatch.setattr("mistralrs.adapters.adapter_placement.available_bytes", lambda: 1000)
    with pytest.raises(LoadError, match=r"adapter large takes .* MiB, 0\.0 MiB of memory are free"):
        placement.prepare(adapter)
