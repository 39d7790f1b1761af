"""The table of selectors on the command line: the 25 of mistral.rs with their options, and those beyond."""

from __future__ import annotations

from pathlib import Path

import pytest

from mistralrs.api.load_options import ModelSource
from mistralrs.api.options.model_options import LoraOptions, PlainOptions, QuantizedOptions, XLoraOptions
from mistralrs.api.selectors.model_selector import (
    GENERAL,
    MORE,
    ORIGINAL,
    SELECTORS,
    ModelSelector,
    selector_named,
)
from mistralrs.errors import LoadError, UsageError
from mistralrs.models.registry import ARCHITECTURES
from mistralrs.text.builtin_templates import builtin_names, builtin_template
from mistralrs_cli.arguments.command_line import parse
from mistralrs_cli.arguments.invocation import Invocation, resolve

ZEPHYR = "HuggingFaceH4/zephyr-7b-beta"
ZEPHYR_GGUF = ("TheBloke/zephyr-7B-beta-GGUF", "zephyr-7b-beta.Q8_0.gguf")
MISTRAL_GGUF = ("TheBloke/Mistral-7B-Instruct-v0.1-GGUF", "mistral-7b-instruct-v0.1.Q4_K_M.gguf")
LLAMA_GGUF = ("TheBloke/Llama-2-13B-chat-GGUF", "llama-2-13b-chat.Q4_K_M.gguf")
LLAMA_GGML = ("TheBloke/Llama-2-13B-chat-GGML", "llama-2-13b-chat.ggmlv3.q4_K_M.bin")
MIXTRAL_GGUF = ("TheBloke/Mixtral-8x7B-v0.1-GGUF", "mixtral-8x7b-v0.1.Q4_K_M.gguf")
XLORA = "lamm-mit/x-lora"

PLAIN = {
    "mistral": "mistralai/Mistral-7B-Instruct-v0.1",
    "gemma": "google/gemma-7b-it",
    "llama": "meta-llama/Llama-2-13b-chat-hf",
    "mixtral": "mistralai/Mixtral-8x7B-Instruct-v0.1",
    "phi2": "microsoft/phi-2",
}
QUANTISED = {
    "mistral-gguf": MISTRAL_GGUF,
    "llama-gguf": LLAMA_GGUF,
    "llama-ggml": LLAMA_GGML,
    "mixtral-gguf": MIXTRAL_GGUF,
}
ADAPTED = {
    "x-lora-mistral": (ZEPHYR, XLORA),
    "x-lora-gemma": (None, None),
    "x-lora-llama": (None, None),
    "x-lora-mixtral": (None, None),
    "x-lora-phi2": (None, None),
    "x-lora-mistral-gguf": (ZEPHYR_GGUF, XLORA),
    "x-lora-llama-gguf": (LLAMA_GGUF, None),
    "x-lora-llama-ggml": (LLAMA_GGML, None),
    "x-lora-mixtral-gguf": (MIXTRAL_GGUF, None),
    "lora-mistral": (ZEPHYR, XLORA),
    "lora-mixtral": (None, None),
    "lora-llama": (None, None),
    "lora-mistral-gguf": (ZEPHYR_GGUF, XLORA),
    "lora-llama-gguf": (LLAMA_GGUF, None),
    "lora-llama-ggml": (LLAMA_GGML, None),
    "lora-mixtral-gguf": (MIXTRAL_GGUF, None),
}
"""The options that name the weights, and those that name the adapters."""


def task(*arguments: str) -> Invocation:
    words = parse(arguments)
    assert words is not None
    found = resolve(words)
    assert isinstance(found, Invocation)
    return found


def test_the_25_rows() -> None:
    assert [row.name for row in ORIGINAL] == [*PLAIN, *QUANTISED, *ADAPTED]
    assert list(SELECTORS) == [row.name for row in (*ORIGINAL, *MORE)]
    for name, repo in PLAIN.items():
        assert task("-i", name).source == ModelSource(name, None, repo, None)
    for name, (repo, file) in QUANTISED.items():
        assert task("-i", name).source == ModelSource(name.split("-")[0], None, repo, file)
    for name, (weights, adapter) in ADAPTED.items():
        row = SELECTORS[name]
        found = row.base_repo if row.format == "plain" else (row.quantized_repo, row.quantized_filename)
        assert (found, row.adapter_repo) == (weights, adapter), name
    assert {(row.gqa, row.repeat_last_n) for row in SELECTORS.values()} == {(1, 64)}


