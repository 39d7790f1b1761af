"""X-LoRA's two passes against the paper's equations, on every architecture and format, in every kind of step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from mistralrs.adapters.xlora.xlora import XLora, load_xlora
from mistralrs.adapters.xlora.xlora_executor import XLoraExecutor
from mistralrs.engine.batch import Batch, CancelFlag
from mistralrs.loading.convert import Dtype
from mistralrs.models.spec import DecoderSpec
from tests.adapters.xlora_files import axis_of, write_xlora
from tests.adapters.xlora_reference import ReferenceXLora
from tests.architectures import VARIANTS, Folders, Variant, write_folder
from tests.buffers import tensor_of
from tests.ggml_writer import write_ggml_of
from tests.gguf_of import write_gguf
from tests.parity.running import Running, Text, random_cuts, random_tokens
from tests.tiny import TOKENIZER_SIZE
from tests.tolerances import XLORA_LOGITS, XLORA_QUANTIZED_LOGITS

NAMES = ("llama", "mistral", "mixtral", "gemma", "phi2", "qwen3")
ATTENTION = ("q_proj", "v_proj")
FIELDS: dict[str, Mapping[str, Any]] = {
    "defaults": {},
    "layerwise": {"layerwise_scalings": True},
    "depth-2": {"xlora_depth": 2, "layerwise_scalings": True},
    "depth-3": {"xlora_depth": 3},
    "no-relu": {"xlora_depth": 3, "enable_relu_and_dropout": False, "layerwise_scalings": True},
    "no-bias": {"xlora_depth": 2, "use_bias": False},
    "no-softmax": {"enable_softmax": False, "layerwise_scalings": True},
    "temperature": {"softmax_temperature": 0.3, "layerwise_scalings": True},
    "scaling-pass": {"scaling_pass_value": 0.4, "layerwise_scalings": True},
    "weight": {"global_scaling_weight": 0.5, "scaling_pass_value": 1.0},
    "no-weight": {"global_scaling_weight": 0.0, "scaling_pass_value": 1.0},
    "top-k": {"top_k_lora": 2, "layerwise_scalings": True, "scaling_pass_value": 0.2},
    "top-1": {"top_k_lora": 1, "enable_softmax": False},
    "softmax-top-k": {"top_k_lora": 2, "enable_softmax_topk": True, "enable_softmax": False},
    "both-softmaxes": {"top_k_lora": 2, "enable_softmax_topk": True, "softmax_temperature": 0.5},
    "dropout": {"xlora_depth": 2, "xlora_dropout_p": 0.9},
}
CELLS = [(field, name) for field in FIELDS for name in NAMES]
SAMPLE = Random(6).sample(CELLS, 24)


def tokens(count: int = 24, *, seed: int = 5) -> list[int]:
    return random_tokens(TOKENIZER_SIZE, count, seed=seed)


def running(
    model: Path,
    xlora: Path,
    *,
    isa: str | None = "torch",
    non_granular: int | None = None,
    gqa: int = 1,
    order: Path | None = None,
    precision: str = "f32",
) -> Running:
    """The model with an X-LoRA: its ``runner`` is the executor. ``precision``: with another than f32, as by default,
    adapters are kept in half precision."""
    found: list[XLora] = []

    def mixture(architecture: str, spec: DecoderSpec) -> XLora:
        found.append(load_xlora(str(xlora), architecture, spec, order=order))
        return found[0]

    exact = precision == "f32"
    dtype: Dtype = "f32" if exact else "auto"
    plain = Running.load(model, precision=precision, isa=isa, threads=1, dtype=dtype, gqa=gqa, mixture=mixture)
    executor = XLoraExecutor(
        plain.model.decoder,
        found[0],
        plain.backend,
        vocab_size=plain.model.spec.vocab_size,
        in_half_precision=not exact,
        non_granular_index=non_granular,
    )
    return replace(plain, runner=executor)


def assert_near(logits: torch.Tensor, expected: torch.Tensor, tolerance: float = XLORA_LOGITS) -> None:
    assert logits.shape == expected.shape
    worst = ((logits - expected).abs().max() / (expected.amax() - expected.amin())).item()
    assert worst <= tolerance, f"off by {worst:.1e} of the range of the logits"


def check(model: Path, base: Path, xlora: Path, axis: list[str], *, isa: str | None = "torch", gqa: int = 1) -> None:
    """The logits are the reference's, and not those of the base."""
    expected = ReferenceXLora(base, xlora, axis).logits(tokens())
    assert_near(running(model, xlora, isa=isa, gqa=gqa).whole(tokens()), expected)


