"""Reading an X-LoRA for a model: what fits together, what is refused by name, and peft's own X-LoRA."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft import XLoraConfig as PeftXLoraConfig
from safetensors.torch import load_file, save_file

from mistralrs.adapters.lora.module_names import module_names
from mistralrs.adapters.orderings.adapter_layout import derive_ordering, read_layout
from mistralrs.adapters.orderings.layer_axis import adaptable_modules
from mistralrs.adapters.orderings.ordering import Ordering, write_ordering
from mistralrs.adapters.xlora.xlora import XLora, load_xlora
from mistralrs.adapters.xlora.xlora_config import CLASSIFIER_NAMES
from mistralrs.adapters.xlora.xlora_executor import XLoraExecutor
from mistralrs.engine.batch import Batch, CancelFlag
from mistralrs.errors import LoadError, UsageError
from mistralrs.loading.pipeline import LoadPlan, Model, load
from mistralrs.models.decoder import Decoder
from mistralrs.models.multimodal import text_names
from mistralrs.models.parts import WeightKey
from mistralrs.ops.backend import resolve
from mistralrs.ops.linear import AdapterUse
from tests.adapters.merging import spec_of
from tests.adapters.peft_adapters import fill, quiet
from tests.adapters.test_xlora import assert_near, running, tokens
from tests.adapters.xlora_files import NAMES, axis_of, write_xlora
from tests.adapters.xlora_reference import ReferenceXLora
from tests.architectures import Folders, reference
from tests.hub import Repository, serving
from tests.multimodal import write_multimodal


def opened(folder: Path, xlora: Path, order: Path | None = None, *, base: str | None = None) -> XLora:
    return load_xlora(str(xlora), *spec_of(folder), order=order, base=base)


def written(path: Path, folder: Path, name: str = "llama", **settings: Any) -> Path:
    axis = axis_of(name, targets=["q_proj", "v_proj"])
    return write_xlora(path, folder, axis, **{"layerwise_scalings": True, **settings})


def ordering(path: Path, adapters: tuple[str, ...] = NAMES, layers: list[str] | None = None) -> Path:
    made = Ordering(source="", adapters=adapters, layers=None if layers is None else tuple(layers))
    write_ordering(made, path, replace_existing=True)
    return path


# Fitting together


def test_places_and_slots(folders: Folders, tmp_path: Path) -> None:
    """Adapters are in the order of the configuration, which is not that of the alphabet."""
    found = opened(folders("llama"), written(tmp_path / "xlora", folders("llama")))
    assert tuple(adapter.name for adapter in found.adapters) == NAMES
    assert (found.num_adapters, found.num_layers) == (3, 8)
    assert found.scaling_layers == {
        WeightKey(part, layer): 2 * layer + place
        for layer in range(4)
        for place, part in enumerate(("q_proj", "v_proj"))
    }


PATTERNS = (
    {"target_modules": r".*language_model.*\.(q_proj|down_proj)"},
    {
        "target_modules": r".*\.language_model\..*\.(q_proj|down_proj)",
        "exclude_modules": r"model\.language_model\.layers\.1\..*",
    },
    {"target_modules": ["q_proj", "down_proj"], "exclude_modules": r".*language_model\.layers\.1\..*"},
)


@pytest.mark.parametrize("patterns", PATTERNS, ids=str)
def test_patterns_that_name_the_language_model_of_a_multimodal_one(patterns: dict[str, Any], tmp_path: Path) -> None:
    """The same adapters with plain names and with those that peft gives in a multimodal model."""
    folder, plain = write_multimodal(tmp_path / "gemma3", "gemma3"), tmp_path / "plain"
    architecture, spec = spec_of(folder)
    text = tmp_path / "text"
    text.mkdir()
    weights = load_file(folder / "model.safetensors")
    save_file({name: weights[own] for own, name in text_names(weights).items()}, text / "model.safetensors")
    axis = axis_of(architecture, targets=["q_proj", "down_proj"], layers=len(spec.layers))
    if "exclude_modules" in patterns:
        axis = [path for path in axis if ".layers.1." not in path]
    settings: dict[str, Any] = {"layerwise_scalings": True, "hidden_size": spec.hidden_size}
    write_xlora(plain, text, axis, names=["one", "two"], **settings)
    for name in ("one", "two"):
        _change_config(plain / name, {"layers_to_transform": sorted({int(path.split(".")[2]) for path in axis})})
    wrapped = shutil.copytree(plain, tmp_path / "wrapped")
    for name in ("one", "two"):
        _change_config(wrapped / name, {**patterns, "layers_to_transform": None})
        _rename(wrapped / name, "base_model.model.model.", "base_model.model.model.language_model.")
    expected, found = opened(folder, plain), opened(folder, wrapped)
    assert (found.digest, found.layers) == (expected.digest, expected.layers)
    assert len(found.layers) == len(axis)
    for name in ("one", "two"):
        (wrapped / name / "adapter_model.safetensors").unlink()
    derived = derive_ordering(read_layout(str(wrapped)), adaptable_modules(architecture, layers=len(spec.layers)))
    assert derived.layers == found.layers  # also without the weights


def _change_config(adapter: Path, fields: dict[str, Any]) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def _rename(adapter: Path, old: str, new: str) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file({name.replace(old, new): tensor.clone() for name, tensor in load_file(path).items()}, path)


def test_an_ordering_file_decides_the_axis(folders: Folders, tmp_path: Path) -> None:
    """Its layers and its adapters may stand in another order than that of the configs."""
    folder, xlora = folders("llama"), written(tmp_path / "xlora", folders("llama"))
    axis = axis_of("llama", targets=["q_proj", "v_proj"])
    same = opened(folder, xlora, ordering(tmp_path / "same.json", layers=axis))
    assert (
        same.digest == opened(folder, xlora).digest == opened(folder, xlora, ordering(tmp_path / "short.json")).digest
    )
    turned = ordering(tmp_path / "turned.json", NAMES[::-1], axis[::-1])
    other = opened(folder, xlora, turned)
    assert tuple(adapter.name for adapter in other.adapters) == NAMES[::-1]
    assert other.scaling_layers[WeightKey("q_proj", 0)] == 7
    content = json.loads((xlora / "xlora_config.json").read_text())
    (xlora / "xlora_config.json").write_text(json.dumps({**content, "adapters": list(NAMES[::-1])}))
    expected = ReferenceXLora(folder, xlora, axis[::-1]).logits(tokens())
    assert_near(running(folder, xlora, order=turned).whole(tokens()), expected)


def test_from_the_hub(folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the files that are needed are fetched."""
    xlora = written(tmp_path / "xlora", folders("llama"))
    files = {str(path.relative_to(xlora)): path.read_bytes() for path in xlora.rglob("*.*") if path.is_file()}
    more = {"README.md": b"more", "music/optimizer.bin": b"more"}
    with serving({"owner/xlora": Repository({**files, **more})}, monkeypatch, tmp_path / "cache") as hub:
        found = load_xlora("owner/xlora", *spec_of(folders("llama")))
        assert not any(asked.path.endswith(tuple(more)) for asked in hub.asked)
    assert found.digest == opened(folders("llama"), xlora).digest


