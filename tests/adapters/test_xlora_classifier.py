"""X-LoRA's classifier against the paper's equations and against peft, and its files."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mistralrs.adapters.xlora.xlora_classifier import XLoraClassifier, read_classifier
from mistralrs.adapters.xlora.xlora_config import XLoraConfig, read_xlora_config
from mistralrs.errors import FormatError, LoadError
from tests.adapters.adapter_files import write_json, xlora_content
from tests.adapters.xlora_reference import reference_scalings

HIDDEN, SIZE, LAYERS = 12, 7, 5
NAMES = ["a", "b", "c", "d"]
PREFIX = "base_model.internal_xlora_classifier."


def config_of(folder: Path, **settings: Any) -> XLoraConfig:
    content = xlora_content(hidden_size=HIDDEN, xlora_size=SIZE, adapters=NAMES, **settings)
    return read_xlora_config(write_json(folder / "xlora_config.json", content))


def module_names(config: XLoraConfig) -> list[str]:
    """As the xlora package names them: ReLU and dropout have places in the list, too."""
    step = 3 if config.enable_relu_and_dropout else 1
    return [*(f"inner.{step * number}" for number in range(config.xlora_depth - 1)), "last"]


def drawn(config: XLoraConfig, *, seed: int = 0) -> dict[str, Tensor]:
    """Tensors of a classifier, with numbers that a float16 holds."""
    generator = torch.Generator().manual_seed(seed)
    outputs = len(config.adapters) * (LAYERS if config.layerwise_scalings else 1)
    widths = [config.hidden_size, *[config.xlora_size] * (config.xlora_depth - 1), outputs]
    tensors = {}
    for name, (columns, rows) in zip(module_names(config), itertools.pairwise(widths), strict=True):
        tensors[f"{name}.weight"] = torch.randn(rows, columns, generator=generator).half().float()
        if config.use_bias:
            tensors[f"{name}.bias"] = torch.randn(rows, generator=generator).half().float()
    return tensors


def written(folder: Path, tensors: Mapping[str, Tensor]) -> Path:
    path = folder / "xlora_classifier.safetensors"
    save_file(dict(tensors), path)
    return path


def states(tokens: int, *, seed: int = 1) -> Tensor:
    return torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(seed))


def expected(config: XLoraConfig, tensors: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
    linears = [
        (
            tensors[f"{name}.weight"].double().numpy(),
            tensors[f"{name}.bias"].double().numpy() if config.use_bias else None,
        )
        for name in module_names(config)
    ]
    values = reference_scalings(
        hidden.double().numpy(),
        linears,
        layers=LAYERS,
        adapters=len(config.adapters),
        layerwise=config.layerwise_scalings,
        relu=config.enable_relu_and_dropout,
        softmax=config.enable_softmax,
        temperature=config.softmax_temperature,
        top_k=config.top_k_lora,
        softmax_topk=config.enable_softmax_topk,
    )
    return torch.from_numpy(values)


# Against the paper


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("layerwise", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("use_bias", [False, True])
def test_it_is_the_paper_s(tmp_path: Path, depth: int, layerwise: bool, relu: bool, use_bias: bool) -> None:
    config = config_of(
        tmp_path, xlora_depth=depth, layerwise_scalings=layerwise, enable_relu_and_dropout=relu, use_bias=use_bias
    )
    tensors, hidden = drawn(config), states(3)
    classifier = read_classifier(written(tmp_path, tensors), config, num_layers=LAYERS)
    for softmax, temperature, top_k, softmax_topk in (
        (True, 1.0, None, False),
        (True, 0.3, 2, False),
        (True, 2.0, 3, True),
        (False, 0.5, None, False),
        (False, 0.5, 2, True),
        (False, 1.0, 1, False),
        (False, 1.0, 4, True),
    ):
        variant = replace(
            config,
            enable_softmax=softmax,
            softmax_temperature=temperature,
            top_k_lora=top_k,
            enable_softmax_topk=softmax_topk,
        )
        classifier.config = variant
        found = classifier.scalings(hidden)
        assert (found.shape, found.dtype) == ((3, LAYERS, 4), torch.float32)
        torch.testing.assert_close(found.double(), expected(variant, tensors, hidden), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_float_type_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    config = config_of(tmp_path, xlora_depth=2)
    tensors = {name: values.to(dtype) for name, values in drawn(config).items()}
    classifier = read_classifier(written(tmp_path, tensors), config, num_layers=LAYERS)
    hidden = states(2)
    torch.testing.assert_close(classifier.scalings(hidden).double(), expected(config, tensors, hidden))


def test_alone_equals_in_a_batch(tmp_path: Path) -> None:
    config = config_of(tmp_path, xlora_depth=3, layerwise_scalings=True, top_k_lora=2, enable_softmax_topk=True)
    classifier = read_classifier(written(tmp_path, drawn(config)), config, num_layers=LAYERS)
    hidden = states(37)
    together = classifier.scalings(hidden)
    for token in range(37):
        assert torch.equal(classifier.scalings(hidden[token : token + 1])[0], together[token])
    assert torch.equal(classifier.scalings(hidden[5:20]), together[5:20])
    assert classifier.scalings(hidden[:0]).shape == (0, LAYERS, 4)


def outputs_are(tmp_path: Path, values: list[float], **settings: Any) -> Tensor:
    """The scalings of a classifier whose outputs are ``values`` for every state."""
    config = config_of(tmp_path, **settings)
    tensors = {"last.weight": torch.zeros(4, HIDDEN), "last.bias": torch.tensor(values)}
    return read_classifier(written(tmp_path, tensors), config, num_layers=1).scalings(states(1))[0, 0]


def test_ties_go_to_the_lowest_index(tmp_path: Path) -> None:
    ties = [1.0, 2.0, 2.0, 2.0]
    found = outputs_are(tmp_path, ties, enable_softmax=False, top_k_lora=2)
    assert found.tolist() == [0.0, 2.0, 2.0, 0.0]
    assert outputs_are(tmp_path, [0.0] * 4, enable_softmax=True, top_k_lora=1).tolist() == [0.25, 0.0, 0.0, 0.0]


def test_a_chosen_scaling_of_zero_counts_in_the_softmax(tmp_path: Path) -> None:
    """peft drops it: it takes what is zero for what was not chosen."""
    found = outputs_are(tmp_path, [0.0, -1.0, 0.0, -2.0], enable_softmax=False, top_k_lora=2, enable_softmax_topk=True)
    assert found.tolist() == [0.5, 0.0, 0.5, 0.0]
    assert peft_topk(torch.tensor([0.0, -1.0, 0.0, -2.0]), top_k=2).tolist() == [0.0] * 4


def test_the_softmax_over_the_chosen_has_no_temperature(tmp_path: Path) -> None:
    settings = {"enable_softmax": False, "top_k_lora": 2, "enable_softmax_topk": True}
    found = outputs_are(tmp_path, [1.0, 2.0, 3.0, 0.0], softmax_temperature=0.01, **settings)
    torch.testing.assert_close(found, torch.tensor([0.0, *torch.softmax(torch.tensor([2.0, 3.0]), 0), 0.0]))


# Against peft


def peft_classifier(config: XLoraConfig, tensors: Mapping[str, Tensor]) -> torch.nn.Module:
    """peft's own classifier with these tensors; it always has biases and ReLU."""
    from peft import XLoraConfig as PeftConfig
    from peft.tuners.xlora.classifier import XLoraClassifier as PeftClassifier

    settings = {
        name: getattr(config, name)
        for name in (
            "hidden_size", "layerwise_scalings", "xlora_depth", "xlora_size", "xlora_dropout_p", "enable_softmax",
            "softmax_temperature",
        )
    }  # fmt: skip
    peft_config = PeftConfig(adapters=dict.fromkeys(config.adapters, ""), **settings)
    model = torch.nn.Linear(1, 1)
    made = PeftClassifier(model, peft_config, len(config.adapters), LAYERS, torch.device("cpu")).eval()
    linears = [module for module in made.layers if isinstance(module, torch.nn.Linear)]
    for linear, name in zip(linears, module_names(config), strict=True):
        linear.load_state_dict({part: tensors[f"{name}.{part}"] for part in ("weight", "bias")})
    return made