def test_every_row_is_of_something_that_there_is() -> None:
    assert {row.architecture for row in SELECTORS.values()} == {*ARCHITECTURES, None}
    for row in SELECTORS.values():
        assert row.template is None or row.template in builtin_names()
        forms = ARCHITECTURES[row.architecture] if row.architecture else None
        if forms is not None and row.format == "plain":
            assert forms.hugging_face is not None
        if row.format == "ggml":
            assert row.architecture is None or ARCHITECTURES[row.architecture].ggml is not None


@pytest.mark.parametrize("name", list(PLAIN))
@pytest.mark.parametrize(("m", "t"), [("-m", "-t"), ("--model-id", "--tokenizer-json")])
def test_options_of_plain_rows(name: str, m: str, t: str) -> None:
    found = task("--prompt", "x", name, m, "a/b@main", t, "t.json", "--repeat-last-n", "7")
    assert found.source == ModelSource(name, None, "a/b@main", None)
    assert found.load.tokenizer_json == Path("t.json")
    assert found.load.tok_model_id is None
    assert found.job.sampling.repeat_last_n == 7


@pytest.mark.parametrize("name", list(QUANTISED))
def test_options_of_quantised_rows(name: str) -> None:
    gqa = ["--gqa", "8"] if name.endswith("ggml") else []
    found = task("-i", name, "-t", "tok/en", "-m", "a/b", "-f", "c.bin", "--tokenizer-json", "t.json", *gqa)
    assert found.source == ModelSource(name.split("-")[0], None, "a/b", "c.bin", 8 if gqa else 1)
    assert (found.load.tok_model_id, found.load.tokenizer_json) == ("tok/en", Path("t.json"))
    with pytest.raises(UsageError, match="--gqa"):
        task("-i", "mistral-gguf", "--gqa", "8")


@pytest.mark.parametrize("name", list(ADAPTED))
def test_options_of_rows_with_adapters(name: str) -> None:
    short = name.startswith("x-lora")
    adapter = ["-x" if short else "-a", "ad/apter", "-o", "order.json"]
    long = ["--xlora-model-id" if short else "--adapters-model-id", "ad/apter", "--order", "order.json"]
    last = ["--tgt-non-granular-index", "3"] if short else []
    weights = ["-m", "a/b"] + ([] if SELECTORS[name].format == "plain" else ["-f", "c"])
    for words in ([*adapter, *weights, *last], [*long, *weights, *last]):
        parsed = parse([name, *words])
        assert parsed is not None
        assert parsed.selection is not None
        expected = (
            XLoraOptions(xlora_model_id="ad/apter", order=Path("order.json"), tgt_non_granular_index=3)
            if short
            else LoraOptions(adapters_model_id="ad/apter", order=Path("order.json"))
        )
        assert parsed.selection.adapter == expected
        assert isinstance(parsed.selection.options, PlainOptions | QuantizedOptions)


def test_xlora_is_accepted_for_x_lora() -> None:
    assert selector_named("xlora-llama-ggml") is SELECTORS["x-lora-llama-ggml"]
    assert selector_named("xlora") is SELECTORS["x-lora"]
    assert selector_named("xlora-bert") is selector_named("lora-gemma") is selector_named("xloran") is None
    for words in (["-i", "xlora-gemma"], ["bench", "xlora-gemma"]):
        with pytest.raises(UsageError, match="x-lora-gemma needs -m REPO or a path"):
            task(*words)


def test_the_row_s_own_file_gets_the_template_that_it_lacks() -> None:
    assert task("-i", "mistral-gguf").load.chat_template == builtin_template("mistral")
    assert task("-i", "llama-ggml", "--gqa", "1").load.chat_template == builtin_template("llama-2")
    assert task("-c", "{{ x }}", "-i", "mistral-gguf").load.chat_template == "{{ x }}"
    for more in (["-m", "a/b"], ["-f", "b.gguf"], ["-t", "a/b"]):
        assert task("-i", "mistral-gguf", *more).load.chat_template is None
    assert task("-i", "mistral").load.chat_template is None