@pytest.mark.parametrize(
    "name", ["qwen3moe", "granitehybrid", "gemma3", "olmo3", "mixtral", "phi2", "phi3", "mistral3"]
)
def test_every_module_of_the_axis_is_parts_of_the_decoder(name: str, folders: Folders) -> None:
    """And every matrix of the decoder is part of a module on it."""
    architecture, spec = spec_of(folders(name))
    modules = module_names(architecture, spec).modules
    axis = adaptable_modules(architecture, layers=len(spec.layers), experts=spec.moe.experts if spec.moe else 0)
    assert set(axis) == {path for path, module in modules.items() if module.kind != "norm"}


def test_a_fused_module_has_one_place(folders: Folders, tmp_path: Path) -> None:
    """Phi-3's q, k and v are one module, and three parts of the decoder."""
    path = write_xlora(tmp_path / "xlora", folders("phi3"), axis := axis_of("phi3", targets=["qkv_proj"]))
    found = opened(folders("phi3"), path)
    assert found.num_layers == 4
    assert {found.scaling_layers[WeightKey(part, 2)] for part in ("q_proj", "k_proj", "v_proj")} == {2}
    assert_near(
        running(folders("phi3"), path).whole(tokens()), ReferenceXLora(folders("phi3"), path, axis).logits(tokens())
    )


