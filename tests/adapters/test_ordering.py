"""Ordering files, the layer axis, and the orderings that follow from configs."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mistralrs.adapters.json_fields import JsonFields
from mistralrs.adapters.lora.target_modules import named_modules
from mistralrs.adapters.orderings.adapter_layout import (
    complete_ordering,
    derive_ordering,
    read_layout,
    resolve_ordering,
)
from mistralrs.adapters.orderings.layer_axis import adaptable_modules, layer_axis, modules_of_config
from mistralrs.adapters.orderings.ordering import (
    Ordering,
    check_adapters,
    check_base,
    check_layers,
    find_ordering,
    ordering_json,
    read_ordering,
    write_ordering,
)
from mistralrs.errors import FormatError, LoadError, UsageError
from mistralrs.models.registry import ARCHITECTURES, HF_MODEL_TYPES
from tests.adapters.adapter_files import ATTENTION, write_adapters, write_json, xlora_content
from tests.cli.terminal import ROOT

GOOD = {"order": ["a", "b"], "layers": {"x.q_proj": 1, "x.k_proj": 0}, "base_model_id": "owner/base"}


# Files


def test_a_file_is_read_and_written(tmp_path: Path) -> None:
    ordering = read_ordering(write_json(tmp_path / "o.json", GOOD))
    assert (ordering.adapters, ordering.layers) == (("a", "b"), ("x.k_proj", "x.q_proj"))
    write_ordering(ordering, tmp_path / "again.json", replace_existing=False)
    assert json.loads((tmp_path / "again.json").read_text()) == GOOD
    with pytest.raises(UsageError, match="there already"):
        write_ordering(ordering, tmp_path / "again.json", replace_existing=False)
    write_ordering(ordering, tmp_path / "again.json", replace_existing=True)
    with pytest.raises(LoadError, match="cannot be written"):
        write_ordering(ordering, tmp_path / "absent" / "o.json", replace_existing=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.json", "o.json"]


def test_layers_and_base_may_be_left_out(tmp_path: Path) -> None:
    ordering = read_ordering(write_json(tmp_path / "o.json", {"order": ["a"], "base_model_id": None}))
    assert (ordering.layers, ordering.base_model_id) == (None, None)
    assert json.loads(ordering_json(ordering)) == {"order": ["a"]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"order": None}, "key order: is missing or empty, expected the adapters' names"),
        ({"order": []}, "key order: is missing or empty"),
        ({"order": "a"}, "key order: is 'a', expected a list of texts"),
        ({"order": ["a", 1]}, "key order: has the member 1, expected a text"),
        ({"order": ["a", "a"]}, "key order: has the adapter 'a' twice"),
        ({"order": ["a", "../b"]}, "key order: has the adapter '../b', expected the name of a folder"),
        ({"order": [".."]}, "key order: has the adapter '..'"),
        ({"order": [f"a{i}" for i in range(1025)]}, "key order: has 1025 adapters, expected at most 1024"),
        ({"layers": []}, "key layers: is [], expected an object"),
        ({"layers": {}}, "key layers: is {}, expected an object"),
        ({"layers": {"x": 1}}, "key layers, 'x': is 1, expected a whole number from 0 to 0, as there are 1 modules"),
        ({"layers": {"x": 0, "y": True}}, "key layers, 'y': is True, expected a whole number from 0 to 1"),
        ({"layers": {"x": 0, "y": -1}}, "key layers, 'y': is -1"),
        ({"layers": {"x": 0, "y": 0}}, "key layers, 'y': is 0, expected a place that x does not have"),
        ({"base_model_id": 7}, "key base_model_id: is 7, expected a text"),
        ({"preload_adapters": []}, "key preload_adapters: is not supported in an ordering"),
        ({"ordre": []}, "key 'ordre': is not known; expected some of base_model_id, layers, order"),
    ],
)
def test_a_file_that_is_not_valid_is_refused(tmp_path: Path, change: dict[str, object], said: str) -> None:
    path = write_json(tmp_path / "o.json", GOOD | change)
    with pytest.raises(FormatError) as refused:
        read_ordering(path)
    assert refused.value.message.startswith(f"{path}: {said}")
    assert refused.value.hint


@pytest.mark.parametrize("text", ["", "[]", '{"order": ["a"]', '{"order": ["a"], "order": ["b"]}', "\x80\x04K\x00."])
def test_a_file_that_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "o.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(LoadError, match=re.escape(str(path))):
        read_ordering(path)


def test_shipped_files_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = Path("orderings/xlora-paper-ordering.json")
    assert find_ordering(name) == ROOT / name
    assert len(read_ordering(name).layers or ()) == 160
    write_json(tmp_path / name, GOOD)
    assert read_ordering(name).adapters == ("a", "b")
    for other in ("xlora-paper-ordering.json", "orderings/no-such.json", "../orderings/xlora-paper-ordering.json"):
        assert find_ordering(Path(other)) == Path(other)
    with pytest.raises(LoadError, match=re.escape("orderings/no-such.json cannot be read")):
        read_ordering(Path("orderings/no-such.json"))


# The layer axis


def test_every_architecture_has_a_table() -> None:
    for name in ARCHITECTURES:
        assert adaptable_modules(name, layers=1, experts=2)[0] == "model.embed_tokens"


DENSE = sorted(kind for kind, name in HF_MODEL_TYPES.items() if not ARCHITECTURES[name].mixture)


@pytest.mark.parametrize("model_type", DENSE)
def test_the_tables_are_the_modules_of_transformers(tmp_path: Path, model_type: str) -> None:
    content = {"model_type": model_type, "num_hidden_layers": 2}
    small = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    tokens = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    dense = {"layer_types": ["attention"] * 2, "mamba_n_heads": 4, "mamba_d_head": 16, "num_local_experts": 0}
    hybrid = dense if model_type == "granitemoehybrid" else {}
    config = AutoConfig.for_model(**content, **small, **tokens, **hybrid)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    kinds = (torch.nn.Linear, torch.nn.Embedding)
    names = tuple(name for name, module in model.named_modules() if isinstance(module, kinds))
    assert modules_of_config(JsonFields(tmp_path, content, hint="")) == names


def test_the_axis_of_mixtral() -> None:
    modules = adaptable_modules("mixtral", layers=2, experts=2)
    assert modules == adaptable_modules("llama", layers=2, experts=2)  # as GGUF files call it
    axis = layer_axis(modules, [named_modules(["w2", "gate", "w1", "w3", "q_proj"])])
    moe = "block_sparse_moe"
    layer = ["self_attn.q_proj", f"{moe}.gate", *(f"{moe}.experts.{e}.{w}" for e in (0, 1) for w in ("w1", "w2", "w3"))]
    assert axis == tuple(f"model.layers.{number}.{name}" for number in (0, 1) for name in layer)


def test_embedding_and_head_take_places() -> None:
    modules = adaptable_modules("phi2", layers=1)
    axis = layer_axis(modules, [named_modules(["lm_head", "fc1"]), named_modules(["embed_tokens", "dense"])])
    layer = "model.layers.0."
    assert axis == ("model.embed_tokens", f"{layer}self_attn.dense", f"{layer}mlp.fc1", "lm_head")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"model_type": "bert"}, "key model_type: is 'bert', expected one of llama, "),
        ({"num_hidden_layers": 2}, "key model_type: is None"),
        ({"model_type": "llama"}, "key num_hidden_layers: is missing, expected a whole number from 1 to 1000"),
        ({"model_type": "llama", "num_hidden_layers": 1001}, "key num_hidden_layers: is 1001, expected"),
        ({"model_type": "mixtral", "num_hidden_layers": 1}, "key num_local_experts: is missing"),
    ],
)
def test_a_model_whose_modules_are_not_known_is_refused(tmp_path: Path, content: dict[str, object], said: str) -> None:
    with pytest.raises(FormatError, match=re.escape(said)):
        modules_of_config(JsonFields(tmp_path / "config.json", content, hint="fetch it again"))


def test_a_multimodal_model_has_the_modules_of_its_language_model(tmp_path: Path) -> None:
    content = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "num_hidden_layers": 1}}
    assert modules_of_config(JsonFields(tmp_path, content, hint="")) == adaptable_modules("gemma3", layers=1)


# Against models and adapters

MODULES = adaptable_modules("llama", layers=2)
AXIS = layer_axis(MODULES, [named_modules(ATTENTION)])


def test_an_ordering_has_the_modules_on_which_the_adapters_act() -> None:
    mixed = tuple(reversed(AXIS))
    assert check_layers(Ordering(source="o.json", adapters=("a",), layers=mixed), AXIS) == mixed
    assert check_layers(Ordering(source="o.json", adapters=("a",)), AXIS) == AXIS
    for layers, said in (
        (
            AXIS[1:],
            "o.json: key layers: lacks 'model.layers.0.self_attn.q_proj': it has 7 modules, the adapters act on 8",
        ),
        (
            (*AXIS, "model.layers.2.self_attn.q_proj"),
            "no adapter acts on it, 'model.layers.2.self_attn.q_proj': it has 9",
        ),
    ):
        with pytest.raises(LoadError, match=re.escape(said)):
            check_layers(Ordering(source="o.json", adapters=("a",), layers=layers), AXIS)
    with pytest.raises(LoadError, match="act on no module"):
        check_layers(Ordering(source="o.json", adapters=("a",)), ())


def test_an_ordering_has_the_adapters_that_are_there(caplog: pytest.LogCaptureFixture) -> None:
    ordering = Ordering(source="o.json", adapters=("b", "a"))
    check_adapters(ordering, ("a", "b", "c"))
    with pytest.raises(LoadError, match=re.escape("o.json: key order: there is no adapter 'b'")):
        check_adapters(ordering, ("a", "c"))
    with pytest.raises(LoadError, match=re.escape("has 2 adapters, expected 3")):
        check_adapters(ordering, ("a", "b"), classes=("a", "b", "c"))
    check_adapters(ordering, ("a", "b"), classes=("x", "y"))
    assert caplog.messages == []
    check_adapters(ordering, ("a", "b"), classes=("a", "b"))
    assert "that of X-LoRA's config is a, b" in caplog.text


def test_bases_that_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    assert check_base({"-m": "owner/base@v1", "o.json": "Owner/Base", "x": None}) == "owner/base@v1"
    assert check_base({"x": None}) is None
    assert caplog.messages == []
    with pytest.raises(LoadError, match=re.escape("the base models differ: -m says 'a/b', o.json says 'a/c'")):
        check_base({"-m": "a/b", "o.json": "a/c"})
    (tmp_path / "a" / "b").mkdir(parents=True)
    for local in ("a/b", "/models/b", "./b", "b"):
        caplog.clear()
        assert check_base({"-m": local, "o.json": "a/c"}) == "a/c"
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert local in caplog.text


# Orderings that follow from configs


def test_the_order_of_xlora_s_config_is_kept(tmp_path: Path) -> None:
    write_adapters(tmp_path, {"math": ["v_proj"], "biology": ["q_proj"], "unused": ["o_proj"]})
    for adapters in (["math", "biology"], {"math": "./far/away", "biology": "x"}, ["runs/math", "runs/biology"]):
        write_json(tmp_path / "xlora_config.json", xlora_content(adapters=adapters))
        ordering = derive_ordering(read_layout(str(tmp_path)), MODULES, base="owner/base")
        assert ordering.adapters == ("math", "biology")
        assert ordering.layers == layer_axis(MODULES, [named_modules(["q_proj", "v_proj"])])
        assert ordering.base_model_id == "owner/base"


def test_names_give_the_order_where_no_config_does(tmp_path: Path) -> None:
    write_adapters(tmp_path, {"b": ["q_proj"], "a": ["q_proj"]})
    with pytest.raises(LoadError, match="the order of its adapters is not known"):
        read_layout(str(tmp_path))
    assert derive_ordering(read_layout(str(tmp_path), ["b", "a"]), MODULES).adapters == ("b", "a")
    with pytest.raises(LoadError, match=re.escape("has no c/adapter_config.json")):
        read_layout(str(tmp_path), ["b", "c"])
    write_json(tmp_path / "xlora_config.json", xlora_content(adapters=["a", "b", "c"]))
    with pytest.raises(LoadError, match="names 3 adapters, 2 were given"):
        read_layout(str(tmp_path), ["b", "a"])


def test_the_layout_of_peft(tmp_path: Path) -> None:
    write_adapters(tmp_path, {"0": ["q_proj"], "1": ["k_proj"]}, base=None)
    root = {"peft_type": "XLORA", "hidden_size": 8, "adapters": {"x": "p", "a": "q"}, "base_model_name_or_path": "o/b"}
    write_json(tmp_path / "adapter_config.json", root)
    layout = read_layout(str(tmp_path))
    ordering = derive_ordering(layout, MODULES, base="/a/folder")
    assert (ordering.adapters, ordering.base_model_id, len(ordering.layers or ())) == (("0", "1"), "o/b", 4)
    assert layout.xlora is not None
    assert layout.xlora.layout == "peft"
    write_json(tmp_path / "xlora_config.json", xlora_content())
    with pytest.raises(LoadError, match="are both a config of X-LoRA"):
        read_layout(str(tmp_path))


def test_adapters_of_another_model_are_refused(tmp_path: Path) -> None:
    layout = read_layout(str(write_adapters(tmp_path, {"a": ["query_key_value"]})), ["a"])
    with pytest.raises(LoadError, match="act on no module of this model"):
        derive_ordering(layout, MODULES)
    layout = read_layout(str(write_adapters(tmp_path, {"a": ["q_proj"]})), ["a"])
    with pytest.raises(LoadError, match="the base models differ: the model says 'owner/other'"):
        derive_ordering(layout, MODULES, base="owner/other")


def test_a_file_is_completed_and_checked(tmp_path: Path) -> None:
    write_json(tmp_path / "xlora_config.json", xlora_content(base_model_id=None))
    layout = read_layout(str(write_adapters(tmp_path, {"math": ATTENTION, "biology": ATTENTION})))
    short = Ordering(source="o.json", adapters=("math", "biology"))
    full = complete_ordering(short, layout, MODULES, base="owner/base")
    assert (full.layers, full.base_model_id) == (AXIS, "owner/base")
    for change, said in (
        (Ordering(source="o.json", adapters=("math",)), "has 1 adapters, expected 2"),
        (Ordering(source="o.json", adapters=("math", "biology"), layers=AXIS[:3]), "key layers: lacks"),
        (Ordering(source="o.json", adapters=("math", "biology"), base_model_id="o/x"), "o.json says 'o/x'"),
    ):
        with pytest.raises(LoadError, match=said):
            complete_ordering(change, layout, MODULES, base="owner/base")


def test_a_file_is_optional_and_lora_takes_a_part_of_it(tmp_path: Path) -> None:
    write_json(tmp_path / "xlora_config.json", xlora_content())
    place = str(write_adapters(tmp_path, {"math": ["q_proj", "v_proj"], "biology": ["q_proj"]}))
    derived, layout = resolve_ordering(None, place, MODULES, base="owner/base")
    assert layout.xlora is not None
    full = tmp_path / "full.json"
    write_ordering(derived, full, replace_existing=False)
    again, _ = resolve_ordering(full, place, MODULES, base="owner/base")
    assert (again.adapters, again.layers) == (derived.adapters, derived.layers)
    part = write_json(tmp_path / "part.json", json.loads(full.read_text()) | {"order": ["biology"]})
    with pytest.raises(LoadError, match="names 2 adapters, 1 were given"):
        resolve_ordering(part, place, MODULES)
    lora, layout = resolve_ordering(part, place, MODULES, as_lora=True)
    assert (lora.adapters, lora.layers, layout.xlora) == (("biology",), derived.layers, None)
    assert [name for name in MODULES if layout.rules["biology"](name)] == [AXIS[0], AXIS[4]]
    write_json(part, json.loads(part.read_text()) | {"layers": {AXIS[0]: 0}})
    with pytest.raises(LoadError, match=f"lacks '{AXIS[4]}'"):
        resolve_ordering(part, place, MODULES, as_lora=True)
