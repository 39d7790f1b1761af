"""Every row that runs, from its words to its tokens: nothing but its name, and its own repository on a stand-in hub.

The repositories hold tiny models of each row's architecture and format; the tokens are those of `transformers`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from mistralrs.api.selectors.model_selector import SELECTORS, ModelSelector
from mistralrs.engine.events import Delta, Finished
from mistralrs.errors import LoadError
from mistralrs_cli.arguments.command_line import parse
from mistralrs_cli.arguments.invocation import Invocation, PromptJob, resolve
from mistralrs_cli.model import load_model
from tests.adapters.adapter_folders import AdapterFolders, write_adapter_folders
from tests.adapters.xlora_files import axis_of, write_xlora
from tests.architectures import VARIANTS, Variant, greedy, reference, write_folder
from tests.ggml_writer import write_ggml_of
from tests.gguf_of import write_gguf
from tests.hub import Hub, Repository, serving
from tests.tiny import CHAT_TEMPLATE

COUNT = 16
GLOBAL = (
    "--dtype", "f32", "--threads", "1", "--temperature", "0", "--frequency-penalty", "0", "--presence-penalty", "0",
    "--max-tokens", str(COUNT), "--prompt", "the cat is on the hat",
)  # fmt: skip

# A GGML file says nothing of rotary scaling, of the norms' epsilon, and of heads that share a key head.
MODELS = VARIANTS | {"llama": Variant("llama", {"num_key_value_heads": 4, "rms_norm_eps": 1e-5})}

RUNNING = [row for row in SELECTORS.values() if row.adapter is None]


class Tiny:
    """A tiny model of every architecture, in the forms that rows have; each written when it is first asked for."""

    def __init__(self, root: Path) -> None:
        self.folder = cache(lambda name: write_folder(root / name, MODELS[name]))
        self.gguf = cache(lambda name: write_gguf(root / f"{name}.gguf", self.folder(name)))
        self.ggml = cache(lambda: write_ggml_of(root / "llama.bin", self.folder("llama")))
        self.reference: Callable[[str], PreTrainedModel] = cache(lambda name: reference(self.folder(name)))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> AdapterFolders:
    return write_adapter_folders(tmp_path_factory.mktemp("family"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving({}, monkeypatch, tmp_path / "hub") as hub:
        yield hub


def answered(*words: str) -> tuple[list[int], list[int]]:
    """The prompt's tokens and those of the answer."""
    parsed = parse([*GLOBAL, *words])
    assert parsed is not None
    task = resolve(parsed)
    assert isinstance(task, Invocation)
    assert isinstance(task.job, PromptJob)
    messages = [{"role": "user", "content": task.job.prompt}]
    model = load_model(task.source, task.load, lambda what, done, total: None)
    try:
        prompt = list(model.tokens_of(messages))  # type: ignore[attr-defined]  # the command line has no use for it
        *deltas, end = model.chat(messages, replace(task.job.sampling, ignore_eos=True))
    finally:
        model.close()
    assert isinstance(end, Finished), end
    return prompt, [token for event in deltas if isinstance(event, Delta) for token in event.tokens]


def served(row: ModelSelector, tiny: Tiny) -> dict[str, Repository]:
    """The repository that the row takes its model from."""
    assert row.architecture is not None
    if row.format == "plain":
        assert row.base_repo is not None
        files = {path.name: path.read_bytes() for path in tiny.folder(row.architecture).iterdir()}
        return {row.base_repo: Repository(files)}
    assert row.quantized_repo is not None
    assert row.quantized_filename is not None
    path = tiny.ggml() if row.format == "ggml" else tiny.gguf(row.architecture)
    return {row.quantized_repo: Repository({row.quantized_filename: path.read_bytes()})}


@pytest.mark.parametrize("row", [row for row in RUNNING if row.architecture], ids=lambda row: row.name)
def test_a_row_alone_answers_with_the_tokens_of_transformers(row: ModelSelector, tiny: Tiny, hub: Hub) -> None:
    hub.repositories |= served(row, tiny)
    prompt, tokens = answered(row.name)
    assert row.architecture is not None
    assert tokens == greedy(tiny.reference(row.architecture), prompt, count=COUNT)


@pytest.mark.parametrize("form", ["folder", "file of a folder", "gguf", "ggml", "repository"])
def test_auto_takes_anything(form: str, tiny: Tiny, hub: Hub) -> None:
    words = ["auto", "owner/tiny"]
    if form == "repository":
        hub.repositories["owner/tiny"] = Repository({"tiny.gguf": tiny.gguf("llama").read_bytes()})
    else:
        folder = tiny.folder("llama")
        paths = {
            "folder": folder,
            "file of a folder": folder / "model.safetensors",
            "gguf": tiny.gguf("llama"),
            "ggml": tiny.ggml(),
        }
        words = ["auto", str(paths[form])]
    # a GGML file has no template, and its tokens are others
    prompt, tokens = answered("--chat-template", CHAT_TEMPLATE, *words)
    assert tokens == greedy(tiny.reference("llama"), prompt, count=COUNT)