def test_the_digest_is_that_of_the_content(folders: Folders, tmp_path: Path) -> None:
    """Neither the names nor where it lies count; every field that decides results does, and every file."""
    folder, plain = folders("llama"), written(tmp_path / "plain", folders("llama"))
    first = opened(folder, plain).digest
    moved = shutil.copytree(plain, tmp_path / "moved")
    (moved / "music").rename(moved / "noise")
    content = json.loads((moved / "xlora_config.json").read_text())
    (moved / "xlora_config.json").write_text(json.dumps({**content, "adapters": [*NAMES[:2], "noise"]}))
    assert opened(folder, moved).digest == first
    digests = [first]
    changes: list[dict[str, Any]] = [
        {"scaling_pass_value": 0.5}, {"global_scaling_weight": 2.0}, {"enable_softmax": False}, {"top_k_lora": 2},
        {"top_k_lora": 2, "enable_softmax_topk": True}, {"softmax_temperature": 2.0},
    ]  # fmt: skip
    for number, change in enumerate(changes):
        digests.append(opened(folder, written(tmp_path / str(number), folder, **change)).digest)
    for number, file in enumerate(["xlora_classifier.safetensors", "algebra/adapter_model.safetensors"]):
        changed = shutil.copytree(plain, tmp_path / f"changed{number}")
        tensors = load_file(changed / file)
        name = sorted(tensors)[0]
        save_file({**tensors, name: tensors[name] * 2}, changed / file)
        digests.append(opened(folder, changed).digest)
    assert len(set(digests)) == len(digests)


def test_an_adapter_that_peft_saved_with_an_xlora(folders: Folders, tmp_path: Path) -> None:
    """Beside the adapter under other names, its file has a classifier and weights of the base."""
    folder, xlora = folders("llama"), written(tmp_path / "xlora", folders("llama"))
    digest = opened(folder, xlora).digest
    file, own = xlora / "algebra" / "adapter_model.safetensors", "base_model.lora_model.model."
    moved = {name.replace("base_model.model.", own): value for name, value in load_file(file).items()}
    layer = f"{own}model.layers.0."
    more = ("self_attn.q_proj.base_layer.weight", "self_attn.o_proj.weight", "input_layernorm.weight")
    base = {layer + name: torch.zeros(2) for name in more}
    save_file({**moved, **base, "base_model.internal_xlora_classifier.layers.3.bias": torch.zeros(2)}, file)
    assert opened(folder, xlora).digest == digest


