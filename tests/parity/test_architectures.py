"""Every architecture: logits and greedy tokens of `transformers`, and the same logits from every format."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.local_model import LocalModel
from mistralrs.engine.config import SamplingParams
from mistralrs.engine.events import Delta, Finished
from mistralrs.errors import FormatError
from mistralrs.loading.pipeline import BLOCK_SIZE
from mistralrs.models.registry import HF_MODEL_TYPES
from tests.architectures import VARIANTS, WINDOW, Folders, Variant, greedy, reference, write_folder
from tests.ggml_writer import write_ggml_of
from tests.gguf_of import PLAIN, Layout, write_gguf
from tests.ops.harness import for_every_isa
from tests.parity import llamacpp
from tests.parity.running import Running, Text, random_cuts, random_tokens
from tests.tiny import TOKENIZER_SIZE
from tests.tolerances import (
    FLOAT_LOGITS,
    LLAMACPP_FLOAT,
    LLAMACPP_GELU,
    LLAMACPP_HALF,
    LLAMACPP_INT8,
    Q8_TIES,
    TWO_TERMS,
)

IN_GGUF = [name for name, variant in VARIANTS.items() if variant.in_gguf]
BACKENDS = [pytest.param(None, id="native", marks=pytest.mark.native), pytest.param("torch", id="torch")]
LENGTHS = (70, 33, 16, 1)
"""The lengths of texts that share steps: past three windows, past one, a whole block, a single token."""
OTHER_LAYOUTS = {
    "mixtral": Layout(single_experts=True),
    "phi2": Layout(fused_qkv=True),
    "granitehybrid": Layout(architecture=gguf.MODEL_ARCH.GRANITE_HYBRID),
}
GELU_TABLES = frozenset({"gemma", "gemma2", "gemma3", "gemma3-linear", "phi2"})
"""Variants for whose activation llama.cpp has a table."""

MESSAGES = [{"role": "user", "content": "the cat is on the hat"}]

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def texts() -> list[Text]:
    return [
        Text(random_tokens(TOKENIZER_SIZE, count, seed=count), seed=seed) for seed, count in enumerate(LENGTHS, start=1)
    ]


def expected_logits(folder: Path, tokens: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = reference(folder)(torch.tensor([tokens])).logits[0]
    return logits


def f32(path: Path, *, isa: str | None = None, gqa: int = 1) -> Running:
    # torch with two threads waits for a busy core a hundred times longer than such small tensors take
    return Running.load(path, precision="f32", isa=isa, threads=1 if isa == "torch" else 2, gqa=gqa)


def assert_close(logits: torch.Tensor, expected: torch.Tensor, *, tolerance: float) -> None:
    assert logits.shape == expected.shape
    spread = (expected.amax() - expected.amin()).item()
    worst = (logits - expected).abs().max().item() / spread
    assert worst <= tolerance, f"off by {worst:.1e} of the range of the logits"


# Against transformers


@pytest.mark.parametrize("isa", BACKENDS)
@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_those_of_transformers(name: str, isa: str | None, folders: Folders) -> None:
    """Whole, token by token, and in chunks of any size beside other texts; the kernels bit for bit alike."""
    running = f32(folders(name), isa=isa)
    whole = [running.whole(text.tokens) for text in texts()]
    for text, logits in zip(texts(), whole, strict=True):
        assert_close(logits, expected_logits(folders(name), text.tokens), tolerance=FLOAT_LOGITS)

    def same(rows: torch.Tensor, expected: torch.Tensor) -> None:
        if isa is None:
            assert torch.equal(rows, expected)
        else:
            spread = whole[0].amax() - whole[0].amin()
            assert (rows - expected).abs().max() <= FLOAT_LOGITS * spread

    alone, decoded = texts()[1], whole[1]
    for position in range(len(alone)):
        [row] = running.step((alone, position, position + 1))
        same(row[0], decoded[position])
    together = texts()
    for chunks in random_cuts(together, seed=5, largest=15):
        for rows, (text, start, end) in zip(running.step(*chunks), chunks, strict=True):
            same(rows, whole[together.index(text)][start:end])


@pytest.mark.native
@pytest.mark.parametrize("name", VARIANTS)
def test_keys_and_values_in_q8_0(name: str, folders: Folders) -> None:
    """The kernels are as near to the reference as values allow that are rounded to the other side."""
    text = texts()[1]
    plain, kernels = (
        Running.load(folders(name), precision="f32", threads=1, kv_cache_dtype="q8_0", isa=isa).whole(text.tokens)
        for isa in ("torch", None)
    )
    assert_close(kernels, plain, tolerance=Q8_TIES)


@pytest.mark.slow
@pytest.mark.native
@for_every_isa
@pytest.mark.parametrize("name", VARIANTS)
def test_every_instruction_set(name: str, isa: str, folders: Folders) -> None:
    [text, *_] = texts()
    logits = f32(folders(name), isa=isa).whole(text.tokens)
    assert_close(logits, expected_logits(folders(name), text.tokens), tolerance=FLOAT_LOGITS)


@pytest.mark.parametrize("isa", BACKENDS)
@pytest.mark.parametrize(
    ("name", "form"), [*((name, "folder") for name in VARIANTS), *((name, "gguf") for name in IN_GGUF)]
)
def test_greedy_tokens_are_those_of_transformers(
    name: str, form: str, isa: str | None, folders: Folders, tmp_path: Path
) -> None:
    """Through what the command line calls: tokenizer, chat template, engine.

    In float32, which users cannot choose: with keys and values in half precision, random models meet ties now and then.
    """
    path = folders(name) if form == "folder" else write_gguf(tmp_path / "tiny.gguf", folders(name))
    source = ModelSource(architecture=HF_MODEL_TYPES[VARIANTS[name].model_type], path=path, repo=None, filename=None)
    options = LoadOptions(precision=cast(Any, "f32"), isa=isa, threads=1, max_seqs=2)
    sampling = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    with LocalModel.load(source, options) as model:
        prompt = list(model.tokens_of(MESSAGES))
        events = list(model.chat(MESSAGES, sampling))
    assert prompt == chat_tokens(folders(name))
    assert isinstance(events[-1], Finished), events[-1]
    tokens = [token for event in events if isinstance(event, Delta) for token in event.tokens]
    assert tokens == greedy(reference(folders(name)), prompt, count=24)


def chat_tokens(folder: Path) -> list[int]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    found: Any = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    return [int(token) for token in found]


# Formats


@pytest.mark.parametrize("isa", BACKENDS)
@pytest.mark.parametrize("name", IN_GGUF)
def test_formats_give_the_same_logits(name: str, isa: str | None, folders: Folders, tmp_path: Path) -> None:
    """Bit for bit: the weights lie on the float16 grid, and float weights are multiplied as float32 numbers."""
    folder, tokens = folders(name), texts()[0].tokens
    expected = f32(folder, isa=isa).whole(tokens)
    wide = write_folder(tmp_path / "wide", VARIANTS[name], dtype=torch.float32)
    for path in (
        wide,
        wide / "model.safetensors",
        write_gguf(tmp_path / "F32.gguf", folder, type_="F32"),
        write_gguf(tmp_path / "F16.gguf", folder, type_="F16"),
        write_gguf(tmp_path / "other.gguf", folder, type_="F16", layout=OTHER_LAYOUTS.get(name, PLAIN)),
    ):
        assert torch.equal(f32(path, isa=isa).whole(tokens), expected), path.name


@pytest.mark.parametrize("isa", BACKENDS)
@pytest.mark.parametrize("type_", ["F32", "F16"])
def test_a_ggml_file_gives_the_same_logits(type_: str, isa: str | None, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "plain", Variant("llama", {"rms_norm_eps": 1e-5}))
    path = write_ggml_of(tmp_path / "plain.bin", folder, type_=type_)
    tokens = texts()[0].tokens
    expected = f32(folder, isa=isa).whole(tokens)
    assert torch.equal(f32(write_gguf(tmp_path / "plain.gguf", folder), isa=isa).whole(tokens), expected)
    assert torch.equal(f32(path, isa=isa, gqa=2).whole(tokens), expected)


@pytest.mark.native
@pytest.mark.parametrize("name", IN_GGUF)
def test_bfloat16_is_rounded_alike(name: str, folders: Folders, tmp_path: Path) -> None:
    """By `gguf` and by torch."""
    tokens = texts()[0].tokens
    folder = write_folder(tmp_path / "bf16", VARIANTS[name], dtype=torch.bfloat16)
    gguf = write_gguf(tmp_path / "BF16.gguf", folders(name), type_="BF16")
    assert torch.equal(f32(gguf).whole(tokens), f32(folder).whole(tokens))


@pytest.mark.parametrize("isa", BACKENDS)
@pytest.mark.parametrize("name", IN_GGUF)
def test_quantised_weights_are_those_of_the_file(name: str, isa: str | None, folders: Folders, tmp_path: Path) -> None:
    """Q8_0 against `transformers` with the weights as `gguf` decodes them: no noise but that of the activations."""
    tokens = texts()[0].tokens
    decoded = write_folder(tmp_path / "decoded", VARIANTS[name], dtype=torch.float32, decoded_as="Q8_0")
    path = write_gguf(tmp_path / "Q8_0.gguf", folders(name), type_="Q8_0", layout=OTHER_LAYOUTS.get(name, PLAIN))
    assert_close(f32(path, isa=isa).whole(tokens), expected_logits(decoded, tokens), tolerance=TWO_TERMS)


@pytest.mark.parametrize("name", IN_GGUF)
def test_llama_cpp_reads_the_same_file_the_same_way(name: str, folders: Folders, tmp_path: Path) -> None:
    """Golden logits of files that are written anew; `make oracles` writes both."""
    golden = json.loads((llamacpp.GOLDEN / f"llamacpp_{name}.json").read_text(encoding="utf-8"))
    kept = {row["case"]: row for row in golden["files"]}
    cases = [case for case in llamacpp.CASES if case.variants is None or name in case.variants]
    assert kept.keys() == {case.name for case in cases}
    for case in cases:
        path = case.write(tmp_path / "tiny.gguf", name, folders(name))
        assert llamacpp.digest(path) == kept[case.name]["digest"], "other weights; run: make oracles"
        logits = f32(path).whole(llamacpp.TOKENS)[list(case.positions)]
        floats = LLAMACPP_GELU if name in GELU_TABLES else LLAMACPP_FLOAT
        tolerance = {"F32": floats, "F16": LLAMACPP_HALF, "Q8_0": LLAMACPP_INT8}[case.type]
        assert_close(logits, torch.tensor(kept[case.name]["logits"]), tolerance=tolerance)


# Rules


@pytest.mark.parametrize("isa", BACKENDS)
def test_a_window_is_what_a_token_sees(isa: str | None, tmp_path: Path) -> None:
    """i - j < W: with one layer, the token W - 1 before still matters and the one before that does not."""
    variant = VARIANTS["mistral"]
    one_layer = replace(variant, settings={**variant.settings, "num_hidden_layers": 1})
    running = f32(write_folder(tmp_path / "one", one_layer), isa=isa)
    tokens = random_tokens(TOKENIZER_SIZE, 50, seed=9)
    last = len(tokens) - 1

    def changed(position: int) -> torch.Tensor:
        other = [*tokens]
        other[position] = (other[position] + 1) % TOKENIZER_SIZE
        return running.whole(other)[last]

    before = running.whole(tokens)[last]
    assert not torch.equal(changed(last - WINDOW + 1), before)
    assert torch.equal(changed(last - WINDOW), before)


@pytest.mark.parametrize("isa", BACKENDS)
def test_experts_that_are_not_chosen_are_not_read(isa: str | None, folders: Folders, tmp_path: Path) -> None:
    """Every expert that `transformers` does not choose for a token is made of NaN; the logits stay as they were."""
    token = 77
    with torch.inference_mode():
        routed = reference(folders("mixtral"))(torch.tensor([[token]]), output_router_logits=True).router_logits
    chosen = [set(scores[0].topk(2).indices.tolist()) for scores in routed]
    poisoned = shutil.copytree(folders("mixtral"), tmp_path / "poisoned")
    weights = load_file(poisoned / "model.safetensors")
    for name, weight in weights.items():
        if ".experts." in name:  # model.layers.0.block_sparse_moe.experts.3.w1.weight
            layer, expert = (int(part) for part in name.split(".") if part.isdecimal())
            if expert not in chosen[layer]:
                weight.fill_(float("nan"))
    save_file(weights, poisoned / "model.safetensors", metadata={"format": "pt"})
    expected = f32(folders("mixtral"), isa=isa).whole([token])
    assert expected.isfinite().all()
    assert torch.equal(f32(poisoned, isa=isa).whole([token]), expected)


@pytest.mark.parametrize("name", ["phi3-long"])
def test_a_long_context_ends_where_its_short_factors_do(
    name: str, folders: Folders, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in (folders(name), write_gguf(tmp_path / "tiny.gguf", folders(name))):
        caplog.clear()
        model = f32(path).model
        assert "the context ends at 256 tokens: --max-model-len takes the model's long factors for" in caplog.text
        assert model.max_model_len == 256
        assert model.limits.max_blocks * BLOCK_SIZE == 256


@pytest.mark.parametrize("isa", BACKENDS)
def test_a_longer_context_takes_the_long_factors(isa: str | None, folders: Folders, tmp_path: Path) -> None:
    """Past 256 tokens, where `transformers` takes them for the whole prompt."""
    tokens = random_tokens(TOKENIZER_SIZE, 300, seed=3)
    expected = expected_logits(folders("phi3-long"), tokens)
    for path in (folders("phi3-long"), write_gguf(tmp_path / "tiny.gguf", folders("phi3-long"))):
        running = Running.load(path, precision="f32", isa=isa, threads=1, max_model_len=400)
        assert running.model.max_model_len == 400
        assert_close(running.whole(tokens), expected, tolerance=FLOAT_LOGITS)
    assert Running.load(path, isa=isa, threads=1, max_model_len=100).model.max_model_len == 100
    assert Running.load(path, isa=isa, threads=1, max_model_len=1000).model.max_model_len == 512


def test_fused_rows_must_all_belong_to_a_part(folders: Folders, tmp_path: Path) -> None:
    """Or the ranges are wrong, and rows of one part are read as those of another."""
    folder = shutil.copytree(folders("phi3"), tmp_path / "phi3")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"num_key_value_heads": 1}), encoding="utf-8")
    with pytest.raises(FormatError, match=r"self_attn.qkv_proj.weight: has 128 rows, its parts have 96"):
        f32(folder)
