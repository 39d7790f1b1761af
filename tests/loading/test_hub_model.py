"""Whole models against the stand-in hub: which files are fetched, from which commit, and what is refused by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from mistralrs.errors import LoadError
from mistralrs.loading.hub_model import fetch_model, fetch_parts, local_model
from tests.hub import COMMIT, Hub, Repository, send_to, serving

LATER = "f" * 40
CONFIG = json.dumps({"model_type": "llama"}).encode()
INDEX = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}})
SHARDED = {
    "config.json": CONFIG,
    "generation_config.json": b"{}",
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "tokenizer.model": b"older",
    "chat_template.jinja": b"{{ messages }}",
    "model.safetensors.index.json": INDEX.encode(),
    "model-00001-of-00002.safetensors": b"one",
    "model-00002-of-00002.safetensors": b"two",
    "consolidated.safetensors": b"the same again",
    "pytorch_model.bin": b"pickle",
    "onnx/model.onnx": b"other",
    "original/model.safetensors": b"other",
    "README.md": b"words",
}
SINGLE = {"config.json": CONFIG, "model.safetensors": b"all", "tokenizer.model": b"m", "added_tokens.json": b"{}"}
GGUFS = {"config.json": b"{}", "a.Q4_K_M.gguf": b"q4", "a.Q8_0.gguf": b"q8", "README.md": b""}
IMAGES = {
    **SINGLE,
    "config.json": json.dumps({"model_type": "llava", "text_config": {"model_type": "llama"}}).encode(),
    "chat_template.json": b"{}",
}
SPLIT = {"Q4/b-00001-of-00002.gguf": b"one", "Q4/b-00002-of-00002.gguf": b"two"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    repositories = {
        "owner/sharded": Repository(dict(SHARDED)),
        "owner/single": Repository(dict(SINGLE)),
        "owner/ggufs": Repository(dict(GGUFS)),
        "owner/split": Repository(dict(SPLIT)),
        "owner/images": Repository(dict(IMAGES)),
        "owner/parts": Repository({"b.Q4_K_M.gguf": b"q4", "mmproj-b-f16.gguf": b"vision"}),
        "owner/gated": Repository(dict(SINGLE), gated=True),
        "owner/pickle": Repository({"config.json": CONFIG, "pytorch_model-00001-of-00002.bin": b"p", "x.json": b""}),
        "owner/ggml": Repository({"config.json": CONFIG, "llama.ggmlv3.q4_0.bin": b"g", "b.safetensors": b"s"}),
        "owner/adapter": Repository({"adapter_config.json": b"{}"}),
    }
    with serving(repositories, monkeypatch, tmp_path / "hub") as hub:
        yield hub


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_only_what_is_needed_is_fetched(hub: Hub) -> None:
    folder = fetch_model("owner/sharded")
    unwanted = {"tokenizer.model", "consolidated.safetensors", "pytorch_model.bin", "onnx/model.onnx", "README.md"}
    assert names(folder) == SHARDED.keys() - unwanted - {"original/model.safetensors"}
    assert all((folder / name).read_bytes() == SHARDED[name] for name in names(folder))
    assert names(fetch_model("owner/single")) == SINGLE.keys()


@pytest.mark.parametrize("repo", ["owner/sharded", "owner/single"])
def test_a_cached_model_needs_no_request(hub: Hub, repo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch_model(repo)
    hub.asked.clear()
    assert fetch_model(repo) == folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch_model(repo) == folder
    assert fetch_model(f"{repo}@{COMMIT}") == folder
    assert hub.asked == []


@pytest.mark.parametrize("offline", [True, False])
def test_a_model_that_another_tool_cached_runs_without_network(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    paths = [huggingface_hub.hf_hub_download("owner/single", name) for name in SINGLE]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    send_to("http://127.0.0.1:9", monkeypatch)
    assert fetch_model("owner/single") == Path(paths[0]).parent


def test_offline_and_absent_is_named(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(LoadError, match=r"owner/single: config.json is not in the cache, and HF_HUB_OFFLINE"):
        fetch_model("owner/single")
    assert hub.asked == []


def test_a_file_that_is_missing_in_the_cache_comes_from_the_same_commit(hub: Hub) -> None:
    folder = fetch_model("owner/sharded")
    (folder / "model-00002-of-00002.safetensors").unlink()
    repository = hub.repositories["owner/sharded"]
    repository.revisions = ("main", COMMIT, LATER)
    hub.asked.clear()
    assert fetch_model("owner/sharded") == folder
    assert {asked.path for asked in hub.asked} == {f"/owner/sharded/resolve/{COMMIT}/model-00002-of-00002.safetensors"}


def test_a_repository_with_one_gguf_model_gives_its_file(hub: Hub) -> None:
    path = fetch_model("owner/split")
    assert path.name == "b-00001-of-00002.gguf"
    assert names(path.parent) == {"b-00001-of-00002.gguf", "b-00002-of-00002.gguf"}
    hub.repositories["owner/ggufs"].files.pop("a.Q8_0.gguf")
    assert fetch_model("owner/ggufs").read_bytes() == b"q4"


def test_a_multimodal_model_is_fetched_for_its_text(hub: Hub) -> None:
    assert names(fetch_model("owner/images", architecture="llama")) == IMAGES.keys()
    with pytest.raises(LoadError, match="the architecture 'llama', not 'gemma3'"):
        fetch_model("owner/images", architecture="gemma3")


def test_the_vision_part_beside_a_gguf_model_is_none(hub: Hub, tmp_path: Path) -> None:
    assert fetch_model("owner/parts").read_bytes() == b"q4"
    for name in ("b.gguf", "mmproj-b.gguf"):
        (tmp_path / name).touch()
    assert local_model(tmp_path) == tmp_path / "b.gguf"


def test_several_gguf_models_are_named(hub: Hub) -> None:
    with pytest.raises(LoadError, match="owner/ggufs has 2 GGUF models") as caught:
        fetch_model("owner/ggufs")
    assert caught.value.hint == "choose one with -f: a.Q4_K_M.gguf, a.Q8_0.gguf"
    assert hub.downloads() == [asked for asked in hub.downloads() if asked.path.endswith("config.json")]
    assert fetch_parts("owner/ggufs", "a.Q8_0.gguf").read_bytes() == b"q8"


def test_any_part_fetches_all(hub: Hub) -> None:
    path = fetch_parts("owner/split", "Q4/b-00002-of-00002.gguf")
    assert path.read_bytes() == b"two"
    assert names(path.parent) == {"b-00001-of-00002.gguf", "b-00002-of-00002.gguf"}


@pytest.mark.parametrize(
    ("repo", "message", "hint"),
    [
        ("owner/pickle", r"owner/pickle/pytorch_model-00001-of-00002\.bin is a pickled", "safetensors"),
        ("owner/ggml", "no model.safetensors, no .* and no GGUF file", "llama.ggmlv3.q4_0.bin"),
        ("owner/adapter", "no model.safetensors", "adapter"),
        ("owner/gated", "owner/gated is gated", "--token-source"),
        ("owner/none", "no repository owner/none", "check the name"),
        ("owner/single@v9", "no revision 'v9'", "commits"),
    ],
)
def test_refusals_have_a_reason_and_a_hint(hub: Hub, repo: str, message: str, hint: str) -> None:
    with pytest.raises(LoadError, match=message) as caught:
        fetch_model(repo)
    assert hint in str(caught.value.hint)
    assert caught.value.exit_code == 3


def test_a_gated_model_with_its_token(hub: Hub) -> None:
    assert names(fetch_model("owner/gated", token="hf_let_me_in")) == SINGLE.keys()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "mamba"}, "'mamba', which is not supported"),
        ({"model_type": "gemma"}, "'gemma', not 'llama'"),
        ({"model_type": "mllama", "text_config": {"model_type": "llama"}}, "'mllama', which is not supported"),
        ({"model_type": "llava", "text_config": {"model_type": "mistral"}}, "'mistral', not 'llama'"),
        ({"model_type": "llava"}, "has no text_config"),
        ({"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}, "quantized with GPTQ"),
    ],
)
def test_an_unsupported_model_is_refused_before_its_weights(hub: Hub, config: dict[str, object], message: str) -> None:
    hub.repositories["owner/sharded"].files["config.json"] = json.dumps(config).encode()
    with pytest.raises(LoadError, match=message):
        fetch_model("owner/sharded", architecture="llama")
    assert [asked.path for asked in hub.downloads()] == ["/owner/sharded/resolve/main/config.json"]


@pytest.mark.parametrize("index", [b"[]", b"{", b'{"weight_map": 1}', b'{"weight_map": {"a": "../up"}}'])
def test_a_broken_index_is_refused(hub: Hub, index: bytes) -> None:
    hub.repositories["owner/sharded"].files["model.safetensors.index.json"] = index
    with pytest.raises(LoadError, match=r"model\.safetensors\.index\.json"):
        fetch_model("owner/sharded")


def test_local_folders(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    assert local_model(tmp_path) == tmp_path / "a.gguf"
    assert local_model(tmp_path / "a.gguf") == tmp_path / "a.gguf"
    (tmp_path / "b.gguf").touch()
    with pytest.raises(LoadError, match="2 GGUF models") as caught:
        local_model(tmp_path)
    assert caught.value.hint == "choose one with -f: a.gguf, b.gguf"
    (tmp_path / "model.safetensors").touch()
    assert local_model(tmp_path) == tmp_path
