"""A folder that peft itself has written for an X-LoRA, and the modules on which that acts."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, XLoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from mistralrs.adapters.json_fields import JsonFields
from mistralrs.adapters.orderings.adapter_layout import resolve_ordering
from mistralrs.adapters.orderings.layer_axis import modules_of_config
from mistralrs.adapters.xlora.xlora_classifier import read_classifier
from mistralrs.adapters.xlora.xlora_config import CLASSIFIER_NAMES
from mistralrs.errors import FormatError

TARGETS = (["q_proj", "embed_tokens"], ["down_proj", "q_proj"], ["v_proj"])


def base() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=2, vocab_size=64, use_cache=False)).eval()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PeftModel]:
    """The folder and the model that it was saved from; ``base`` is the folder of the base's config."""
    folder = tmp_path_factory.mktemp("xlora")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, modules in enumerate(TARGETS):
            config = LoraConfig(r=2, target_modules=modules, task_type="CAUSAL_LM", init_lora_weights=False)
            get_peft_model(base(), config).save_pretrained(folder / f"lora{number}")
        adapters = {str(number): str(folder / f"lora{number}") for number in range(len(TARGETS))}
        sizes = {"hidden_size": 32, "xlora_depth": 3, "xlora_size": 16, "layerwise_scalings": True}
        model = get_peft_model(base(), XLoraConfig(task_type="CAUSAL_LM", adapters=adapters, **sizes))
        model.save_pretrained(folder / "xlora")
    base().config.save_pretrained(folder / "base")
    return folder, model


def test_the_layer_axis_is_that_of_peft(made: tuple[Path, PeftModel]) -> None:
    folder, model = made
    modules = modules_of_config(JsonFields.read(folder / "base" / "config.json", hint=""))
    ordering, layout = resolve_ordering(None, str(folder / "xlora"), modules)
    assert ordering.adapters == ("0", "1", "2")
    adapted = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    assert ordering.layers == tuple(name.removeprefix("base_model.lora_model.model.") for name in adapted)
    assert len(adapted) == 7
    assert layout.xlora is not None


def test_the_classifier_gives_the_scalings_of_peft(made: tuple[Path, PeftModel], tmp_path: Path) -> None:
    """peft 0.21.2 loses ``layers.0`` when it saves: without it the file is refused, with it the scalings are the
    same."""
    folder, model = made
    modules = modules_of_config(JsonFields.read(folder / "base" / "config.json", hint=""))
    ordering, layout = resolve_ordering(None, str(folder / "xlora"), modules)
    assert layout.xlora is not None
    saved, num_layers = folder / "xlora" / CLASSIFIER_NAMES["peft"], len(ordering.layers or ())
    theirs = model.base_model.internal_xlora_classifier
    prefix = "base_model.internal_xlora_classifier."
    kept = load_file(saved)
    whole = {prefix + name: values for name, values in theirs.state_dict().items()}
    assert set(whole) - set(kept) == {f"{prefix}layers.0.weight", f"{prefix}layers.0.bias"}
    with pytest.raises(FormatError, match=re.escape(f"tensor {prefix}layers.0.weight: is missing")):
        read_classifier(saved, layout.xlora, num_layers=num_layers)
    save_file(whole, tmp_path / saved.name)
    classifier = read_classifier(tmp_path / saved.name, layout.xlora, num_layers=num_layers)
    tokens = torch.arange(5)[None]
    with torch.no_grad(), model.disable_adapter():
        states = base()(tokens, output_hidden_states=True)
        wanted = theirs(states, input_ids=tokens)
    torch.testing.assert_close(classifier.scalings(states.hidden_states[-1][0]), wanted[0])