def peft_topk(scalings: Tensor, *, top_k: int) -> Tensor:
    """peft's choice of scalings for one token, with its softmax over them."""
    from peft.tuners.xlora.layer import XLoraLayer

    layer = object.__new__(XLoraLayer)
    layer.config = SimpleNamespace(top_k_lora=top_k, enable_softmax_topk=True)
    layer.layer_number = 0
    chosen: Tensor = layer.get_maybe_topk_scalings(scalings.view(1, 1, 1, -1))
    return chosen.view(-1)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("layerwise", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_it_is_peft_s(tmp_path: Path, depth: int, layerwise: bool, dropout: float) -> None:
    settings: dict[str, Any] = {"xlora_depth": depth, "layerwise_scalings": layerwise, "xlora_dropout_p": dropout}
    hidden = states(6)
    for more in ({"softmax_temperature": 0.7}, {"enable_softmax": False}):
        config = config_of(tmp_path, **settings, **more)
        tensors = drawn(config)
        with torch.no_grad():
            theirs = peft_classifier(config, tensors)
            wanted = theirs(SimpleNamespace(hidden_states=(hidden[None],)), input_ids=torch.zeros(1, 6))
        ours = read_classifier(written(tmp_path, tensors), config, num_layers=LAYERS)
        torch.testing.assert_close(ours.scalings(hidden), wanted[0])


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_the_chosen_scalings_are_peft_s(tmp_path: Path, top_k: int) -> None:
    config = config_of(tmp_path, enable_softmax=False, top_k_lora=top_k, enable_softmax_topk=True)
    tensors, hidden = drawn(config), states(6)
    ours = read_classifier(written(tmp_path, tensors), config, num_layers=LAYERS).scalings(hidden)
    for token, state in enumerate(hidden):
        outputs = tensors["last.weight"] @ state + tensors["last.bias"]
        torch.testing.assert_close(ours[token, 0], peft_topk(outputs, top_k=top_k))


@pytest.mark.parametrize(("depth", "dropout", "step"), [(1, 0.2, 3), (3, 0.2, 3), (3, 0.0, 2)])
def test_the_file_of_peft_is_read(tmp_path: Path, depth: int, dropout: float, step: int) -> None:
    plain = config_of(tmp_path, xlora_depth=depth)
    tensors = drawn(plain)
    config = replace(plain, layout="peft", xlora_dropout_p=dropout)
    theirs = peft_classifier(config, tensors).state_dict()
    assert [name for name in theirs if name.endswith("weight")] == [f"layers.{i * step}.weight" for i in range(depth)]
    path = written(tmp_path, {PREFIX + name: values for name, values in theirs.items()})
    ours = read_classifier(path, config, num_layers=LAYERS)
    hidden = states(2)
    torch.testing.assert_close(ours.scalings(hidden).double(), expected(plain, tensors, hidden))


def test_the_tensors_that_peft_loses_are_named(tmp_path: Path) -> None:
    config = replace(config_of(tmp_path, xlora_depth=3), layout="peft")
    theirs = peft_classifier(config, drawn(config)).state_dict()
    kept = {PREFIX + name: values for name, values in theirs.items() if not name.startswith("layers.0.")}
    with pytest.raises(FormatError, match=re.escape(f"tensor {PREFIX}layers.0.weight: is missing")) as refused:
        read_classifier(written(tmp_path, kept), config, num_layers=LAYERS)
    assert refused.value.hint
    assert "peft 0.21.2 leaves out layers.0" in refused.value.hint


# Files that do not fit


def refused(tmp_path: Path, config: XLoraConfig, tensors: Mapping[str, Tensor], *, num_layers: int = LAYERS) -> str:
    path = written(tmp_path, tensors)
    with pytest.raises(FormatError) as error:
        read_classifier(path, config, num_layers=num_layers)
    assert error.value.hint
    assert error.value.message.startswith(f"{path}: tensor ")
    return error.value.message.removeprefix(f"{path}: tensor ")


def test_spacing_of_names_does_not_matter_but_gaps_do(tmp_path: Path) -> None:
    config = config_of(tmp_path, xlora_depth=3)
    tensors = drawn(config)
    renamed = {name.replace("inner.3", "inner.2"): values for name, values in tensors.items()}
    path = written(tmp_path, renamed)
    assert read_classifier(path, config, num_layers=LAYERS).scalings(states(1)).shape == (1, LAYERS, 4)
    gap = {name.replace("inner.3", "inner.6"): values for name, values in tensors.items()}
    assert refused(tmp_path, config, gap).startswith("inner.3.weight: is missing, expected in the classifier of ")


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    config = config_of(tmp_path, xlora_depth=2, layerwise_scalings=True)
    tensors = drawn(config)
    without = {name: values for name, values in tensors.items() if name != "last.bias"}
    assert refused(tmp_path, config, without).startswith("last.bias: is missing")
    more = tensors | {"inner.9.weight": torch.zeros(2)}
    assert refused(tmp_path, config, more).startswith("'inner.9.weight': is there, but not part of the classifier")
    assert refused(tmp_path, replace(config, use_bias=False), tensors).startswith("'inner.0.bias': is there")
    said = refused(tmp_path, config, tensors, num_layers=LAYERS + 1)
    assert said.startswith(f"last.weight: has the shape (20, {SIZE}), expected (24, {SIZE})")
    said = refused(tmp_path, replace(config, hidden_size=HIDDEN + 1), tensors)
    assert said.startswith(f"inner.0.weight: has the shape ({SIZE}, {HIDDEN}), expected ({SIZE}, {HIDDEN + 1})")
    said = refused(tmp_path, replace(config, adapters=("a", "b")), tensors)
    assert said.startswith(f"last.weight: has the shape (20, {SIZE}), expected (10, {SIZE})")
    for value in (float("nan"), float("inf")):
        bad = tensors | {"last.bias": torch.full((20,), value)}
        assert refused(tmp_path, config, bad) == "last.bias: has values that are not finite, expected numbers"


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    path = written(tmp_path, drawn(config))
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:20], b"", b"\x80\x02}q\x00."):
        path.write_bytes(content)
        with pytest.raises(LoadError, match=re.escape(str(path))):
            read_classifier(path, config, num_layers=LAYERS)
    with pytest.raises(LoadError, match=re.escape("absent.safetensors")):
        read_classifier(tmp_path / "absent.safetensors", config, num_layers=LAYERS)


def test_random_damage_is_an_error_or_changes_numbers_only(tmp_path: Path) -> None:
    config = config_of(tmp_path, xlora_depth=2)
    path = written(tmp_path, drawn(config))
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    outcomes = set()
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[random.integers(len(damaged) // 2)] = random.integers(256)
        path.write_bytes(damaged)
        try:
            read: XLoraClassifier = read_classifier(path, config, num_layers=LAYERS)
        except LoadError as error:
            outcomes.add("refused" if str(path) in error.message else error.message)
        else:
            assert read.scalings(states(1)).shape == (1, LAYERS, 4)
            outcomes.add("read")
    assert outcomes == {"refused", "read"}
