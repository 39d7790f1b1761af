"""X-LoRA's configuration files: fields, defaults and refusals, in both layouts."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from mistralrs.adapters.xlora.xlora_config import read_xlora_config
from mistralrs.errors import FormatError
from tests.adapters.adapter_files import write_json, xlora_content

PEFT = {"peft_type": "XLORA", "hidden_size": 8, "adapters": {"x": "far/away", "a": "b"}}


def read(folder: Path, content: object) -> dict[str, object]:
    return asdict(read_xlora_config(write_json(folder / "xlora_config.json", content)))


def test_defaults_are_those_of_the_package(tmp_path: Path) -> None:
    assert read(tmp_path, {"hidden_size": 8, "adapters": ["math", "biology"]}) == {
        "path": tmp_path / "xlora_config.json",
        "layout": "package",
        "adapters": ("math", "biology"),
        "hidden_size": 8,
        "base_model_id": None,
        "layerwise_scalings": False,
        "enable_relu_and_dropout": True,
        "use_bias": True,
        "xlora_depth": 1,
        "xlora_size": 2048,
        "xlora_dropout_p": 0.2,
        "enable_softmax": True,
        "softmax_temperature": 1.0,
        "top_k_lora": None,
        "enable_softmax_topk": False,
        "scaling_pass_value": 0.0,
        "global_scaling_weight": 1.0,
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"layerwise_scalings": True, "xlora_depth": 3, "xlora_size": 16, "use_bias": False},
        {"enable_relu_and_dropout": False, "xlora_dropout_p": 0.0, "softmax_temperature": 0.5},
        {"enable_softmax": False, "top_k_lora": 2, "enable_softmax_topk": True},
        {"scaling_pass_value": 1.0, "global_scaling_weight": 2.0, "base_model_id": "o/b"},
    ],
)
def test_fields_are_read(tmp_path: Path, fields: dict[str, object]) -> None:
    assert read(tmp_path, xlora_content(**fields)).items() >= fields.items()


def test_whole_numbers_are_numbers_and_some_keys_change_nothing(tmp_path: Path) -> None:
    plain = read(tmp_path, xlora_content())
    more = {"device": "cuda:0", "stop_token_id": 2, "use_trainable_adapters": True, "softmax_temperature": 1}
    assert read(tmp_path, xlora_content(**more, top_k_lora=None)) == plain


def test_adapters_are_a_list_or_a_map_and_never_sorted(tmp_path: Path) -> None:
    for adapters in (["b", "a"], {"b": "./x/1", "a": ""}, ["lamm/x/b", "./runs/a/"]):
        assert read(tmp_path, xlora_content(adapters=adapters))["adapters"] == ("b", "a")


def test_the_layout_of_peft(tmp_path: Path) -> None:
    more = {"peft_version": "0.21.2", "task_type": "CAUSAL_LM", "base_model_name_or_path": "o/b", "revision": None}
    found = read(tmp_path, PEFT | more)
    wanted = {"layout": "peft", "adapters": ("0", "1"), "base_model_id": "o/b", "use_bias": True}
    assert found.items() >= wanted.items()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_size": None}, "key hidden_size: is missing, expected a whole number from 1"),
        ({"hidden_size": 0}, "key hidden_size: is 0, expected"),
        ({"hidden_size": 8.0}, "key hidden_size: is 8.0, expected a whole number"),
        ({"adapters": None}, "key adapters: is None, expected a list or an object"),
        ({"adapters": {}}, "key adapters: is {}, expected"),
        ({"adapters": "a"}, "key adapters: is 'a', expected a list"),
        ({"adapters": ["a", "b/a"]}, "key adapters: has the adapter 'a' twice"),
        ({"adapters": ["/"]}, "key adapters: has the adapter '', expected the name of a folder"),
        ({"base_model_id": ""}, "key base_model_id: is '', expected a text"),
        ({"layerwise_scalings": "yes"}, "key layerwise_scalings: is 'yes', expected true or false"),
        ({"xlora_depth": 0}, "key xlora_depth: is 0, expected a whole number from 1 to 64"),
        ({"xlora_depth": 65}, "key xlora_depth: is 65"),
        ({"xlora_size": True}, "key xlora_size: is True"),
        ({"xlora_dropout_p": 1.5}, "key xlora_dropout_p: is 1.5, expected a number from 0 to 1"),
        ({"softmax_temperature": 0}, "key softmax_temperature: is 0.0, expected a number above 0"),
        ({"softmax_temperature": float("nan")}, "key softmax_temperature: is nan, expected a finite number"),
        ({"scaling_pass_value": float("inf")}, "key scaling_pass_value: is inf, expected a finite number"),
        ({"global_scaling_weight": 10**400}, "key global_scaling_weight: is 1000"),
        ({"top_k_lora": 0}, "key top_k_lora: is 0, expected a whole number from 1 to 2"),
        ({"top_k_lora": 3}, "key top_k_lora: is 3, expected a whole number from 1 to 2"),
        ({"enable_softmax_topk": True}, "key enable_softmax_topk: is true, expected top_k_lora beside it"),
        ({"use_trainable_adapters": 1}, "key use_trainable_adapters: is 1, expected true or false"),
        ({"layer_wise": True}, "key 'layer_wise': is not known; expected some of adapters, base_model_id, device"),
    ],
)
def test_what_is_not_valid_is_refused(tmp_path: Path, change: dict[str, object], said: str) -> None:
    with pytest.raises(FormatError) as refused:
        read(tmp_path, xlora_content() | change)
    assert refused.value.message.startswith(f"{tmp_path / 'xlora_config.json'}: {said}")
    assert refused.value.hint


@pytest.mark.parametrize("key", ["use_bias", "enable_relu_and_dropout", "base_model_id"])
def test_keys_of_the_package_are_none_of_peft_s(tmp_path: Path, key: str) -> None:
    with pytest.raises(FormatError, match=f"key '{key}': is not known"):
        read(tmp_path, PEFT | {key: True})
