"""Adapters of a model in this process: found, loaded, merged, chosen by name, and let go."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.loaded_adapters.adapter_options import AdapterOptions, AdapterSource
from mistralrs.api.local_model import LocalModel
from mistralrs.api.python_api.python_requests import CompletionRequest
from mistralrs.api.python_api.runner import Runner
from mistralrs.api.schemas.response_bodies import Completion
from mistralrs.api.selectors.which import Which
from mistralrs.engine.config import Request, SamplingParams
from mistralrs.engine.events import AdaptersChosen, Delta, Finished
from mistralrs.errors import EngineError, LoadError, RequestError, UsageError
from tests.adapters.adapter_folders import AdapterFolders, adapter_folders
from tests.adapters.gguf_lora_of import write_gguf_lora_of
from tests.adapters.xlora_files import axis_of, write_xlora
from tests.gguf_of import write_gguf
from tests.hub import Repository, serving
from tests.tiny import CHAT_TEMPLATE

__all__ = ["adapter_folders"]

PROMPT = (5, 77, 100, 9, 3, 41, 8)
SAMPLING = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
EXACT = LoadOptions(threads=1, isa="torch", max_seqs=4, dtype="f32", chat_template=CHAT_TEMPLATE)


def load(folder: Path, adapters: AdapterOptions) -> LocalModel:
    return LocalModel.load(ModelSource(None, folder, None, None), replace(EXACT, adapters=adapters))


def tokens(model: LocalModel, adapters: Mapping[str, float] | None = None) -> tuple[int, ...]:
    *events, end = model.complete(PROMPT, SAMPLING, adapters=adapters)
    assert isinstance(end, Finished)
    return tuple(token for event in events if isinstance(event, Delta) for token in event.tokens)


@pytest.fixture(scope="module")
def model(adapter_folders: AdapterFolders) -> Iterator[LocalModel]:
    sources = tuple(AdapterSource(name, str(path)) for name, path in adapter_folders.adapters.items())
    with load(adapter_folders.base, AdapterOptions(sources, root=adapter_folders.root)) as model:
        yield model


def test_names_choose_adapters_and_none_act_unless_told(model: LocalModel, adapter_folders: AdapterFolders) -> None:
    with load(adapter_folders.base, AdapterOptions()) as base:
        plain = tokens(base)
    answers = [tokens(model, chosen) for chosen in ({}, {"a": 1.0}, {"b": 1.0}, {"a": 0.5, "b": -2.0})]
    assert answers[0] == plain == tokens(model)
    assert len(set(answers)) == 4
    assert [known.name for known in model.served.adapters.adapters] == ["a", "b"]


def test_the_first_event_tells_the_generation(model: LocalModel) -> None:
    first, *_ = model.complete(PROMPT, SAMPLING, adapters={"a": 1.0})
    assert isinstance(first, AdaptersChosen)
    assert first.generation == model.served.adapters.generation
    known = model.known_adapters().find("a")
    assert known is not None
    assert first.contents == ((bytes.fromhex(known.digest), 1.0),)
    first, *_ = model.complete(PROMPT, SAMPLING)
    assert isinstance(first, Delta)


@pytest.fixture
def runner(adapter_folders: AdapterFolders, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runner]:
    """A runner of the base with two slots."""
    real = LocalModel.load

    def with_slots(source: ModelSource, options: LoadOptions) -> LocalModel:
        return real(source, replace(options, isa="torch", adapters=AdapterOptions(max_adapters=2)))

    monkeypatch.setattr(LocalModel, "load", with_slots)
    with Runner(Which.Auto(str(adapter_folders.base)), threads=1, dtype="f32") as runner:
        yield runner


def test_a_runner_loads_adapters_and_requests_choose_them(runner: Runner, adapter_folders: AdapterFolders) -> None:
    def answer(**fields: Any) -> Completion:
        request = CompletionRequest(list(PROMPT), max_tokens=8, temperature=0, ignore_eos=True, **fields)
        found = runner.send_completion_request(request)
        assert isinstance(found, Completion)
        return found

    base = answer()
    assert base.adapter_generation is None
    for name, path in adapter_folders.adapters.items():
        runner.load_lora_adapter(name, path)
    assert [known.name for known in runner.lora_adapters()] == ["a", "b"]
    first, mix = answer(model="a"), answer(adapters={"a": 0.5, "b": -2})
    assert first.model == "a"
    assert first.adapter_generation == mix.adapter_generation == 2
    assert len({each.choices[0].text for each in (base, first, mix)}) == 3
    with pytest.raises(UsageError, match="a is loaded already"):
        runner.load_lora_adapter("a", adapter_folders.adapters["b"])
    chunks = list(runner.send_completion_request(_streamed(adapters={"a": 1})))
    assert [getattr(chunk, "adapter_generation", None) for chunk in chunks][-1] == 2
    runner.unload_lora_adapter("a")
    for fields in ({"model": "a"}, {"adapters": {"a": 1}}):
        with pytest.raises(RequestError) as refusal:
            answer(**fields)
        assert refusal.value.code in ("model_not_found", "adapter_not_found")
    assert answer().choices == base.choices


def _streamed(**fields: Any) -> CompletionRequest:
    return CompletionRequest(list(PROMPT), max_tokens=8, temperature=0, stream=True, **fields)


def test_a_runner_without_slots_says_how_to_get_them(tiny_llama: Path, adapter_folders: AdapterFolders) -> None:
    with Runner(Which.GGUF(quantized_filename=str(tiny_llama)), threads=1) as runner:
        with pytest.raises(LoadError, match="no adapter slots") as refusal:
            runner.load_lora_adapter("a", adapter_folders.adapters["a"])
        assert "max_adapters" in (refusal.value.hint or "")


def test_what_is_active_acts_on_later_requests_that_choose_none(model: LocalModel) -> None:
    try:
        model.adapters.activate({"b": 1.0})
        assert tokens(model) == tokens(model, {"b": 1.0}) != tokens(model, {})
        with pytest.raises(RequestError, match="there is no adapter 'c'"):
            model.adapters.activate({"c": 1.0})
        assert dict(model.served.adapters.active) == {"b": 1.0}
    finally:
        model.adapters.activate({})


def test_an_unknown_name_is_refused(model: LocalModel) -> None:
    with pytest.raises(RequestError, match="there is no adapter 'c'") as refusal:
        tokens(model, {"c": 1.0})
    assert refusal.value.code == "adapter_not_found"


def test_a_stream_that_ends_lets_go_of_its_adapters(model: LocalModel) -> None:
    stream = model.complete(PROMPT, replace(SAMPLING, max_tokens=200), adapters={"a": 1.0, "b": 1.0})
    assert [status.num_open for status in model.adapters.statuses()] == [1, 1]
    stream.cancel()
    list(stream)
    tokens(model, {"a": 1.0})
    assert [status.num_open for status in model.adapters.statuses()] == [0, 0]
    with pytest.raises(RequestError):
        model.adapters.submit(Request((), SAMPLING), {"a": 1.0})
    assert [status.num_open for status in model.adapters.statuses()] == [0, 0]


def test_loading_replacing_and_unloading(model: LocalModel, adapter_folders: AdapterFolders) -> None:
    first, second = adapter_folders.adapters.values()
    model.adapters.load_source("c", str(first))
    assert tokens(model, {"c": 1.0}) == tokens(model, {"a": 1.0})
    with pytest.raises(UsageError, match="c is loaded already"):
        model.adapters.load_source("c", str(second))
    model.adapters.load_source("c", str(second), load_inplace=True)
    assert tokens(model, {"c": 1.0}) == tokens(model, {"b": 1.0})
    model.adapters.activate({"c": 1.0})
    model.adapters.unload("c")
    assert tokens(model) == tokens(model, {})
    with pytest.raises(RequestError, match="there is no adapter 'c'") as refusal:
        model.adapters.unload("c")
    assert refusal.value.param == "lora_name"


@pytest.mark.parametrize("name", ["", "none", "default", "a b", "a:1", "x" * 200, "tab\t"])
def test_names_that_requests_could_not_use(model: LocalModel, adapter_folders: AdapterFolders, name: str) -> None:
    with pytest.raises(UsageError, match="adapter"):
        model.adapters.load_source(name, str(adapter_folders.adapters["a"]))


def test_one_fixed_adapter_is_merged_into_weights_that_are_floats(adapter_folders: AdapterFolders) -> None:
    source = AdapterSource("a", str(adapter_folders.adapters["a"]))
    with load(adapter_folders.base, AdapterOptions((source,), (("a", 1.0),))) as merged:
        assert merged.engine.config.max_adapters == 0
        assert merged.served.adapters.describe() == "a: merged into the weights"
        answer = tokens(merged)
        assert tokens(merged, {"a": 1.0}) == answer
        for other in ({}, {"a": 0.5}):
            with pytest.raises(RequestError, match="a is merged into the model's weights"):
                tokens(merged, other)
        with pytest.raises(LoadError, match="merged"):
            merged.adapters.load_source("b", str(adapter_folders.adapters["b"]))
    with load(adapter_folders.base, AdapterOptions((source,), (("a", 1.0),), merge=False)) as live:
        assert live.engine.config.max_adapters == 1
        assert tokens(live) == answer
        assert tokens(live, {}) != answer


def test_a_quantized_base_keeps_its_bytes_unless_told(adapter_folders: AdapterFolders) -> None:
    source = AdapterSource("a", str(adapter_folders.adapters["a"]))
    options = replace(EXACT, isq="q8_0", dtype="auto")
    model = ModelSource(None, adapter_folders.base, None, None)
    one = AdapterOptions((source,), (("a", 1.0),))
    with LocalModel.load(model, replace(options, adapters=one)) as live:
        memory = live.served.adapters.memory
        assert memory > 1024
        said = f"a; active unless a request says otherwise: a; {memory / 1024:.0f} KiB of memory"
        assert live.served.adapters.describe() == said
    with LocalModel.load(model, replace(options, adapters=replace(one, merge=True))) as merged:
        assert merged.served.adapters.describe() == "a: merged into the weights, which are quantized again"


def test_a_mix_by_default_is_its_weighted_sum_merged_or_not(adapter_folders: AdapterFolders) -> None:
    sources = tuple(AdapterSource(name, str(path)) for name, path in adapter_folders.adapters.items())
    mix = AdapterOptions(sources, (("a", 0.5), ("b", 1.0)))
    with load(adapter_folders.base, mix) as merged, load(adapter_folders.base, replace(mix, merge=False)) as live:
        assert merged.engine.config.max_adapters == 0
        assert tokens(merged) == tokens(live) == tokens(live, {"b": 1.0, "a": 0.5})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"active": (("c", 1.0),)}, "there is no adapter c to act"),
        ({"active": (("a", 1.0), ("a", 2.0))}, "a is named twice"),
        ({"merge": True}, "only adapters that act are merged"),
        ({"merge": True, "adapters": ()}, "no adapter to merge"),
        ({"max_adapters": 0}, "cannot hold"),
        ({"root": Path("/nowhere")}, "is not a folder"),
    ],
)
def test_options_that_contradict_each_other(
    adapter_folders: AdapterFolders, change: Mapping[str, object], message: str
) -> None:
    source = AdapterSource("a", str(adapter_folders.adapters["a"]))
    with pytest.raises(UsageError, match=message):
        load(adapter_folders.base, replace(AdapterOptions((source,)), **change))  # type: ignore[arg-type]


@pytest.mark.parametrize("way", ["beside", "merged", "mixed"])
def test_limits_on_rank_and_bytes(way: str, adapter_folders: AdapterFolders, tmp_path: Path) -> None:
    source = AdapterSource("a", str(adapter_folders.adapters["a"]))
    if way == "mixed":
        xlora = write_xlora(tmp_path / "xlora", adapter_folders.base, axis_of("llama"), layerwise_scalings=True)
        given = AdapterOptions(xlora=str(xlora))
    else:
        given = AdapterOptions((source,), active=(("a", 1.0),) if way == "merged" else ())
    for limit, flag in (("max_rank", "--max-adapter-rank"), ("max_bytes", "--max-adapter-bytes")):
        options = replace(given, **{limit: 1})  # type: ignore[arg-type]
        with pytest.raises(LoadError) as refusal:
            load(adapter_folders.base, options)
        assert flag in (refusal.value.hint or "")


def test_more_adapters_than_slots_take_turns(adapter_folders: AdapterFolders) -> None:
    sources = tuple(AdapterSource(name, str(path)) for name, path in adapter_folders.adapters.items())
    with load(adapter_folders.base, AdapterOptions(sources, max_adapters=1)) as model:
        first = [tokens(model, {name: 1.0}) for name in ("a", "b")]
        assert [tokens(model, {name: 1.0}) for name in ("a", "b")] == first
        stream = model.complete(PROMPT, replace(SAMPLING, max_tokens=250), adapters={"a": 1.0})
        with pytest.raises(RequestError, match="open requests use all 1 adapter slots"):
            tokens(model, {"b": 1.0})
        stream.cancel()
        list(stream)


def test_an_adapter_that_changed_on_disk_is_not_taken_for_the_old_one(
    adapter_folders: AdapterFolders, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    shutil.copytree(adapter_folders.adapters["a"], own)
    sources = (AdapterSource("own", str(own)), AdapterSource("b", str(adapter_folders.adapters["b"])))
    with load(adapter_folders.base, AdapterOptions(sources, max_adapters=1)) as model:
        tokens(model, {"b": 1.0})  # takes the slot
        config = json.loads((own / "adapter_config.json").read_text())
        (own / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 60}))
        with pytest.raises(EngineError, match="has changed since it was loaded") as refusal:
            tokens(model, {"own": 1.0})
        assert refusal.value.code == "adapter_unavailable"
        model.adapters.load_source("own", str(own), load_inplace=True)
        assert tokens(model, {"own": 1.0}) != tokens(model, {})


def test_only_what_the_root_has_may_be_loaded_by_others(
    model: LocalModel, adapter_folders: AdapterFolders, tmp_path: Path
) -> None:
    root, adapters = adapter_folders.root, model.adapters
    shutil.copytree(adapter_folders.adapters["a"], tmp_path / "outside")
    inner = root / "with-links"
    inner.mkdir()
    (inner / "adapter_config.json").write_bytes((tmp_path / "outside/adapter_config.json").read_bytes())
    (inner / "adapter_model.safetensors").symlink_to(tmp_path / "outside/adapter_model.safetensors")
    (root / "link").symlink_to(tmp_path / "outside")
    outside = ["../outside", str(tmp_path / "outside"), "link", "with-links", "a/../../x", "\0", "/etc/passwd", "~"]
    for path in outside[:-1]:
        with pytest.raises(RequestError, match="outside the folder of adapters") as refusal:
            adapters.load_allowed("new", path)
        assert (refusal.value.code, refusal.value.param) == ("adapter_path_forbidden", "lora_path")
        assert str(tmp_path) not in refusal.value.message
    with pytest.raises(RequestError, match="there is no such folder") as refusal:
        adapters.load_allowed("new", "~")
    assert refusal.value.code == "adapter_not_loadable"
    adapters.load_allowed("new", "a")
    adapters.load_allowed("new", str(root / "b"), load_inplace=True)
    assert tokens(model, {"new": 1.0}) == tokens(model, {"b": 1.0})
    adapters.unload("new")


def test_files_that_are_no_adapter_are_refused_by_name(model: LocalModel, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    cases = {
        "empty": "has no adapter",
        "adapter_model.bin": "pickled",
        "notes.txt": "is not the file of an adapter",
        "broken.gguf": "broken.gguf",
        "nowhere": "no such folder or file",
    }
    before = model.served.adapters
    for name, message in cases.items():
        with pytest.raises(LoadError, match=message):
            model.adapters.load_source("new", str(tmp_path / name))
    assert model.served.adapters == before


def test_a_folder_with_several_adapters_needs_the_name_of_one(
    model: LocalModel, adapter_folders: AdapterFolders
) -> None:
    with pytest.raises(LoadError, match=r"has several adapters: a, b") as refusal:
        model.adapters.load_source("new", str(adapter_folders.root))
    assert f"{adapter_folders.root}/a" in (refusal.value.hint or "")
    model.adapters.load_source("new", str(adapter_folders.root), subfolder="b")
    assert tokens(model, {"new": 1.0}) == tokens(model, {"b": 1.0})
    model.adapters.unload("new")


def test_a_damaged_adapter_is_a_named_error_and_the_model_serves_on(
    model: LocalModel, adapter_folders: AdapterFolders, tmp_path: Path
) -> None:
    plain = tokens(model)
    original = {path.name: path.read_bytes() for path in adapter_folders.adapters["a"].iterdir()}
    header = 8 + int.from_bytes(original["adapter_model.safetensors"][:8], "little")
    random, num_refused = Random(1), 0
    for _ in range(200):
        config, weights = (bytearray(original[name]) for name in ("adapter_config.json", "adapter_model.safetensors"))
        which = random.randrange(3)
        if which == 0:
            config[random.randrange(len(config))] = random.randrange(256)
        elif which == 1:
            weights[random.randrange(header)] = random.randrange(256)
        else:
            del weights[random.randrange(len(weights)) :]
        (tmp_path / "adapter_config.json").write_bytes(config)
        (tmp_path / "adapter_model.safetensors").write_bytes(weights)
        with contextlib.suppress(LoadError):
            model.adapters.load_source("damaged", str(tmp_path), load_inplace=True)
            continue
        num_refused += 1
    assert num_refused > 100
    assert tokens(model) == plain
    if model.known_adapters().find("damaged"):
        model.adapters.unload("damaged")


def test_a_hub_repository_may_be_loaded_again_if_the_model_came_with_it(
    adapter_folders: AdapterFolders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nested = {
        f"{name}/{path.name}": path.read_bytes()
        for name, folder in adapter_folders.adapters.items()
        for path in folder.iterdir()
    }
    repositories = {"owner/both": Repository(nested), "owner/other": Repository(nested)}
    sources = tuple(AdapterSource(name, "owner/both", name) for name in ("a", "b"))
    with (
        serving(repositories, monkeypatch, tmp_path / "hub"),
        load(adapter_folders.base, AdapterOptions(sources, max_adapters=3)) as model,
    ):
        model.adapters.load_allowed("new", "owner/both/b")
        assert tokens(model, {"new": 1.0}) == tokens(model, {"b": 1.0}) != tokens(model, {"a": 1.0})
        for other in ("owner/both", "owner/both/c", "owner/other/a", "owner/both/b@v1", "a"):
            with pytest.raises(RequestError) as refusal:
                model.adapters.load_allowed("more", other)
            assert refusal.value.code == "adapter_path_forbidden"


def test_a_gguf_base_with_a_gguf_adapter(adapter_folders: AdapterFolders, tmp_path: Path) -> None:
    """Its rows of q and k stand in another order, and the answer is that of the folders of peft."""
    base = write_gguf(tmp_path / "base.gguf", adapter_folders.base)
    path = write_gguf_lora_of(tmp_path / "a.gguf", adapter_folders.adapters["a"], adapter_folders.base)
    options = AdapterOptions((AdapterSource("a", str(path)), AdapterSource("p", str(adapter_folders.adapters["a"]))))
    with load(base, options) as model, load(adapter_folders.base, options) as reference:
        assert tokens(model, {"a": 1.0}) == tokens(model, {"p": 1.0}) == tokens(reference, {"p": 1.0})
        assert tokens(model) == tokens(reference) != tokens(model, {"a": 1.0})
    one = AdapterOptions(options.adapters[:1], (("a", 1.0),))
    with load(base, one) as merged:
        assert merged.served.adapters.describe() == "a: merged into the weights"
        assert tokens(merged) == tokens(merged, {"a": 1.0})
