"""Loading a GGUF file: every refusal has a reason and a hint, before anything large is allocated."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mistralrs.errors import FormatError, LoadError, UsageError
from mistralrs.loading.pipeline import LoadPlan, Model, load_gguf
from mistralrs.loading.text_source import TextSource
from mistralrs.ops.backend import resolve
from mistralrs.ops.kv_groups import KvGroup
from tests.gguf_edits import Edit, drop, edited, put, store
from tests.tiny import TinyConfig, write_tiny

ROOT = Path(__file__).parents[2]


def load(path: Path, plan: LoadPlan | None = None, **options: Any) -> Model:
    backend = resolve("cpu", threads=1).backend
    return load_gguf(path, backend, plan or LoadPlan(max_seqs=2, max_batch_tokens=32), **options)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("pipeline") / "tiny.gguf").path


REFUSED: dict[str, tuple[Edit, str]] = {
    "unknown architecture": (put("general.architecture", "mamba"), "the architecture 'mamba', which is not supported"),
    "no architecture's metadata": (drop("llama.block_count"), "metadata key 'llama.block_count': is missing"),
    "metadata of another kind": (put("llama.block_count", "two"), "is of type str, expected int"),
    "missing tensor": (drop("blk.1.ffn_up.weight"), "tensor 'blk.1.ffn_up.weight': is missing"),
    "missing embedding": (drop("token_embd.weight"), "tensor 'token_embd.weight': is missing"),
    "missing norm": (drop("output_norm.weight"), "tensor 'output_norm.weight': is missing"),
    "wrong shape": (store("blk.0.attn_k.weight", 64, 64), "tensor blk.0.attn_k.weight: is 64 x 64, expected 32 x 64"),
    "wrong norm": (store("blk.0.attn_norm.weight", 63), "tensor blk.0.attn_norm.weight: is 63, expected 64"),
    "wrong bias": (store("blk.0.attn_q.bias", 63), "blk.0.attn_q.bias"),
    "tensors too many": (
        lambda metadata, tensors: tensors.update(dict.fromkeys(("blk.0.extra.weight", "a.b"), np.ones(3, np.float32))),
        "2 tensors that this architecture does not have, the first is a.b",
    ),
    "a layer too many": (put("llama.block_count", 1), "9 tensors that this architecture does not have"),
    "a layer too few": (put("llama.block_count", 3), "tensor 'blk.2.attn_q.weight': is missing"),
    "no layers": (put("llama.block_count", 0), "0 layers"),
    "absurd layers": (put("llama.block_count", 2**31), "layers are not between 1 and 1000"),
    "no experts to use": (
        lambda metadata, tensors: metadata.update({"llama.expert_count": 4, "llama.expert_used_count": 5}),
        "5 of 4 experts cannot be used",
    ),
    "experts without tensors": (
        lambda metadata, tensors: metadata.update({"llama.expert_count": 4, "llama.expert_used_count": 2}),
        "blk.0.ffn",
    ),
    "uneven heads": (put("llama.attention.head_count_kv", 3), "4 heads, 3 KV heads and width 64 do not fit together"),
    "no heads": (put("llama.attention.head_count", 0), "0 heads"),
    "keys unlike values": (put("llama.attention.value_length", 8), "keys and values of different or no length"),
    "unknown rope": (put("llama.rope.scaling.type", "dynamic"), "rotary scaling of type 'dynamic' is not supported"),
    "odd rope": (put("llama.rope.dimension_count", 7), "a rotary width of 7 does not fit heads of 16"),
    "wide rope": (put("llama.rope.dimension_count", 32), "a rotary width of 32 does not fit heads of 16"),
    "no base": (put("llama.rope.freq_base", 0.0), "is not positive"),
    "factors of another rope": (store("rope_freqs.weight", 5), "5 rotary factors for 8 frequencies"),
    "no context": (put("llama.context_length", 0), "context"),
    "context below zero": (put("llama.context_length", -512), "context"),
    "tokenizer of another model": (
        lambda metadata, tensors: tensors.update({"token_embd.weight": tensors["token_embd.weight"][:-2]}),
        "the tokenizer has 288 tokens, the model knows 286",
    ),
    "unknown tokenizer": (put("tokenizer.ggml.model", "rwkv"), "rwkv"),
    "broken template": (put("tokenizer.chat_template", "{% for %}"), "template"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tiny: Path, tmp_path: Path) -> None:
    edit, message = REFUSED[name]
    path = edited(tiny, tmp_path / "edited.gguf", edit)
    with pytest.raises(LoadError) as caught:
        load(path)
    assert message in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.exit_code == 3


def test_an_unchanged_copy_is_loaded(tiny: Path, tmp_path: Path) -> None:
    """The refusals above are due to the changes alone."""
    model = load(edited(tiny, tmp_path / "copy.gguf", lambda metadata, tensors: None))
    assert (model.architecture, model.quantization, model.name) == ("llama", "F32", "tiny")
    assert model.max_model_len == 512
    assert model.parameters == load(tiny).parameters > 10_000


def test_an_architecture_for_another_subcommand(tiny: Path) -> None:
    with pytest.raises(LoadError, match="holds the architecture 'llama', not 'gemma'") as caught:
        load(tiny, architecture="gemma")
    assert caught.value.exit_code == 3
    assert caught.value.hint == f"this command works: mistralrs -i gguf -f {tiny}"


def test_a_norm_that_is_quantized(tiny: Path, tmp_path: Path) -> None:
    def edit(metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        tensors["blk.0.attn_norm.weight"] = tensors["blk.0.attn_norm.weight"].astype(np.float16)

    load(edited(tiny, tmp_path / "halves.gguf", edit))


def test_no_room_for_the_weights(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mistralrs.loading.pipeline.available_bytes", lambda: 100_000)
    with pytest.raises(LoadError, match=r"the weights take .* GiB of memory are free") as caught:
        load(tiny)
    assert str(tiny) in caught.value.message
    assert "smaller model" in (caught.value.hint or "")


IN_PLACE = LoadPlan(max_seqs=2, max_batch_tokens=32, in_place=True)


def test_weights_that_stay_in_the_file_need_no_room(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal names the option, and with the option the model is loaded."""
    totals: list[int] = []
    load(tiny, progress=lambda what, done, total: totals.append(total))
    monkeypatch.setattr("mistralrs.loading.pipeline.available_bytes", lambda: totals[0])
    with pytest.raises(LoadError) as caught:
        load(tiny)
    assert "leave the weights in their file (--no-pack)" in (caught.value.hint or "")
    assert load(tiny, IN_PLACE).max_model_len >= 128
    monkeypatch.setattr("mistralrs.loading.pipeline.available_bytes", lambda: 1_000)
    with pytest.raises(LoadError) as caught:
        load(tiny, IN_PLACE)
    assert "--no-pack" not in (caught.value.hint or "")