def test_a_row_with_lora_answers_as_its_adapters_do(family: AdapterFolders, hub: Hub, tmp_path: Path) -> None:
    base, (a, b) = str(family.base), (str(path) for path in family.adapters.values())
    files = {
        f"{name}/{file.name}": file.read_bytes()
        for name, folder in family.adapters.items()
        for file in folder.iterdir()
    }
    config = json.dumps({"hidden_size": 64, "adapters": ["a", "b"]}).encode()
    hub.repositories["owner/family"] = Repository(files | {"xlora_config.json": config})
    order = tmp_path / "order.json"
    order.write_text(json.dumps({"order": ["b", "a"], "base_model_id": base}))
    plain = answered("auto", base)
    both = answered("--lora", a, "--lora", b, "--adapter", "a,b", "auto", base)
    only = answered("--lora", b, "auto", base)
    assert len({tuple(tokens) for _, tokens in (plain, both, only)}) == 3
    for words in (["-m", base], ["-o", str(order)]):
        assert answered("lora-llama", "-a", "owner/family", *words) == both
        assert answered("--no-merge", "lora-llama", "-a", "owner/family", *words) == both
        assert answered("--adapter", "b", "lora-llama", "-a", "owner/family", *words) == only
    assert answered("lora-llama", "-m", base, "-a", b) == only
    assert answered("--adapter", "none", "lora-llama", "-m", base, "-a", b) == plain
    assert answered("auto", base, "--lora", "owner/family/b") == only


def test_rows_with_x_lora_answer_as_xlora_does(tiny: Tiny, hub: Hub, tmp_path: Path) -> None:
    base, file = tiny.folder("llama"), tiny.gguf("llama")
    axis = axis_of("llama", targets=("q_proj", "v_proj", "down_proj"))
    place = write_xlora(tmp_path / "xlora", base, axis, layerwise_scalings=True)
    mixed = answered("auto", str(base), "--xlora", str(place))
    assert mixed != answered("auto", str(base))
    assert answered("x-lora-llama", "-m", str(base), "-x", str(place)) == mixed
    # a quantised file's repository is not the base that the adapters name
    hub.repositories["owner/base-GGUF"] = Repository({"base.gguf": file.read_bytes()})
    names = list(json.loads((place / "xlora_config.json").read_text())["adapters"])
    order = tmp_path / "order.json"
    order.write_text(json.dumps({"order": [Path(name).name for name in names], "base_model_id": "owner/base"}))
    words = ["-m", "owner/base-GGUF", "-f", "base.gguf", "-x", str(place)]
    in_file = answered("x-lora-llama-gguf", *words)
    assert in_file == answered("auto", str(file), "--xlora", str(place))
    assert answered("x-lora-llama-gguf", *words, "-o", str(order)) == in_file


@pytest.mark.parametrize("name", ["llama", "gemma3", "mixtral"])
def test_the_general_rows_take_any_architecture(name: str, tiny: Tiny) -> None:
    prompt, tokens = answered("gguf", "-f", str(tiny.gguf(name)))
    assert tokens == greedy(tiny.reference(name), prompt, count=COUNT)
    assert answered("gguf", "-f", str(tiny.gguf(name)), "--arch", name) == (prompt, tokens)
    assert answered("plain", "-m", str(tiny.folder(name)), "--arch", name) == (prompt, tokens)


def test_another_architecture_than_the_named_is_an_error(tiny: Tiny) -> None:
    for words in (["gguf", "-f", str(tiny.gguf("llama"))], ["plain", "-m", str(tiny.folder("llama"))]):
        with pytest.raises(LoadError, match="holds the architecture 'llama', not 'qwen2'"):
            answered(*words, "--arch", "qwen2")
    with pytest.raises(LoadError, match="holds the architecture 'llama', not 'phi2'"):
        answered("ggml", "-f", str(tiny.ggml()), "--arch", "phi2")


def test_general_rows_with_adapters_answer_as_auto_does(tiny: Tiny, family: AdapterFolders, tmp_path: Path) -> None:
    base, b = str(family.base), str(family.adapters["b"])
    assert answered("lora", "--arch", "llama", "-m", base, "-a", b) == answered("auto", base, "--lora", b)
    folder, file = tiny.folder("llama"), str(tiny.gguf("llama"))
    axis = axis_of("llama", targets=("q_proj", "v_proj", "down_proj"))
    place = str(write_xlora(tmp_path / "xlora", folder, axis, layerwise_scalings=True))
    assert answered("x-lora", "-m", str(folder), "-x", place) == answered("auto", str(folder), "--xlora", place)
    assert answered("x-lora-gguf", "-f", file, "-x", place) == answered("auto", file, "--xlora", place)


def test_no_row_is_left_out() -> None:
    assert {row.name for row in RUNNING if row.architecture is None} == {"auto", "plain", "gguf", "ggml"}
    assert {row.architecture for row in RUNNING} - {None} <= MODELS.keys()