# Every field, architecture and format


@pytest.mark.parametrize(("field", "name"), SAMPLE)
def test_logits_are_those_of_the_equations(field: str, name: str, folders: Folders, tmp_path: Path) -> None:
    axis = axis_of(name, targets=ATTENTION)
    xlora = write_xlora(tmp_path / "xlora", folders(name), axis, seed=3, **FIELDS[field])
    check(folders(name), folders(name), xlora, axis)


@pytest.mark.slow
@pytest.mark.parametrize(("field", "name"), [cell for cell in CELLS if cell not in SAMPLE])
def test_every_other_cell(field: str, name: str, folders: Folders, tmp_path: Path) -> None:
    axis = axis_of(name, targets=ATTENTION)
    xlora = write_xlora(tmp_path / "xlora", folders(name), axis, seed=3, **FIELDS[field])
    check(folders(name), folders(name), xlora, axis)


@pytest.mark.native
@pytest.mark.parametrize("name", NAMES)
def test_all_modules(name: str, folders: Folders, tmp_path: Path) -> None:
    """With the native kernels; experts and routers too."""
    axis = axis_of(name)
    xlora = write_xlora(tmp_path / "xlora", folders(name), axis, layerwise_scalings=True, scaling_pass_value=0.3)
    check(folders(name), folders(name), xlora, axis, isa=None)
    plain = Running.load(folders(name), precision="f32", threads=1, dtype="f32").whole(tokens())
    found = running(folders(name), xlora, isa=None).whole(tokens())
    assert (found - plain).abs().max() > 0.05 * (plain.amax() - plain.amin())


def test_embedding_and_head_have_places(folders: Folders, tmp_path: Path) -> None:
    """The embedding's first, the head's last; scalings act behind A."""
    axis = axis_of("llama", targets=["q_proj", "embed_tokens", "lm_head"])
    assert (axis[0], axis[-1]) == ("model.embed_tokens", "lm_head")
    xlora = write_xlora(tmp_path / "xlora", folders("llama"), axis, layerwise_scalings=True)
    check(folders("llama"), folders("llama"), xlora, axis)


@pytest.mark.parametrize(
    "name", ["qwen2-window", "gemma2", "gemma3", "phi3", "smollm3", "olmo2", "granite", "mistral3"]
)
def test_other_architectures(name: str, folders: Folders, tmp_path: Path) -> None:
    """With windows in some layers, norms behind attention, and fused modules."""
    layers = len(VARIANTS[name].settings.get("layer_types", ())) or VARIANTS[name].settings.get("num_hidden_layers", 4)
    axis = axis_of(name, layers=layers)
    xlora = write_xlora(tmp_path / "xlora", folders(name), axis, layerwise_scalings=True)
    expected = ReferenceXLora(folders(name), xlora, axis).logits(tokens(40))
    assert_near(running(folders(name), xlora).whole(tokens(40)), expected)


@pytest.mark.native
@pytest.mark.parametrize("isa", ["torch", None], ids=["torch", "native"])
@pytest.mark.parametrize("type_", ["F16", "Q8_0"])
@pytest.mark.parametrize("name", NAMES)
def test_gguf_bases(name: str, type_: str, isa: str | None, folders: Folders, tmp_path: Path) -> None:
    """Against the equations on the weights as the file has them; Phi-2's q, k and v are one tensor there."""
    axis = axis_of(name)
    xlora = write_xlora(tmp_path / "xlora", folders(name), axis, layerwise_scalings=True, xlora_depth=2)
    file = write_gguf(tmp_path / "base.gguf", folders(name), type_=type_)
    stored = None if type_ == "F16" else type_
    decoded = write_folder(tmp_path / "decoded", VARIANTS[name], dtype=torch.float32, decoded_as=stored)
    expected = ReferenceXLora(decoded, xlora, axis).logits(tokens())
    tolerance = XLORA_LOGITS if type_ == "F16" else XLORA_QUANTIZED_LOGITS
    assert_near(running(file, xlora, isa=isa).whole(tokens()), expected, tolerance)