def test_local_models_of_plain_rows(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    assert task("-i", "llama", "-m", str(tmp_path)).source == ModelSource("llama", tmp_path, None, None)
    file = tmp_path / "model.safetensors"
    assert task("-i", "llama", "-m", str(file)).source.path == file
    with pytest.raises(LoadError, match="absent does not exist"):
        task("-i", "llama", "-m", str(tmp_path / "absent"))
    with pytest.raises(UsageError, match="llama needs -m"):
        task("-i", "llama", "-m", "")


def test_auto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.gguf").touch()
    local = ModelSource(None, Path("model.gguf"), None, None)
    for words in (["model.gguf"], ["-m", "model.gguf"], ["-f", "model.gguf"], [".", "-f", "model.gguf"]):
        assert task("-i", "auto", *words).source == local, words
    assert task("bench", "-n", "4", "auto", "model.gguf", "--gqa", "2").source.gqa == 2
    assert task("-i", "auto", ".").source == ModelSource(None, Path(), None, None)
    assert task("-i", "auto", "a/b@v1").source == ModelSource(None, None, "a/b@v1", None)
    assert task("-i", "auto", "a/b", "-f", "c.gguf").source == ModelSource(None, None, "a/b", "c.gguf")
    assert task("-i", "auto", "-t", "to/k", "a/b").load.tok_model_id == "to/k"
    for words, said in (
        (["auto"], "auto needs a model"),
        (["auto", "a/b", "-m", "c/d"], "both name the model"),
        (["auto", "model.gguf", "-f", "other.gguf"], "model.gguf is a file"),
    ):
        with pytest.raises(UsageError, match=said):
            task("-i", *words)
    for words in (["auto", "absent.gguf"], ["auto", ".", "-f", "absent.gguf"], ["auto", "./absent"]):
        with pytest.raises(LoadError, match="absent"):
            task("-i", *words)


def test_dtype_and_in_situ_quantisation() -> None:
    assert task("--dtype", "bf16", "--isq", "Q4_K", "-i", "llama").load.isq == "q4_k"
    assert task("--dtype", "f32", "bench", "auto", "a/b").load.dtype == "f32"
    assert (task("-i").load.dtype, task("-i").load.isq) == ("auto", None)
    for words, said in (
        (["--isq", "q4_k", "-i", "mistral-gguf"], "--isq q4_k: mistral-gguf is a file that is quantized already"),
        (["--isq", "q4_k", "-i", "llama-ggml"], "--isq q4_k: llama-ggml is a file"),
        (["--isq", "q4_k", "-i"], "--isq q4_k: the default model is a file"),
        (["--isq", "q9", "-i", "llama"], "'q9'"),
        (["--dtype", "f64", "-i", "llama"], "'--dtype'"),
    ):
        with pytest.raises(UsageError) as refused:
            task(*words)
        assert said in refused.value.message
        assert refused.value.hint


@pytest.fixture(autouse=True)
def default_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "default.gguf").touch()
    monkeypatch.setenv("MISTRALRS_DEFAULT_MODEL", str(tmp_path / "default.gguf"))


# The rows of any architecture


@pytest.mark.parametrize("row", GENERAL, ids=lambda row: row.name)
def test_a_general_row_may_name_the_architecture(row: ModelSelector) -> None:
    weights = ["-m", "a/b"] + ([] if row.format == "plain" else ["-f", "c"])
    adapter = {None: [], "lora": ["-a", "ad/apter"], "x-lora": ["-x", "ad/apter"]}[row.adapter]
    file = None if row.format == "plain" else "c"
    assert task("-i", row.name, *weights, *adapter).source == ModelSource(None, None, "a/b", file)
    named = task("-i", row.name, *weights, *adapter, "--arch", "qwen2")
    assert named.source == ModelSource("qwen2", None, "a/b", file)
    assert named.load.adapters == task("-i", row.name, *weights, *adapter).load.adapters
    with pytest.raises(UsageError, match="--arch: 'bert' is no architecture") as refused:
        task("-i", row.name, *weights, *adapter, "--arch", "bert")
    assert "granitehybrid" in (refused.value.hint or "")
    with pytest.raises(UsageError, match="--arch"):
        task("-i", "llama", "--arch", "llama")