def test_converted_weights_cannot_stay_in_the_file(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(LoadError, match=r"--no-pack leaves .* token_embd.weight is stored as F32 and computed as BF16"):
        load(tiny, replace(IN_PLACE, dtype="bf16"))
    load(tiny, IN_PLACE)
    assert not caplog.text

    def edit(metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        tensors["blk.0.attn_k.weight"] = tensors["blk.0.attn_k.weight"].astype(np.float16)

    load(edited(tiny, tmp_path / "mixed.gguf", edit), replace(IN_PLACE, dtype="f16"))
    assert "--no-pack: 14 weights take 0 MiB in memory all the same; token_embd.weight" in caplog.text


def test_room_for_less_context(tiny: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The cache gets half of what the weights leave."""
    totals: list[int] = []
    load(tiny, progress=lambda what, done, total: totals.append(total))
    token_bytes = 2 * 2 * 2 * 16 * 2  # layers, KV heads, keys and values, head_dim, half precision
    monkeypatch.setattr("mistralrs.loading.pipeline.available_bytes", lambda: totals[0] + 2 * 20 * 16 * token_bytes)
    model = load(tiny)
    assert model.max_model_len == 20 * 16
    assert model.limits.kv_groups == (KvGroup(20),)
    assert "memory for 320 tokens of context; the model allows 512" in caplog.text


def test_q8_0_holds_twice_the_context_and_not_every_head(tmp_path: Path) -> None:
    paths = [write_tiny(tmp_path / f"{size}.gguf", TinyConfig(head_dim=size, context=4096)).path for size in (64, 40)]
    backend = resolve("cpu", threads=1, isa="torch").backend
    plans = [
        LoadPlan(max_seqs=1, max_batch_tokens=16, kv_memory=1 << 20, kv_cache_dtype=dtype) for dtype in ("f16", "q8_0")
    ]
    half, small = (load_gguf(paths[0], backend, plan) for plan in plans)
    assert 1.7 < small.max_model_len / half.max_model_len < 1.8
    with pytest.raises(LoadError, match="q8_0 need heads of a multiple of 16, and this model's have 40"):
        load_gguf(paths[1], backend, plans[1])


def test_progress_ends_at_the_total(tiny: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    load(tiny, progress=lambda *news: seen.append(news))
    assert {what for what, _, _ in seen} == {"weights"}
    assert seen == sorted(seen)
    assert seen[-1][1] == seen[-1][2]


def test_the_users_template_takes_priority(tiny: Path, tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text("mine {{ messages[0].content }}", encoding="utf-8")
    backend = resolve("cpu", threads=1).backend
    plan = LoadPlan(max_seqs=1, max_batch_tokens=16, text=TextSource(chat_template=str(template)))
    model = load_gguf(tiny, backend, plan)
    assert model.template is not None
    assert model.template.render([{"role": "user", "content": "x"}]) == "mine x"
    absent = LoadPlan(max_seqs=1, max_batch_tokens=16, text=TextSource(chat_template=str(tmp_path / "absent.jinja")))
    with pytest.raises(LoadError) as caught:
        load_gguf(tiny, backend, absent)
    assert caught.value.message == f"{tmp_path / 'absent.jinja'} does not exist"


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_is_placed_once(tied: bool, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", TinyConfig(tied=tied)).path
    totals: list[int] = []
    backend = resolve("cpu", threads=1, isa="torch").backend  # which places at once, and reports each matrix
    plan = LoadPlan(max_seqs=2, max_batch_tokens=32)
    load_gguf(path, backend, plan, progress=lambda what, done, total: totals.append(total))
    assert len(totals) == 15 + (not tied)


def test_a_missing_file_is_a_load_error(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"absent\.gguf"):
        load(tmp_path / "absent.gguf")


def test_errors_of_broken_files_are_format_errors(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(tiny.read_bytes()[:-100])
    with pytest.raises(FormatError, match="past the end"):
        load(path)


def test_without_kernels_torch_is_used_with_a_warning() -> None:
    code = (
        "from mistralrs.ops.backend import resolve; r = resolve('cpu'); print(r.backend.name, r.unavailable_backends)"
    )
    environment = {**os.environ, "MISTRALRS_NO_NATIVE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("cpu torch ")
    assert "switched off by MISTRALRS_NO_NATIVE" in done.stdout
    assert resolve("cpu", isa="torch").unavailable_backends == ()


def test_an_unknown_instruction_set_is_named() -> None:
    with pytest.raises(UsageError, match="the sse9 kernels cannot be used") as caught:
        resolve("cpu", isa="sse9")
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match="no such device: abacus"):
        resolve("abacus")


@pytest.mark.native
def test_torch_is_not_imported_to_load(tiny: Path) -> None:
    """Its import takes longer than reading and packing, so it runs beside them and nothing may wait for it."""
    code = (
        "import sys; from pathlib import Path; from mistralrs.loading.pipeline import LoadPlan, load_gguf\n"
        "from mistralrs.ops.backend import resolve\n"
        "model = load_gguf(Path(sys.argv[1]), resolve('cpu').backend, LoadPlan(max_seqs=1, max_batch_tokens=16))\n"
        "print(model.name, [name for name in ('torch', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tiny)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "tiny []\n"
