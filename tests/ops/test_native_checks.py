"""An operation that a kernel could not run is refused by name when it is bound; nothing is read past its end."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import replace

import pytest
from mistralrs_kernels import cpu

from mistralrs.errors import LoadError
from mistralrs.ops.arena import Arena, buffer
from mistralrs.ops.backend import BackendUnavailable, KvShape, Norm, Rotary
from mistralrs.ops.linear import Linear
from mistralrs.ops.native_backend import NativeBackend
from mistralrs.ops.weight import Matrix
from mistralrs.ops.workspace import Sizes, Workspace
from mistralrs.quant.types import BY_GGML_ID, DECODED, EXPANDED, TYPES
from tests.ops.harness import ISAS, native, random_matrix

pytestmark = pytest.mark.native

HIDDEN, FFN, VOCAB, HEAD = 64, 96, 40, 16


@pytest.fixture
def backend() -> NativeBackend:
    return native(ISAS[0])


@pytest.fixture
def work() -> Workspace:
    return Workspace(
        Sizes(
            max_tokens=4, max_seqs=1, max_logits=1, max_blocks=1,
            hidden=HIDDEN, q=4 * HEAD, kv=2 * HEAD, ffn=FFN, vocab=VOCAB, rotary=(HEAD // 2,),
        )
    )  # fmt: skip


class Recorder:
    """The library, which notes the instruction sets that it is asked for."""

    def __init__(self) -> None:
        self.library, self.asked = cpu.load(), list[str]()

    def __getattr__(self, name: str) -> object:
        return getattr(self.library, name)

    def mrs_table_at(self, index: int) -> object:
        self.asked.append(cpu.ISAS[index])
        return self.library.mrs_table_at(index)


@pytest.mark.parametrize("isa", sorted(cpu.BY_NAME))
def test_an_instruction_set_that_nobody_measured_is_taken_only_by_name(
    isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    monkeypatch.setattr(cpu, "load", lambda: recorder)
    assert NativeBackend(threads=1).isa != isa
    assert recorder.asked
    assert isa not in recorder.asked, "the library may start a process to try it"
    if isa in ISAS:
        assert NativeBackend(threads=1, isa=isa).isa == isa
    else:
        with pytest.raises(BackendUnavailable, match="this processor and build have"):
            NativeBackend(threads=1, isa=isa)
    assert isa in recorder.asked


def placed(backend: NativeBackend, rows: int, columns: int, type_: str = "F32") -> Linear:
    return Linear(backend.place(random_matrix(type_, rows=rows, columns=columns, seed=1)))


def norm(length: int, *, bias: bool = False, eps: float = 1e-5) -> Norm:
    arena = Arena(8 * length + 256)
    return Norm(buffer(arena, length), eps, "rms", buffer(arena, length) if bias else None)


def mixture(backend: NativeBackend, work: Workspace, **changed: object) -> None:
    parts: dict[str, object] = {
        "norm": norm(HIDDEN),
        "router": placed(backend, 3, HIDDEN),
        "gate": [placed(backend, FFN, HIDDEN)] * 3,
        "up": [placed(backend, FFN, HIDDEN)] * 3,
        "down": [placed(backend, HIDDEN, FFN)] * 3,
        "used": 2,
    }
    backend.moe(work, activation="silu", outlier_threshold=0.0, **(parts | changed))  # type: ignore[arg-type]


@pytest.mark.parametrize("type_", [*BY_GGML_ID.values(), *EXPANDED.values(), *DECODED.values()], ids=lambda t: t.name)
def test_types_without_a_packed_form(type_: object, backend: NativeBackend) -> None:
    matrix = replace(random_matrix("F32", rows=2, columns=256, seed=1), type=type_, data=memoryview(bytearray(4096)))
    if type_ in TYPES.values():
        assert backend.place(matrix).type is type_
    else:
        with pytest.raises(LoadError, match=f"F32: the kernels cannot read the type {matrix.type.name}"):
            backend.place(matrix)


@pytest.mark.parametrize("type_", [type_ for type_ in TYPES if type_ not in ("F32", "F16", "BF16")])
def test_a_quantised_router(type_: str, backend: NativeBackend, work: Workspace) -> None:
    """It was read as floats that were not there: the process ended with SIGSEGV."""
    columns = 256
    wide = Workspace(replace(work.sizes, hidden=columns))
    experts = {
        "norm": norm(columns),
        "gate": [placed(backend, FFN, columns)] * 3,
        "up": [placed(backend, FFN, columns)] * 3,
        "down": [placed(backend, columns, FFN)] * 3,
    }
    with pytest.raises(LoadError, match=f"{type_}: the kernels read a router as floats, not as {type_}"):
        mixture(backend, wide, router=placed(backend, 3, columns, type_), **experts)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda b: {"used": 4}, "4 of 3 experts"),
        (lambda b: {"used": 0}, "0 of 3 experts"),
        (lambda b: {"router": placed(b, 2, HIDDEN)}, "is 2 x 64, expected 3 x 64"),
        (lambda b: {"up": [placed(b, FFN, HIDDEN)] * 2}, "3 experts cannot be used"),
        (lambda b: {"up": [placed(b, FFN - 1, HIDDEN)] * 3}, "is 95 x 64, expected 96 x 64"),
        (lambda b: {"down": [placed(b, HIDDEN, FFN - 1)] * 3}, "is 64 x 95, expected 64 x 96"),
        (lambda b: {"norm": norm(HIDDEN - 1)}, "does not fit rows of 64"),
    ],
)
def test_experts_that_do_not_fit_together(
    changed: Callable[[NativeBackend], dict[str, object]], message: str, backend: NativeBackend, work: Workspace
) -> None:
    mixture(backend, work)
    with pytest.raises(LoadError, match=message):
        mixture(backend, work, **changed(backend))


def test_matrices_that_are_too_wide_or_cut_short(backend: NativeBackend) -> None:
    wide = Matrix("wide", TYPES["F16"], 1, 1 << 19, memoryview(bytearray(1 << 20)))
    with pytest.raises(LoadError, match="wide: the kernels take rows of 1 to 262144 columns, not 1 x 524288"):
        backend.placed_bytes(wide)
    short = replace(random_matrix("Q8_0", rows=2, columns=64, seed=1), data=memoryview(bytearray(100)))
    with pytest.raises(LoadError, match="Q8_0: has 100 bytes, its 2 rows take 136"):
        backend.place(short)
    biased = replace(random_matrix("F32", rows=2, columns=64, seed=1), bias=array("f", [0.0]))
    with pytest.raises(LoadError, match="F32: has 1 biases for 2 rows"):
        backend.place(biased)
    with pytest.raises(LoadError, match="Q4_K: 100 columns are no multiple of Q4_K's block of 256"):
        backend.placed_bytes(replace(random_matrix("Q4_K", rows=2, columns=256, seed=1), columns=100))


def test_projections_that_do_not_fit(backend: NativeBackend, work: Workspace) -> None:
    right, narrow = placed(backend, FFN, HIDDEN), placed(backend, FFN, HIDDEN - 1)
    backend.project([right], work.x, [work.ffn])
    for weights, outs, epilogue, message in (
        ([narrow], [work.ffn], "store", "is 96 x 63, expected 96 x 64"),
        ([right], [work.x], "store", "is 96 x 64, expected 64 x 64"),
        ([placed(backend, HIDDEN, HIDDEN)], [work.x], "add", "the results overwrite what is read"),
        ([right] * 5, [work.ffn] * 5, "store", "a projection of 5 matrices"),
        ([right], [work.ffn] * 2, "store", "1 results for 2 buffers"),
        ([right], [work.ffn], "gated", "a gate and what it gates"),
        ([right, placed(backend, FFN + 1, HIDDEN)], [work.ffn], "gated", "a gate and what it gates"),
    ):
        with pytest.raises(LoadError, match=message):
            backend.project(weights, work.x, outs, epilogue=epilogue)  # type: ignore[arg-type]
    with pytest.raises(LoadError, match="does not fit rows of 64"):
        backend.project([right], work.x, [work.ffn], norm=norm(HIDDEN + 1))
    with pytest.raises(LoadError, match="does not fit rows of 64"):
        backend.add_norm(work.projected, work.x, norm(HIDDEN + 1))


def test_embeddings_that_do_not_fit(backend: NativeBackend, work: Workspace) -> None:
    rotary = Rotary(buffer(Arena(256), HEAD // 2), work.rotary[0])
    backend.embed(placed(backend, VOCAB, HIDDEN), work, rotaries=[rotary])
    for rows, columns, count, message in (
        (VOCAB - 1, HIDDEN, 1, "is 39 x 64, expected 40 x 64"),
        (VOCAB, HIDDEN + 1, 1, "is 40 x 65, expected 40 x 64"),
        (VOCAB, HIDDEN, 3, "3 rotary embeddings"),
    ):
        with pytest.raises(LoadError, match=message):
            backend.embed(placed(backend, rows, columns), work, rotaries=[rotary] * count)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"heads": 5}, "5 heads and 2 KV heads of 16"),
        ({"kv_heads": 1}, "4 heads and 1 KV heads of 16"),
        ({"head_dim": 32}, "4 heads and 2 KV heads of 32"),
        ({"q_norm": norm(HEAD + 1)}, "does not fit rows of 16"),
        ({"k_norm": norm(HEAD, bias=True)}, "normed by RMS alone"),
        ({"q_norm": norm(HEAD), "k_norm": norm(HEAD, eps=1e-3)}, "normed by RMS alone"),
        ({"rotary": Rotary(buffer(Arena(256), HEAD), buffer(Arena(1024), 4, 2, HEAD))}, "a rotary width of 32"),
    ],
)
def test_attention_that_does_not_fit(
    changed: dict[str, object], message: str, backend: NativeBackend, work: Workspace
) -> None:
    kv = backend.kv_cache(KvShape(blocks=(1,), kv_heads=2, head_dim=HEAD, block_size=16))
    usual: dict[str, object] = {"heads": 4, "kv_heads": 2, "head_dim": HEAD, "rotary": None}
    backend.attend(work, kv, layer=0, group=0, scale=1.0, **usual)  # type: ignore[arg-type]
    with pytest.raises(LoadError, match=message):
        backend.attend(work, kv, layer=0, group=0, scale=1.0, **(usual | changed))  # type: ignore[arg-type]