@pytest.mark.native
@pytest.mark.parametrize("isa", ["torch", None], ids=["torch", "native"])
def test_a_ggml_base(isa: str | None, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "plain", Variant("llama", {"rms_norm_eps": 1e-5}))
    axis = axis_of("llama")
    xlora = write_xlora(tmp_path / "xlora", folder, axis, layerwise_scalings=True)
    check(write_ggml_of(tmp_path / "plain.bin", folder), folder, xlora, axis, isa=isa, gqa=2)


# Every kind of step


class Case:
    """A model with an X-LoRA, its reference, and five texts of mixed lengths, each with the length of its prompt."""

    PROMPTS = (1, 4, 9, 18, 12)
    GENERATED = 5

    def __init__(self, folder: Path, xlora: Path, axis: list[str], *, non_granular: int | None = None) -> None:
        self.running = running(folder, xlora, isa=None, non_granular=non_granular)
        self.reference = ReferenceXLora(folder, xlora, axis)
        self.non_granular = non_granular

    def texts(self, *, first: int = 0) -> list[Text]:
        """``first``: where their blocks begin."""
        return [
            Text(tokens(count + self.GENERATED, seed=count), seed=first + seed, num_prompt=count)
            for seed, count in enumerate(self.PROMPTS)
        ]

    def alone(self) -> list[torch.Tensor]:
        """The logits of every text, computed alone: the prompt at once, then token by token."""
        found = []
        for text in self.texts():
            count = text.state.num_prompt
            steps = [(text, 0, count), *((text, at, at + 1) for at in range(count, len(text)))]
            found.append(torch.cat([self.running.step(step)[0] for step in steps]))
        return found

    def expected(self, text: Text) -> torch.Tensor:
        return self.reference.logits(text.tokens, num_prompt=text.state.num_prompt, non_granular=self.non_granular)


