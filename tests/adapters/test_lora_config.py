"""`adapter_config.json`: the fields and rules of the installed peft, and every refusal by name."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from random import Random
from typing import Any

import peft
import pytest
from peft import LoraConfig as PeftConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from mistralrs.adapters.lora import lora_config
from mistralrs.adapters.lora.lora_config import LoraConfig, read_lora_config
from mistralrs.adapters.lora.target_modules import matched, targets_module
from mistralrs.errors import FormatError, LoadError
from tests.adapters.peft_adapters import quiet

PATHS = [
    "model.embed_tokens",
    "lm_head",
    *(
        f"model.layers.{layer}.{module}"
        for layer in (0, 1, 2, 10, 12)
        for module in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "mlp.experts.3.w1", "mlp.experts.1.w1")
    ),
]
NAMES = ["q_proj", "proj", "up_proj", "layers.1.self_attn.q_proj", "w1", "3.w1", "mlp", "lm_head", "model.embed_tokens"]
PATTERNS = [
    "q_proj",
    r".*\.(q|k)_proj",
    r"model\.layers\.1.*",
    r".*experts\.\d\.w1",
    r"(?:.*?(?:model).*?(?:self_attn|mlp).*?(?:q_proj|up_proj).*?)",
]


def write(path: Path, fields: dict[str, Any]) -> Path:
    file = path / "adapter_config.json"
    file.write_text(json.dumps({"peft_type": "LORA", "target_modules": ["q_proj"], **fields}), encoding="utf-8")
    return file


def read(path: Path, **fields: Any) -> LoraConfig:
    return read_lora_config(write(path, fields))


def test_every_field_of_peft_is_known_or_refused() -> None:
    """A newer peft may have more: this test then names them."""
    assert peft.__version__ == "0.21.2"
    known = lora_config._HONOURED | lora_config._BOOKKEEPING
    refused = {
        "megatron_config",
        "velora_config",
        "use_qalora",
        "monteclora_config",
        "layer_replication",
        "use_bdlora",
        "arrow_config",
        "kasa_config",
        "ensure_weight_tying",
    }
    fields = {field.name for field in dataclasses.fields(PeftConfig)}
    assert fields == known | refused
    with quiet():
        defaults = PeftConfig()
    assert not any(getattr(defaults, name) for name in refused)


def test_defaults_are_those_of_peft(tmp_path: Path) -> None:
    with quiet():
        theirs = PeftConfig(target_modules=["q_proj"])
        theirs.save_pretrained(tmp_path)
    written = read_lora_config(tmp_path / "adapter_config.json")
    ours = read(tmp_path)
    assert dataclasses.replace(written, peft_version=()) == ours
    assert (ours.r, ours.lora_alpha, ours.use_rslora, ours.bias) == (theirs.r, theirs.lora_alpha, False, theirs.bias)
    assert (ours.use_dora, ours.lora_bias, ours.exclude_modules, ours.modules_to_save) == (
        False,
        False,
        frozenset(),
        (),
    )
    assert (ours.scale(8, 8.0), written.peft_version) == (1.0, (0, 21, 2))


def test_modules_are_chosen_as_in_peft(tmp_path: Path) -> None:
    """On 400 settings by chance."""
    random = Random(4)
    chosen = 0
    for _ in range(400):
        fields: dict[str, Any] = {"target_modules": random.choice([random.sample(NAMES, 3), random.choice(PATTERNS)])}
        if random.random() < 0.5:
            fields["exclude_modules"] = random.choice([random.sample(NAMES, 1), random.choice(PATTERNS)])
        if random.random() < 0.3:
            fields["modules_to_save"] = random.sample(["mlp", "lm_head", "k_proj"], 1)
        if isinstance(fields["target_modules"], list) and random.random() < 0.7:
            fields["layers_to_transform"] = random.choice([1, [0, 12], []])
            if fields["layers_to_transform"] != [] and random.random() < 0.5:
                fields["layers_pattern"] = random.choice(["layers", ["blocks", "layers"], "experts"])
        with quiet():
            theirs = PeftConfig(**fields)
        ours = read(tmp_path, **fields)
        for path in PATHS:
            expected = check_target_module_exists(theirs, path)
            expected = bool(expected) if isinstance(expected, bool | re.Match) else False
            assert targets_module(ours, path, linear=True) == expected, (fields, path)
            chosen += expected
    assert chosen > 500


@pytest.mark.parametrize(
    "patterns", [{"q_proj": 1, ".*q_proj": 2}, {r"1\..*": 3, "w1": 4}, {"roj": 5, r".*\.up_proj": 6}]
)
def test_patterns_are_matched_as_in_peft(patterns: dict[str, int]) -> None:
    for path in PATHS:
        assert matched(patterns, path, 8) == patterns.get(get_pattern_key(patterns, path), 8)


@pytest.mark.parametrize("kind", sorted(kind.value for kind in peft.PeftType if kind.value != "LORA"))
def test_other_tuners_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    with pytest.raises(
        LoadError, match=rf"adapter_config.json: peft_type: is '?{kind}'?, .*expected '?LORA"
    ) as refusal:
        read(tmp_path, peft_type=kind)
    assert refusal.value.hint
    virtual = kind in ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")
    assert ("mistralrs adapter merge" in refusal.value.hint) == (not virtual and kind != "XLORA" and kind not in OTHERS)


OTHERS = ("MULTITASK_PROMPT_TUNING", "CPT", "ADAPTION_PROMPT", "CARTRIDGE")


@pytest.mark.parametrize("name", ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga"])
def test_initialisers_that_changed_the_base_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=f"init_lora_weights: is '{name}', which changed the base's weights") as refusal:
        read(tmp_path, init_lora_weights=name)
    assert "mistralrs adapter merge" in (refusal.value.hint or "")
    assert "path_initial_model_for_weight_conversion" in (refusal.value.hint or "")


@pytest.mark.parametrize("value", [True, False, None, "gaussian", "eva", "orthogonal", "mica"])
def test_other_initialisers_are_read(value: object, tmp_path: Path) -> None:
    assert read(tmp_path, init_lora_weights=value).r == 8


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layer_replication", [[0, 2], [1, 3]]),
        ("use_qalora", True),
        ("use_bdlora", {"nblocks": 2}),
        ("arrow_config", {"top_k": 3}),
        ("kasa_config", {"beta": 1}),
        ("monteclora_config", {"num_samples": 8}),
        ("velora_config", {"num_groups": 64}),
        ("megatron_config", {"a": 1}),
        ("ensure_weight_tying", True),
        ("a_field_of_tomorrow", 3),
    ],
)
def test_what_is_not_supported_is_refused_by_name(key: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=f"adapter_config.json: '{key}': is .* which is not supported") as refusal:
        read(tmp_path, **{key: value})
    assert refusal.value.hint
    read(tmp_path, **{key: None})


WRONG = [
    ("r", 0, "expected a rank of 1 to 4096"),
    ("r", 5000, "expected a rank of 1 to 4096"),
    ("r", True, "expected a rank"),
    ("r", "8", "expected a rank"),
    ("lora_alpha", "16", "expected a number"),
    ("lora_alpha", float("nan"), "expected a number"),
    ("lora_alpha", float("inf"), "expected a number"),
    ("use_rslora", 1, "expected true or false"),
    ("rank_pattern", {"q_proj": 0}, "expected an object of ranks"),
    ("rank_pattern", ["q_proj"], "expected an object of ranks"),
    ("rank_pattern", {"(": 4}, "no regular expression"),
    ("alpha_pattern", {"q_proj": "x"}, "expected an object of numbers"),
    ("target_modules", 3, "expected a list of names"),
    ("target_modules", [3], "expected a list of names"),
    ("target_modules", "(q_proj", "no regular expression"),
    ("target_modules", "(a+)+b", "repeats a group"),
    ("target_modules", "(?:a|a){1,50}b", "repeats a group"),
    ("target_modules", ".*" * 9 + "b", "repeats more than"),
    ("target_modules", "a" * 30_000, "more than 20000 characters"),
    ("target_modules", None, "acts on nothing"),
    ("exclude_modules", {}, "expected a list of names"),
    ("layers_to_transform", "1", "expected a number or a list of numbers"),
    ("layers_pattern", "layers", "without layers_to_transform"),
    ("bias", "some", "expected 'none', 'all' or 'lora_only'"),
    ("modules_to_save", 1, "expected a list of names"),
    ("trainable_token_indices", 5, "expected a list of tokens"),
    ("trainable_token_indices", [-1], "expected a list of tokens"),
    ("trainable_token_indices", [4, 4], "a token twice"),
    ("trainable_token_indices", {"embed_tokens": "x"}, "expected a list of tokens"),
    ("alora_invocation_tokens", ["a"], "expected a list of tokens"),
    ("target_parameters", "gate", "expected a list of names"),
    ("fan_in_fan_out", "no", "expected true or false"),
    ("init_lora_weights", "magic", "expected true, false or one of"),
    ("peft_type", None, "expected 'LORA'"),
    ("peft_version", 1, "expected a text"),
]


@pytest.mark.parametrize(("key", "value", "reason"), WRONG)
def test_wrong_values_are_refused_by_name(key: str, value: object, reason: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError) as refusal:
        read(tmp_path, **{key: value})
    assert refusal.value.message.startswith(f"{tmp_path / 'adapter_config.json'}: {key}: ")
    assert reason in refusal.value.message
    assert refusal.value.hint


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"target_modules": "all-linear", "layers_to_transform": [1]}, "layers_to_transform"),
        ({"target_modules": ".*q_proj", "layers_pattern": "layers"}, "layers_pattern"),
        ({"use_dora": True, "lora_bias": True}, "lora_bias"),
        ({"use_dora": True, "target_parameters": ["gate.weight"]}, "use_dora"),
        ({"lora_bias": True, "target_parameters": ["gate.weight"]}, "lora_bias"),
        ({"fan_in_fan_out": True, "target_parameters": ["gate.weight"]}, "fan_in_fan_out"),
    ],
)
def test_what_does_not_go_together_is_refused(fields: dict[str, Any], key: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=f"adapter_config.json: {key}: "):
        read(tmp_path, **fields)
