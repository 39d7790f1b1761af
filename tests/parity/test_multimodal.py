"""The language model of multimodal checkpoints: logits of `transformers` for text, whatever its tensors are called."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.local_model import LocalModel
from mistralrs.errors import LoadError
from mistralrs.loading.architecture_lookup import hugging_face_mapping
from mistralrs.loading.describe import describe
from mistralrs.loading.model_metadata import HfMetadata
from mistralrs.loading.quantize_model import quantize_model
from mistralrs.models.multimodal import TEXT_TYPES, text_config
from tests.architectures import VARIANTS, Folders, write_folder
from tests.gguf_edits import edited
from tests.gguf_of import write_gguf
from tests.models.test_specs import Stored
from tests.multimodal import CHECKPOINTS, multimodal_reference, rename_tensors, write_multimodal
from tests.parity.running import Running, random_tokens
from tests.tiny import TOKENIZER_SIZE
from tests.tolerances import FLOAT_LOGITS

TOKENS = random_tokens(TOKENIZER_SIZE, 70, seed=21)
TEXT_ROWS = {"gemma3": "gemma3", "mistral3": "mistral", "qwen2_5_vl": "qwen2", "llava": "llama"}
"""The rows that load a language model by its own name."""

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """The folder of a tiny checkpoint by its kind, written once."""

    @cache
    def folder(kind: str) -> Path:
        return write_multimodal(tmp_path_factory.mktemp(kind), kind)

    return folder


def expected(folder: Path) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = multimodal_reference(folder)(input_ids=torch.tensor([TOKENS])).logits[0]
    return logits


def assert_close(logits: torch.Tensor, wanted: torch.Tensor) -> None:
    assert logits.shape == wanted.shape
    spread = (wanted.amax() - wanted.amin()).item()
    assert (logits - wanted).abs().max().item() <= FLOAT_LOGITS * spread


def test_every_known_type_is_tested() -> None:
    assert CHECKPOINTS.keys() == TEXT_TYPES.keys()


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_logits_are_those_of_transformers(kind: str, folders: Folders, caplog: pytest.LogCaptureFixture) -> None:
    running = Running.load(folders(kind), precision="f32")
    assert_close(running.whole(TOKENS), expected(folders(kind)))
    said = [record.message for record in caplog.records if "images are not read" in record.message]
    assert len(said) == 1
    assert str(folders(kind)) in said[0]


LAYOUTS: dict[str, dict[str, str]] = {
    "gemma3": {"language_model.model.": "model.language_model.", "vision_tower.": "model.vision_tower."},
    "mistral3": {
        "language_model.model.": "model.language_model.",
        "language_model.lm_head.": "lm_head.",
        "multi_modal_projector.": "model.multi_modal_projector.",
    },
    "qwen2_5_vl": {"model.": "model.language_model.", "visual.": "model.visual."},
    "llava": {"language_model.model.": "model.language_model.", "language_model.lm_head.": "lm_head."},
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_newer_names_give_the_same(kind: str, folders: Folders, tmp_path: Path) -> None:
    folder = shutil.copytree(folders(kind), tmp_path / "newer")
    rename_tensors(folder, LAYOUTS[kind])
    tokens = TOKENS[:20]
    assert torch.equal(Running.load(folder).whole(tokens), Running.load(folders(kind)).whole(tokens))


@pytest.mark.parametrize("kind", TEXT_ROWS)
def test_rows_inspect_isq_and_quantize_take_it(kind: str, folders: Folders, tmp_path: Path) -> None:
    folder, row = folders(kind), TEXT_ROWS[kind]
    source = ModelSource(architecture=row, path=folder, repo=None, filename=None)
    with LocalModel.load(source, LoadOptions(threads=1, max_seqs=1)) as model:
        assert model.info.architecture == row
        assert model.count([{"role": "user", "content": "hello"}])
    described = describe(folder)
    assert described.architecture == row
    assert described.parameters == model.info.parameters
    assert all(each.use != "other" for each in described.tensors)
    quantize_model(folder, tmp_path / "out.gguf", "q8_0")
    tokens = TOKENS[:20]
    wanted = Running.load(folder, isq="q8_0").whole(tokens)
    assert torch.equal(Running.load(tmp_path / "out.gguf").whole(tokens), wanted)


def test_another_row_is_refused_with_the_one_that_works(folders: Folders) -> None:
    source = ModelSource(architecture="llama", path=folders("gemma3"), repo=None, filename=None)
    with pytest.raises(LoadError, match="holds the architecture 'gemma3', not 'llama'") as refused:
        LocalModel.load(source, LoadOptions(threads=1))
    assert "mistralrs -i gemma3 -m" in str(refused.value.hint)


# Keys that published configurations leave out


PUBLISHED: dict[str, dict[str, Any]] = {
    "gemma-3-4b-it": {
        "model_type": "gemma3",
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "model_type": "gemma3_text",
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
    },
    "gemma-3-27b-it": {
        "model_type": "gemma3",
        "text_config": {
            "head_dim": 128,
            "hidden_size": 5376,
            "intermediate_size": 21504,
            "model_type": "gemma3_text",
            "num_attention_heads": 32,
            "num_hidden_layers": 62,
            "num_key_value_heads": 16,
            "query_pre_attn_scalar": 168,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
    },
    "llava-1.5-7b-hf": {
        "model_type": "llava",
        "text_config": {"model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-05},
    },
    "llava-v1.6-mistral-7b-hf": {
        "model_type": "llava_next",
        "text_config": {
            "model_type": "mistral",
            "intermediate_size": 14336,
            "max_position_embeddings": 32768,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_theta": 1000000.0,
            "sliding_window": None,
        },
    },
    "Qwen2.5-VL-3B-Instruct": {
        "model_type": "qwen2_5_vl",
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "max_position_embeddings": 128000,
        "max_window_layers": 70,
        "num_attention_heads": 16,
        "num_hidden_layers": 36,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"mrope_section": [16, 24, 24], "type": "mrope"},
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "vision_config": {"hidden_size": 1280},
    },
    "nothing but the layers": {"model_type": "qwen2_vl", "num_hidden_layers": 2},
    "Mistral without a window": {
        "model_type": "mistral3",
        "text_config": {"model_type": "mistral", "head_dim": 128, "hidden_size": 5120, "sliding_window": None},
    },
    "a window by default": {"model_type": "llava", "text_config": {"model_type": "mistral"}},
    "Qwen3-VL": {"model_type": "qwen3_vl", "text_config": {"num_hidden_layers": 3}},
    "llava_onevision": {"model_type": "llava_onevision", "text_config": {"model_type": "qwen2"}},
    "ministral3": {"model_type": "mistral3", "text_config": {"model_type": "ministral3"}},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_a_config_leaves_out_is_what_transformers_takes(name: str) -> None:
    published = PUBLISHED[name]
    config = text_config(published)
    assert config is not None
    stored = Stored({}, {})
    _, form = hugging_face_mapping(Path(name), config, None)
    spec = form.spec(HfMetadata(stored, Path("config.json"), config))
    fields = {key: value for key, value in json.loads(json.dumps(published)).items() if key != "model_type"}
    theirs = AutoConfig.for_model(published["model_type"], **fields).get_text_config()
    assert (spec.hidden_size, spec.ffn_size, len(spec.layers)) == (
        theirs.hidden_size, theirs.intermediate_size, theirs.num_hidden_layers,
    )  # fmt: skip
    assert (spec.attention.num_heads, spec.attention.kv_heads) == (
        theirs.num_attention_heads,
        theirs.num_key_value_heads,
    )
    head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    assert (spec.attention.head_dim, spec.max_position) == (head_dim, theirs.max_position_embeddings)
    assert spec.norm.eps == theirs.rms_norm_eps
    ropes = theirs.rope_parameters
    wide = ropes.get("full_attention", ropes)
    rope = spec.attention.ropes[0]
    factor = rope.yarn.factor if rope.yarn else rope.linear_factor
    assert (rope.base, factor, rope.scale) == (wide["rope_theta"], wide.get("factor", 1.0), 1.0)
    temperature = spec.attention.temperature
    assert (temperature.beta if temperature else None) == wide.get("llama_4_scaling_beta")
    if "sliding_attention" in ropes:
        assert (spec.attention.ropes[1].base, spec.attention.ropes[1].linear_factor) == (
            ropes["sliding_attention"]["rope_theta"],
            1.0,
        )
        assert spec.attention.scale == theirs.query_pre_attn_scalar**-0.5
        kinds = ["sliding_attention" if layer.window else "full_attention" for layer in spec.layers]
        assert kinds == theirs.layer_types
    assert max(spec.windows) == (getattr(theirs, "sliding_window", None) or 0)


# Refusals


def test_what_is_refused(folders: Folders, tmp_path: Path) -> None:
    def refused(said: str, **changes: Any) -> None:
        folder = shutil.copytree(folders("llava"), tmp_path / "copy", dirs_exist_ok=True)
        config = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(LoadError, match=said) as error:
            describe(folder)
        assert error.value.hint

    refused("'mllama', which is not supported", model_type="mllama")
    refused("type 'llava' has no text_config", text_config=None)
    refused("'mamba', which is not supported", text_config={"model_type": "mamba"})
    refused("model_type of text_config is 7", text_config={"model_type": 7})
    rename_tensors(folders("llava_next"), {"image_newline": "speech_newline"})
    with pytest.raises(LoadError, match="1 tensors that this architecture does not have, the first is speech_newline"):
        describe(folders("llava_next"))


@pytest.mark.parametrize(("name", "variant"), [("qwen2vl", "qwen2"), ("qwen3vl", "qwen3")])
def test_gguf_files_may_call_the_language_model_by_a_name_of_its_own(name: str, variant: str, tmp_path: Path) -> None:
    """llama.cpp's converter adds how the rotary embedding is split for images."""

    def called(metadata: dict[str, Any], tensors: dict[str, Any]) -> None:
        for key in [key for key in metadata if key.startswith(f"{variant}.")]:
            metadata[key.replace(variant, name)] = metadata.pop(key)
        metadata |= {"general.architecture": name, f"{name}.rope.dimension_sections": [2, 3, 3, 0]}

    plain = write_gguf(tmp_path / "plain.gguf", write_folder(tmp_path / "folder", VARIANTS[variant]))
    path = edited(plain, tmp_path / "vl.gguf", called)
    tokens = TOKENS[:20]
    assert torch.equal(Running.load(path).whole(tokens), Running.load(plain).whole(tokens))
    with LocalModel.load(ModelSource(variant, path, None, None), LoadOptions(threads=1, max_seqs=1)) as model:
        assert model.info.architecture == variant


def test_the_vision_half_of_a_gguf_model_is_refused_by_name(tiny_llama: Path, tmp_path: Path) -> None:
    def clip(metadata: dict[str, Any], tensors: dict[str, Any]) -> None:
        metadata["general.architecture"] = "clip"

    path = edited(tiny_llama, tmp_path / "mmproj.gguf", clip)
    with pytest.raises(LoadError, match="the vision part of a multimodal model") as refused:
        describe(path)
    assert "language model" in str(refused.value.hint)