@pytest.fixture(scope="module", params=[None, 0, 1, 3], ids=["granular", "0", "1", "3"])
def case(request: pytest.FixtureRequest, folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Case:
    axis = axis_of("mixtral", targets=["q_proj", "o_proj", "w1", "w2"])
    settings = {"layerwise_scalings": True, "xlora_depth": 2, "scaling_pass_value": 0.3, "top_k_lora": 2}
    xlora = write_xlora(tmp_path_factory.mktemp("xlora"), folders("mixtral"), axis, seed=1, **settings)
    return Case(folders("mixtral"), xlora, axis, non_granular=request.param)


@pytest.fixture(scope="module")
def alone(case: Case) -> list[torch.Tensor]:
    return case.alone()


@pytest.mark.native
def test_decoding_is_that_of_the_equations(case: Case, alone: list[torch.Tensor]) -> None:
    for text, logits in zip(case.texts(), alone, strict=True):
        assert_near(logits, case.expected(text))
    if case.non_granular is not None:
        [text] = case.texts()[3:4]
        granular = case.reference.logits(text.tokens)
        kept = text.state.num_prompt + case.non_granular
        assert_near(alone[3][:kept], granular[:kept])
        assert (alone[3][kept + 1 :] - granular[kept + 1 :]).abs().max() > 0.01


@pytest.mark.native
def test_five_lengths_in_one_step(case: Case, alone: list[torch.Tensor]) -> None:
    """The bits of each are those of its run alone, whether its tokens come at once or one by one."""
    texts = case.texts(first=5)
    together = case.running.step(*((text, 0, len(text)) for text in texts))
    assert all(torch.equal(logits, of) for logits, of in zip(together, alone, strict=True))
    steps = [case.running.step(*((text, text.state.num_prompt + at, text.state.num_prompt + at + 1) for text in texts))
             for at in range(case.GENERATED)]  # fmt: skip
    for index, text in enumerate(texts):
        generated = torch.cat([step[index] for step in steps])
        assert torch.equal(generated, alone[index][text.state.num_prompt :])


@pytest.mark.native
@pytest.mark.parametrize("seed", range(3))
def test_chunks_of_any_size_in_any_company(seed: int, case: Case, alone: list[torch.Tensor]) -> None:
    """Chunks also reach over the last token with scalings of its own, as those with draft tokens do."""
    texts = case.texts(first=5)
    found: dict[Text, list[torch.Tensor]] = {text: [] for text in texts}
    for chunks in random_cuts(texts, seed=seed, largest=16):
        for (text, _, _), logits in zip(chunks, case.running.step(*chunks), strict=True):
            found[text].append(logits)
    assert all(torch.equal(torch.cat(found[text]), of) for text, of in zip(texts, alone, strict=True))


@pytest.mark.native
def test_computing_again_gives_the_same_bits(case: Case, alone: list[torch.Tensor]) -> None:
    """As without a KV cache and after a preemption; what a rejected draft token left behind does not count."""
    for text, logits in zip(case.texts(), alone, strict=True):
        count = text.state.num_prompt
        wrong = Text([*text.tokens[:count], *tokens(case.GENERATED, seed=99)], seed=3, num_prompt=count)
        wrong.blocks, wrong.state = text.blocks, text.state
        case.running.step((wrong, 0, len(wrong)))
        for end in range(count, len(text) + 1):
            assert torch.equal(case.running.step((text, 0, end))[0], logits[:end])


def test_scalings_can_be_read(case: Case) -> None:
    executor = case.running.runner
    assert isinstance(executor, XLoraExecutor)
    first, second = case.texts()[2:4]
    case.running.step((first, 0, 9), (second, 0, 18))
    for text, found in ((first, executor.scalings(0, 9)), (second, executor.scalings(9, 27))):
        expected = case.reference.scalings(text.tokens[: text.state.num_prompt])
        values = tensor_of(found)
        torch.testing.assert_close(values.double(), expected, rtol=1e-3, atol=1e-4)
        assert ((values > 0).sum(dim=-1) == 2).all()


def test_hidden_states_are_those_of_the_full_pass(case: Case) -> None:
    first, second = case.texts()[2:4]
    case.running.step((first, 0, 9), (second, 0, 18))
    found = tensor_of(case.running.runner.hidden(9, 27)).double()
    torch.testing.assert_close(found, case.reference.states(second.tokens[:18]), rtol=1e-3, atol=1e-3)


def test_a_cancelled_step_leaves_nothing_behind(case: Case) -> None:
    text = case.texts()[3]
    expected = case.running.step((text, 0, len(text)))[0]
    flag = CancelFlag()
    flag.set()
    groups, size = case.running.model.limits.kv_groups, case.running.model.limits.block_size
    batch = Batch.of_one_sequence(tokens(30, seed=8), 0, groups=groups, block_size=size, logits_indices=[29])
    batch.states[:] = [text.state]
    case.running.runner.forward(batch, flag)
    assert torch.equal(case.running.step((text, len(text) - 1, len(text)))[0], expected[-1:])


def test_blocks_hold_both_passes(case: Case) -> None:
    """A block that was copied elsewhere continues with the same bits."""
    executor = case.running.runner
    text, copy = (Text(tokens(40), seed=seed, num_prompt=40) for seed in (0, 1))
    expected = case.running.step((text, 0, 40))[0]
    copied = executor.export_block(0, text.blocks[0])
    executor.import_block(0, copy.blocks[0], copied)
    assert torch.equal(case.running.step((copy, 16, 40))[0], expected[16:])
    for damaged in (copied[:-1], copied[:-2], copied[: len(copied) // 2], b""):
        with pytest.raises(ValueError):
            executor.import_block(0, copy.blocks[0], damaged)
