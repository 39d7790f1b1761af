"""Descriptions of models in every kind of checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mistralrs.errors import FormatError, LoadError
from mistralrs.loading.describe import Description, TokenInfo, describe
from tests.architectures import VARIANTS, write_folder
from tests.ggml_writer import write_ggml
from tests.gguf_of import write_gguf
from tests.tiny import DEFAULT, StorageTypes, write_tiny

ROOT = Path(__file__).parents[2]
QUANTISED = replace(DEFAULT, tied=False, types=StorageTypes("Q8_0", "Q4_0", "F16", "BF16"))
CHAT = "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\nHi! How can I help?<|im_end|>\n"


def classes(model: Description) -> dict[str, tuple[tuple[str, int], ...]]:
    return {each.use: each.types for each in model.tensors}


def test_a_gguf_file(tmp_path: Path) -> None:
    tiny = write_tiny(tmp_path / "tiny.gguf", QUANTISED)
    model = describe(tiny.path)
    assert (model.container, model.architecture, model.context_length) == ("GGUF version 3", "llama", DEFAULT.context)
    assert model.parameters == sum(weight.size for weight in tiny.weights.values())
    assert (model.layers, model.heads, model.kv_heads, model.head_dim) == (2, 4, 2, 16)
    assert classes(model) == {
        "embedding": (("Q8_0", 1),),
        "attention": (("Q4_0", 8),),
        "feed-forward": (("F16", 6),),
        "norms": (("F32", 5),),
        "head": (("BF16", 1),),
    }
    assert sum(each.parameters for each in model.tensors) == model.parameters
    assert sum(each.nbytes for each in model.tensors) < model.file_bytes == tiny.path.stat().st_size
    assert model.text.kind == "byte-level BPE, split as gpt-2"
    assert (model.text.bos, model.text.eos[-1]) == (TokenInfo(1, "<|im_start|>"), TokenInfo(2, "<|im_end|>"))
    assert model.text.sample is not None
    assert model.text.sample.startswith(CHAT)
    assert model.memory.weights > 0
    # keys and values of two layers with two heads of 16 columns, two bytes each
    assert model.memory.kv_per_1000_tokens >= 1000 * 2 * 2 * 2 * 16 * 2


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_every_architecture_as_a_folder_and_as_gguf(tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path / name, VARIANTS[name])
    model = describe(folder)
    assert model.container == "safetensors"
    assert model.text.kind == "tokenizer.json"
    assert "other" not in classes(model)
    assert describe(folder / "model.safetensors").tensors == model.tensors
    if VARIANTS[name].in_gguf:
        file = describe(write_gguf(tmp_path / "model.gguf", folder, type_="F32"))
        assert (file.layers, file.heads, file.vocab_size) == (model.layers, model.heads, model.vocab_size)
        assert (file.experts, file.experts_used, file.windows) == (model.experts, model.experts_used, model.windows)
        assert file.memory.kv_per_1000_tokens == model.memory.kv_per_1000_tokens


def test_a_ggml_file(tmp_path: Path) -> None:
    tiny = write_tiny(tmp_path / "tiny.gguf", replace(DEFAULT, tied=False, vocab=320))
    path = write_ggml(tmp_path / "tiny.bin", tiny, version="ggjt version 3", type_="Q4_0").path
    with pytest.raises(LoadError, match="wk") as refused:
        describe(path)
    assert refused.value.hint == "give --gqa 2"
    model = describe(path, gqa=2)
    assert (model.container, model.kv_heads, model.text.kind) == ("ggjt version 3", 2, "SentencePiece")
    assert classes(model)["attention"] == (("Q4_0", 8),)
    assert (model.text.sample, model.text.refusal) == (None, None)


def test_a_template_that_refuses_is_quoted(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", VARIANTS["llama"])
    (folder / "chat_template.jinja").write_text("{{ raise_exception('only one turn') }}")
    text = describe(folder).text
    assert text.sample is None
    assert text.refusal is not None
    assert "only one turn" in text.refusal


def test_a_model_that_cannot_be_loaded_cannot_be_described(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"absent\.gguf"):
        describe(tmp_path / "absent.gguf")
    folder = write_folder(tmp_path / "model", VARIANTS["llama"])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    with pytest.raises(LoadError, match="'mamba', which is not supported"):
        describe(folder)
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 9}))
    with pytest.raises(FormatError, match=r"layers\.4\..* is missing"):
        describe(folder)


@pytest.mark.native
def test_a_gguf_file_needs_no_torch(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf").path
    program = (
        "import sys; from pathlib import Path; from mistralrs.loading.describe import describe; "
        f"print(describe(Path({str(path)!r})).architecture, [n for n in ('torch', 'numpy') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "llama []\n"


def test_the_parts_of_answers(tmp_path: Path) -> None:
    """By the folder's own response template, or the chat template's marks."""
    folder = write_folder(tmp_path / "llama", VARIANTS["llama"])
    assert describe(folder).text.answer_parts == ("content",)
    config = folder / "tokenizer_config.json"
    settings = json.loads(config.read_text()) if config.exists() else {}
    template = "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}<think></think><tool_call>"
    config.write_text(json.dumps({**settings, "chat_template": template}))
    assert set(describe(folder).text.answer_parts) == {"content", "reasoning", "tool_calls"}
    own = {"start_anchor": "<|im_start|>", "fields": {"thinking": {"open": "<a>", "close": "</a>"}}}
    config.write_text(json.dumps({**settings, "chat_template": template, "response_template": own}))
    assert describe(folder / "model.safetensors").text.answer_parts == ("content", "reasoning")