def test_the_model_s_fingerprint_and_memory(folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """KV on disk is found by the X-LoRA's content; a budget of KV is shared by the two caches."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    folder = folders("llama")
    first, second = (written(tmp_path / str(seed), folder, seed=seed) for seed in range(2))

    def loaded(xlora: Path | None, **options: Any) -> Model:
        mixture = None if xlora is None else lambda *about: load_xlora(str(xlora), *about)
        plan = LoadPlan(max_seqs=2, max_batch_tokens=16, keeps_kv=True, mixture=mixture, **options)
        return load(folder, resolve("cpu", threads=1, isa="torch").backend, plan)

    assert loaded(first).fingerprint == loaded(first).fingerprint
    assert len({loaded(xlora).fingerprint for xlora in (None, first, second)}) == 3
    plain, mixed = (loaded(xlora, kv_memory=1 << 18) for xlora in (None, first))
    assert mixed.limits.kv_groups[0].num_blocks == plain.limits.kv_groups[0].num_blocks // 2
    scaling = mixed.decoder.scaling_pass
    assert scaling is not None
    assert scaling.kv.nbytes + mixed.decoder.kv.nbytes <= 1 << 18
    assert (mixed.limits.adapter_slots, plain.decoder.scaling_pass) == (3, None)
    for key, linear in mixed.decoder.linears.items():
        assert linear.scaling_layer == opened(folder, first).scaling_layers.get(key, -1)


# Refused by name


def refused(folder: Path, xlora: Path, message: str, order: Path | None = None) -> None:
    with pytest.raises(LoadError, match=message) as error:
        opened(folder, xlora, order)
    assert error.value.hint


def edit(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in {**content, **changes}.items() if value != "REMOVED"}))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("xlora_classifier.safetensors", "has no xlora_classifier.safetensors, the classifier of .*xlora_config.json"),
        ("xlora_config.json", "the order of its adapters is not known, as it has no xlora_config.json"),
        ("algebra/adapter_config.json", "has no algebra/adapter_config.json"),
        ("algebra/adapter_model.safetensors", "has no algebra/adapter_model.safetensors"),
    ],
)
def test_missing_files(file: str, message: str, folders: Folders, tmp_path: Path) -> None:
    xlora = written(tmp_path / "xlora", folders("llama"))
    (xlora / file).unlink()
    refused(folders("llama"), xlora, message)


def test_without_its_config_it_is_no_xlora(folders: Folders, tmp_path: Path) -> None:
    xlora = written(tmp_path / "xlora", folders("llama"))
    (xlora / "xlora_config.json").unlink()
    refused(folders("llama"), xlora, "has no xlora_config.json, and is no X-LoRA", ordering(tmp_path / "o.json"))


def test_other_widths_and_counts(folders: Folders, tmp_path: Path) -> None:
    folder, xlora = folders("llama"), written(tmp_path / "xlora", folders("llama"))
    config = xlora / "xlora_config.json"
    edit(config, hidden_size=32)
    refused(folder, xlora, "xlora_config.json: key hidden_size: is 32, expected 64, the model's width")
    edit(config, hidden_size=64, adapters=[*NAMES, "more"])
    refused(folder, xlora, "has no more/adapter_config.json")
    edit(config, adapters=list(NAMES[:2]))
    refused(folder, xlora, "tensor last.weight: has the shape")
    edit(config, adapters=list(NAMES), layerwise_scalings=False)
    refused(folder, xlora, "tensor last.weight: has the shape")
    edit(config, layerwise_scalings=True)
    edit(xlora / "music" / "adapter_config.json", r=4)
    refused(folder, xlora, "rank 4 from adapter_config.json")


def test_orderings_that_do_not_fit(folders: Folders, tmp_path: Path) -> None:
    folder, xlora = folders("llama"), written(tmp_path / "xlora", folders("llama"))
    axis = axis_of("llama", targets=["q_proj", "v_proj"])
    path = tmp_path / "ordering.json"
    for adapters, layers, message in (
        (NAMES[:2], None, "names 3 adapters, 2 were given"),
        (NAMES, axis[:-1], "key layers: lacks 'model.layers.3.self_attn.v_proj'"),
        (NAMES, [*axis, "model.layers.4.self_attn.q_proj"], "key layers: has, though no adapter acts on it,"),
        ((*NAMES[:2], "none"), None, "has no none/adapter_config.json"),
    ):
        refused(folder, xlora, message, ordering(path, adapters, layers))


def test_an_xlora_of_another_base(folders: Folders, tmp_path: Path) -> None:
    xlora = written(tmp_path / "xlora", folders("llama"), base_model_id="owner/base")
    with pytest.raises(LoadError, match="the base models differ"):
        opened(folders("llama"), xlora, base="owner/other")
    opened(folders("llama"), xlora, base="owner/base")
    refused(folders("phi2"), written(tmp_path / "other", folders("llama"), targets=None), "is missing|shape|not")


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("use_dora", {"use_dora": True}),
        ("alora_invocation_tokens", {"alora_invocation_tokens": [5, 6]}),
        ("modules_to_save", {"modules_to_save": ["lm_head"]}),
    ],
)
def test_adapters_that_cannot_be_mixed(field: str, change: dict[str, object], folders: Folders, tmp_path: Path) -> None:
    folder, xlora = folders("llama"), written(tmp_path / "xlora", folders("llama"))
    adapter = xlora / "zoology"
    edit(adapter / "adapter_config.json", **change)
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    if field == "use_dora":
        rows = {name: len(value) for name, value in tensors.items() if "lora_B" in name}
        tensors |= {
            name.replace("lora_B.weight", "lora_magnitude_vector"): torch.ones(count) for name, count in rows.items()
        }
    if field == "modules_to_save":
        tensors["base_model.model.lm_head.weight"] = torch.zeros(288, 64)
    save_file(tensors, file)
    refused(folder, xlora, f"{field}: such an adapter cannot be part of a mixture")


def test_a_module_without_a_place(folders: Folders, tmp_path: Path) -> None:
    """Fused experts (``target_parameters``) are no module of the axis."""
    folder = folders("mixtral")
    xlora = written(tmp_path / "xlora", folder, "mixtral")
    adapter = xlora / "zoology"
    edit(adapter / "adapter_config.json", target_parameters=["experts.down_proj"])
    file, key = adapter / "adapter_model.safetensors", "base_model.model.model.layers.{}.mlp.experts.lora_{}.weight"
    fused = {
        key.format(layer, side): torch.zeros(shape)
        for layer in range(4)
        for side, shape in (("A", (10, 96)), ("B", (64, 10)))
    }
    save_file({**load_file(file), **fused}, file)
    refused(folder, xlora, "acts on expert_down_proj of layer 0, expert 0, which has no place on the layer axis")


def test_the_executor_refuses_what_it_cannot_do(folders: Folders, tmp_path: Path) -> None:
    folder, xlora = folders("llama"), written(tmp_path / "xlora", folders("llama"))
    with pytest.raises(UsageError, match="tgt_non_granular_index is -1"):
        running(folder, xlora, non_granular=-1)
    executor = running(folder, xlora).runner
    batch = Batch([1], [0], [[0]], [0, 1], [1], [[[0]]], [0], [[AdapterUse(0)]])
    with pytest.raises(ValueError, match="beside X-LoRA"):
        executor.forward(batch, CancelFlag())
    plain = load(
        folder, backend := resolve("cpu", threads=1, isa="torch").backend, LoadPlan(max_seqs=1, max_batch_tokens=8)
    )
    decoder: Decoder = plain.decoder
    with pytest.raises(ValueError, match="without a scaling pass"):
        XLoraExecutor(decoder, opened(folder, xlora), backend, vocab_size=1, in_half_precision=False)


# Against peft


@pytest.mark.parametrize("scaling_pass_value", [0.0, 0.3])
@pytest.mark.parametrize("name", ["llama", "phi2", "qwen3"])
def test_it_is_peft_s(name: str, scaling_pass_value: float, folders: Folders, tmp_path: Path) -> None:
    """Left out is what peft gets wrong: with ``top_k_lora`` it ranks the scalings of the scaling pass too and drops a
    chosen scaling of 0. It also saves adapter 0 without layer 1, adapter 1 without layer 0, and the classifier without
    its first linear: the missing tensors are named."""
    folder = folders(name)
    with quiet():
        for number, modules in enumerate((["q_proj", "v_proj"], ["q_proj", "v_proj"])):
            lora = get_peft_model(reference(folder), LoraConfig(r=2 + number, target_modules=modules))
            fill(lora, seed=number, deviation=0.2)
            lora.save_pretrained(str(tmp_path / f"lora{number}"))
        adapters = {str(number): str(tmp_path / f"lora{number}") for number in range(2)}
        base = reference(folder)
        base.config.use_cache = False
        config = PeftXLoraConfig(
            task_type="CAUSAL_LM", adapters=adapters, hidden_size=64, xlora_depth=2, xlora_size=16,
            layerwise_scalings=True, scaling_pass_value=scaling_pass_value, global_scaling_weight=0.7,
        )  # fmt: skip
        model = cast(Any, get_peft_model(base, config))
        model.save_pretrained(str(tmp_path / "xlora"))
        file = tmp_path / "xlora" / CLASSIFIER_NAMES["peft"]
        classifier = model.base_model.internal_xlora_classifier
        with torch.no_grad():
            for parameter in classifier.parameters():
                parameter.mul_(4)
        prefix = "base_model.internal_xlora_classifier."
        with pytest.raises(LoadError, match=r"tensor base_model.internal_xlora_classifier.layers.0.weight: is missing"):
            opened(folder, tmp_path / "xlora")
        save_file({prefix + key: value.contiguous() for key, value in classifier.state_dict().items()}, file)
        with pytest.raises(
            LoadError, match=r"0/adapter_model.* tensor 'model.layers.1.self_attn.q_proj.lora_A': is missing"
        ):
            opened(folder, tmp_path / "xlora")
        for number in range(2):
            shutil.copytree(tmp_path / f"lora{number}", tmp_path / "xlora" / str(number), dirs_exist_ok=True)
        model.eval()
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([tokens()])).logits[0]
    assert_near(running(folder, tmp_path / "xlora").whole(tokens()), expected)
