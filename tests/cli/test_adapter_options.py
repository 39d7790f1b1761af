"""The adapters that a command line names: which there are, which act, and what does not fit together."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from mistralrs.api.load_options import ModelSource
from mistralrs.api.loaded_adapters.adapter_options import AdapterOptions, AdapterSource
from mistralrs.api.loaded_adapters.adapter_sources import base_name, resolve_adapters
from mistralrs.api.selectors.model_selector import SELECTORS, ModelSelector
from mistralrs.errors import LoadError, UsageError
from mistralrs_cli.arguments.command_line import parse
from mistralrs_cli.arguments.invocation import Invocation, resolve
from mistralrs_cli.commands.serve import ServeJob
from tests.adapters.adapter_files import write_adapters, write_json, xlora_content
from tests.hub import Repository, serving

PAPER = tuple(f"adapter_{number}" for number in range(1, 10))
ZEPHYR, XLORA = "HuggingFaceH4/zephyr-7b-beta", "lamm-mit/x-lora"
ORDER = "orderings/xlora-paper-ordering.json"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a model, two adapters and a folder for more."""
    for name in ("default.gguf", "m.gguf", "style.gguf"):
        (tmp_path / name).touch()
    for name in ("adapter", "root"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MISTRALRS_DEFAULT_MODEL", str(tmp_path / "default.gguf"))
    return tmp_path


def task(*words: str) -> Invocation | ServeJob:
    parsed = parse(words)
    assert parsed is not None
    found = resolve(parsed)
    assert isinstance(found, Invocation | ServeJob)
    return found


def adapters(*words: str) -> AdapterOptions:
    return task(*words).load.adapters


def no_token() -> None:
    return None


def paper(place: str = XLORA) -> AdapterOptions:
    return AdapterOptions(
        adapters=tuple(AdapterSource(name, place, name) for name in PAPER),
        active=tuple((name, 1.0) for name in PAPER),
        ordering=Path(ORDER),
    )


# Sources


@pytest.mark.parametrize(
    ("word", "source"),
    [
        ("style=adapter", AdapterSource("style", "adapter")),
        ("./adapter", AdapterSource("adapter", "adapter")),
        ("style.gguf", AdapterSource("style", "style.gguf")),
        ("owner/name", AdapterSource("name", "owner/name")),
        ("a=owner/name@v1", AdapterSource("a", "owner/name@v1")),
        ("owner/name/one@v1", AdapterSource("one", "owner/name@v1", "one")),
        ("owner/name/sub/two.gguf", AdapterSource("two", "owner/name", "sub/two.gguf")),
    ],
)
def test_sources(word: str, source: AdapterSource) -> None:
    expected = AdapterOptions(adapters=(source,), active=((source.name, 1.0),))
    for row in ([], ["gguf", "-f", "m.gguf"], ["auto", "m.gguf"], ["llama", "-m", "a/b"], ["llama-ggml"]):
        assert adapters("-i", "--lora", word, *row) == expected
        if row:
            assert adapters("-i", *row, "--lora", word) == expected


def test_a_path_with_an_equals_sign_is_one_where_it_exists(folder: Path) -> None:
    (folder / "a=b").mkdir()
    with pytest.raises(UsageError, match="'a=b' cannot be the name"):
        adapters("-i", "--lora", "a=b")
    assert adapters("-i", "--lora", "x=a=b").adapters == (AdapterSource("x", "a=b"),)


def test_the_folder_s_own_name_is_the_default(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder / "adapter")
    assert adapters("-i", "--lora", ".").adapters == (AdapterSource("adapter", "."),)


@pytest.mark.parametrize("word", ["absent", "x=./absent", "/no/where", "absent.gguf", "owner/absent.gguf", "a/b//c"])
def test_sources_that_are_not_there(word: str) -> None:
    with pytest.raises(LoadError, match=r"the adapter .* does not exist") as refused:
        adapters("-i", "--lora", word)
    assert "OWNER/NAME" in (refused.value.hint or "")


# Which act


@pytest.mark.parametrize(
    ("words", "active"),
    [
        (["--lora", "a=adapter"], {"a": 1.0}),
        (["--lora", "a=adapter", "--adapter", "none"], {}),
        (["--lora", "a=adapter", "--adapter", "a:0.5"], {"a": 0.5}),
        (["--lora", "a=adapter", "--lora", "b=adapter"], {}),
        (["--lora", "a=adapter", "--lora", "b=adapter", "--adapter", "b"], {"b": 1.0}),
        (["--lora", "a=adapter", "--lora", "b=adapter", "--adapter", "b:2, a:-1e-3"], {"b": 2.0, "a": -0.001}),
        (["--lora", "a=adapter", "--lora", "b=adapter", "--adapter", "a:0,b"], {"b": 1.0}),
        ([], {}),
    ],
)
def test_which_act(words: list[str], active: dict[str, float]) -> None:
    assert dict(adapters(*words, "-i").active) == active


def test_before_and_behind_a_row_add_up() -> None:
    found = adapters("-i", "--lora", "a=adapter", "gguf", "-f", "m.gguf", "--lora", "b=style.gguf")
    assert found == AdapterOptions(adapters=(AdapterSource("a", "adapter"), AdapterSource("b", "style.gguf")))


def test_bench_measures_with_adapters() -> None:
    found = task("--lora", "a=adapter", "--max-adapters", "2", "bench", "-n", "4", "gguf", "-f", "m.gguf")
    assert found.load.adapters.active == (("a", 1.0),)
    assert found.load.adapters.max_adapters == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--lora", "a=adapter", "--adapter", "b"], "--adapter: there is no adapter b"),
        (["--adapter", "b"], "--adapter: there is no adapter b"),
        (["--lora", "a=adapter", "--adapter", ""], "--adapter: an empty name"),
        (["--lora", "a=adapter", "--adapter", "a,,a"], "--adapter: an empty name"),
        (["--lora", "a=adapter", "--adapter", "a,a:2"], "--adapter: a is there twice"),
        (["--lora", "a=adapter", "--adapter", "none,a"], "--adapter: none beside others"),
        (["--lora", "a=adapter", "--adapter", "a:x"], "--adapter: a:x: 'x' is no weight"),
        (["--lora", "a=adapter", "--adapter", "a:1e39"], "--adapter: a:1e39: '1e39' is no weight"),
        (["--lora", "a=adapter", "--adapter", "a:nan"], "--adapter: a:nan: 'nan' is no weight"),
        (["--lora", "a=adapter", "--lora", "a=style.gguf"], "two adapters are called a"),
        (["--lora", "=adapter"], "--lora '?=adapter'? is not NAME=SOURCE"),
        (["--lora", "a="], "--lora a= is not NAME=SOURCE"),
        (["--lora", ""], "--lora '' names no adapter"),
        (["--lora", "none=adapter"], "an adapter cannot be called 'none'"),
        (["--lora", "a:b=adapter"], "'a:b' cannot be the name"),
        (["--lora", "a b=adapter"], "'a b' cannot be the name"),
        (["--merge"], "--merge: there is no adapter"),
        (["--no-merge"], "--merge: there is no adapter"),
        (["--max-adapters", "2"], "--max-adapters: there is no adapter"),
        (["--max-adapter-rank", "2"], "--max-adapter-rank: there is no adapter"),
        (["--max-adapter-bytes", "2M"], "--max-adapter-bytes: there is no adapter"),
        (["--lora", "a=adapter", "--adapter", "none", "--merge"], "--merge: no adapter acts"),
        (["--lora", "a=adapter", "--lora", "b=adapter", "--adapter", "a", "--merge"], "--merge: b does not act"),
        (
            ["--lora", "a=adapter", "--lora", "b=adapter", "--adapter", "a,b", "--max-adapters", "1"],
            "--max-adapters 1: 2 adapters act at once",
        ),
        (["--lora", "a=adapter", "--max-adapters", "0"], "--max-adapters"),
        (["--lora", "a=adapter", "--max-adapters", "1025"], "--max-adapters"),
        (["--adapter-root", "root"], "--adapter-root needs --port"),
        (["--allow-adapter-changes"], "--allow-adapter-changes needs --port"),
    ],
)
def test_options_that_do_not_fit(words: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        task(*words, "-i")
    assert refused.value.hint


def test_limits_and_merging() -> None:
    words = [
        "--lora",
        "a=adapter",
        "--max-adapters",
        "3",
        "--max-adapter-rank",
        "64",
        "--max-adapter-bytes",
        "1M",
        "-i",
    ]
    found = adapters(*words)
    assert (found.max_adapters, found.max_rank, found.max_bytes, found.merge) == (3, 64, 1 << 20, None)
    assert adapters("--merge", *words).merge is True
    assert adapters("--no-merge", *words).merge is False


def test_adapters_from_the_environment_and_the_config_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = folder / "config.toml"
    monkeypatch.setenv("MISTRALRS_CONFIG", str(config))
    config.write_text('lora = ["a=adapter", "b=style.gguf"]\nadapter = "b"\nmerge = false\nadapter-root = "root"\n')
    assert adapters("-i") == AdapterOptions(
        adapters=(AdapterSource("a", "adapter"), AdapterSource("b", "style.gguf")), active=(("b", 1.0),), merge=False
    )
    monkeypatch.setenv("MISTRALRS_LORA", "c=adapter")
    monkeypatch.setenv("MISTRALRS_ADAPTER", "none")
    assert adapters("-i") == AdapterOptions(adapters=(AdapterSource("c", "adapter"),), merge=False)
    # they are for other calls: an X-LoRA has adapters of its own
    assert adapters("-i", "x-lora-mistral") == AdapterOptions(xlora=XLORA)
    config.write_text("max-adapters = 4\nmerge = true\n")
    monkeypatch.delenv("MISTRALRS_LORA")
    monkeypatch.delenv("MISTRALRS_ADAPTER")
    assert adapters("-i") == AdapterOptions()
    monkeypatch.setenv("MISTRALRS_ADAPTER", "x")
    with pytest.raises(UsageError, match="MISTRALRS_ADAPTER: there is no adapter x"):
        adapters("-i", "--lora", "a=adapter")


# While serving


def test_changes_while_serving() -> None:
    changing = ["--port", "0", "--allow-adapter-changes", "--adapter-root", "root"]
    assert adapters(*changing) == AdapterOptions(root=Path("root"))
    assert adapters(*changing, "--max-adapters", "2", "--lora", "adapter") == AdapterOptions(
        adapters=(AdapterSource("adapter", "adapter"),),
        active=(("adapter", 1.0),),
        max_adapters=2,
        root=Path("root"),
    )


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        (["--adapter-root", "root"], UsageError, "--adapter-root needs --allow-adapter-changes"),
        (["--allow-adapter-changes"], UsageError, "--allow-adapter-changes needs --adapter-root"),
        (["--allow-adapter-changes", "--adapter-root", "absent"], LoadError, "--adapter-root absent is no folder"),
        (
            ["--allow-adapter-changes", "--adapter-root", "root", "--merge", "--lora", "adapter"],
            UsageError,
            "--merge and --allow-adapter-changes exclude each other",
        ),
    ],
)
def test_changes_that_are_refused(words: list[str], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        task("--port", "0", *words)


# Rows with LoRA


def file_of(row: ModelSelector) -> list[str]:
    """The options that name a file, for a row that has none of its own."""
    return ["-m", "owner/files", "-f", "file"] if row.format != "plain" and row.quantized_filename is None else []


@pytest.mark.parametrize("row", [row for row in SELECTORS.values() if row.adapter == "lora"], ids=lambda row: row.name)
def test_a_row_with_lora_has_all_adapters_of_its_ordering(row: ModelSelector) -> None:
    name = row.name
    given = ["-a", "owner/adapters"] if row.adapter_repo is None else []
    given += file_of(row)
    found = task("-i", name, *given, "-o", ORDER)
    assert found.load.adapters == paper("owner/adapters" if row.adapter_repo is None else XLORA)
    if row.format == "plain":
        assert found.source == ModelSource(row.architecture, None, ZEPHYR, None)
    chosen = adapters("--adapter", "adapter_2:0.5", "-i", name, *given, "-o", ORDER)
    assert (len(chosen.adapters), chosen.active) == (9, (("adapter_2", 0.5),))


def test_more_adapters_beside_those_of_a_row() -> None:
    found = adapters("-i", "lora-mistral", "-o", ORDER, "--lora", "style=adapter")
    assert found.adapters == (*paper().adapters, AdapterSource("style", "adapter"))
    assert found.active == paper().active
    with pytest.raises(UsageError, match="two adapters are called adapter_1"):
        adapters("--lora", "adapter_1=adapter", "-i", "lora-mistral", "-o", ORDER)


def test_without_an_ordering_the_repository_says_at_load_which_there_are(folder: Path) -> None:
    found = adapters("-i", "lora-llama", "-m", "a/b", "-a", "adapter")
    assert found == AdapterOptions(
        adapters=(AdapterSource("adapter", "adapter", is_repository=True),), active=(("adapter", 1.0),)
    )
    with pytest.raises(LoadError, match=r"adapter has no adapter_config\.json"):
        resolve_adapters(found, base=None, token=no_token)
    write_adapters(folder, {"adapter": ["q_proj"]})
    assert resolve_adapters(found, base=None, token=no_token) == AdapterOptions(
        adapters=(AdapterSource("adapter", "adapter"),), active=(("adapter", 1.0),)
    )
    (folder / "adapter" / "adapter_config.json").unlink()
    write_adapters(folder / "adapter", {"math": ["v_proj"], "biology": ["q_proj"]})
    write_json(folder / "adapter" / "xlora_config.json", xlora_content())
    both = (AdapterSource("math", "adapter", "math"), AdapterSource("biology", "adapter", "biology"))
    assert resolve_adapters(found, base=None, token=no_token) == AdapterOptions(
        adapters=both, active=(("math", 1.0), ("biology", 1.0))
    )
    some = adapters("-i", "--adapter", "biology:2", "lora-llama", "-m", "a/b", "-a", "adapter")
    assert resolve_adapters(some, base=None, token=no_token) == AdapterOptions(
        adapters=both, active=(("biology", 2.0),)
    )
    wrong = adapters("-i", "--adapter", "physics", "lora-llama", "-m", "a/b", "-a", "adapter")
    with pytest.raises(UsageError, match="there is no adapter physics") as refused:
        resolve_adapters(wrong, base=None, token=no_token)
    assert refused.value.hint == "there are math, biology"


def test_the_configs_of_a_repository_are_fetched_at_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = write_adapters(tmp_path / "a", {"math": ["v_proj"], "biology": ["q_proj"]})
    write_json(local / "xlora_config.json", xlora_content())
    files = {str(path.relative_to(local)): path.read_bytes() for path in local.rglob("*.json")}
    with serving({"owner/adapters": Repository(files)}, monkeypatch, tmp_path / "cache") as hub:
        found = adapters("-i", "lora-llama", "-m", "a/b", "-a", "owner/adapters")
        assert hub.asked == []
        read = resolve_adapters(found, base=None, token=no_token)
    assert [source.subfolder for source in read.adapters] == ["math", "biology"]


def test_the_name_of_a_base(folder: Path) -> None:
    for source, tok_model_id, name in (
        (ModelSource(None, None, "owner/base@v1", None), None, "owner/base@v1"),
        (ModelSource(None, None, "owner/base-GGUF", "base.gguf"), None, None),
        (ModelSource(None, None, "owner/base-GGUF", "base.gguf"), "owner/base", "owner/base"),
        (ModelSource(None, folder / "m.gguf", None, None), None, None),
        (ModelSource(None, Path("adapter"), None, None), None, "adapter"),
    ):
        assert base_name(source, tok_model_id) == name


# Rows with X-LoRA


@pytest.mark.parametrize(
    "row", [row for row in SELECTORS.values() if row.adapter == "x-lora"], ids=lambda row: row.name
)
def test_a_row_with_x_lora(row: ModelSelector) -> None:
    name = row.name
    given = ["-x", "owner/xlora"] if row.adapter_repo is None else []
    place = "owner/xlora" if given else XLORA
    given += file_of(row)
    words = [*given, "-o", ORDER, "--tgt-non-granular-index", "1"]
    assert adapters("--max-seqs", "4", "-i", name, *words) == AdapterOptions(
        xlora=place, ordering=Path(ORDER), non_granular_index=1
    )
    assert task("--max-seqs", "4", "-i", name, *words).load.max_seqs == 4
    base = ["-m", "owner/base"] if row.format == "plain" else []
    assert adapters("-i", name, *given, *base) == AdapterOptions(xlora=place)


def test_the_rows_that_mistral_rs_lacks() -> None:
    for name, base in (("x-lora-gemma-gguf", "gemma-gguf"), ("x-lora-phi2-gguf", "phi2-gguf")):
        found = task("-i", name, "-x", "owner/xlora")
        assert found.source == task("-i", base).source
        assert found.load.adapters == AdapterOptions(xlora="owner/xlora")


def test_x_lora_for_any_architecture() -> None:
    expected = AdapterOptions(xlora="owner/xlora", ordering=Path(ORDER), non_granular_index=2)
    words = ["--xlora", "owner/xlora", "-o", ORDER, "--tgt-non-granular-index", "2"]
    assert adapters("-i", "auto", "Qwen/Qwen3-8B", *words) == expected
    assert adapters("-i", "auto", "m.gguf", *words) == expected
    assert adapters("-i", "qwen3", *words) == expected
    with pytest.raises(UsageError, match="--xlora"):
        adapters("-i", "qwen3-gguf", *words)


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        (["-i", "x-lora-llama", "-m", "a/b"], UsageError, "x-lora-llama needs -x REPO or a folder"),
        (["-i", "lora-llama", "-m", "a/b"], UsageError, "lora-llama needs -a REPO or a folder"),
        (["-i", "lora-llama", "-a", "c/d"], UsageError, r"lora-llama needs -m REPO or a path, or an ordering \(-o\)"),
        (["-i", "x-lora-mistral", "-x", "./absent"], LoadError, "the adapter ./absent does not exist"),
        (["-i", "x-lora-mistral", "-x", "a/b/c"], LoadError, "a/b/c is no hub repository"),
        (["-i", "lora-mistral", "-a", "a/b/c"], LoadError, "a/b/c is no hub repository"),
        (["-i", "x-lora-mistral", "-o", "absent.json"], LoadError, "absent.json"),
        (["-i", "--lora", "a=adapter", "x-lora-mistral"], UsageError, "--lora a=adapter and X-LoRA exclude"),
        (["-i", "auto", "m.gguf", "--xlora", "a/b", "--lora", "a=adapter"], UsageError, "--lora .* and X-LoRA exclude"),
        (["-i", "--adapter", "a", "x-lora-mistral"], UsageError, "--adapter is for LoRA"),
        (["-i", "--merge", "x-lora-mistral"], UsageError, "--merge is for LoRA"),
        (["-i", "--max-adapters", "3", "x-lora-mistral"], UsageError, "--max-adapters is for LoRA"),
        (["-i", "auto", "m.gguf", "-o", ORDER], UsageError, "-o needs --xlora"),
        (["-i", "auto", "m.gguf", "--tgt-non-granular-index", "1"], UsageError, "--tgt-non-granular-index needs"),
    ],
)
def test_adapters_that_are_refused(words: list[str], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        task(*words)


# The base


def test_the_base_that_the_ordering_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = write_json(tmp_path / "own.json", {"order": ["x"], "base_model_id": "owner/base"})
    for row in (["x-lora-gemma", "-x", "a/b"], ["lora-mistral"], ["x-lora-mistral"]):
        assert task("-i", *row, "-o", str(own)).source.repo == "owner/base"
        assert task("-i", *row, "-o", str(own), "-m", "owner/base@v2").source.repo == "owner/base@v2"
        with pytest.raises(LoadError, match=r"the base models differ: -m says 'other/base', .*own\.json says"):
            task("-i", *row, "-o", str(own), "-m", "other/base")
    with pytest.raises(LoadError, match="the base models differ: --tok-model-id says 'other/base'"):
        task("-i", "lora-mistral-gguf", "-o", str(own), "-t", "other/base")
    (tmp_path / "model").mkdir()
    with caplog.at_level(logging.WARNING):
        assert task("-i", "lora-mistral", "-o", str(own), "-m", "model").source.path == Path("model")
    silent = write_json(tmp_path / "silent.json", {"order": ["x"]})
    assert task("-i", "lora-mistral", "-o", str(silent)).source.repo == ZEPHYR


def test_the_bases_that_configs_name_are_compared_at_load(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_adapters(folder / "family", {"math": ["v_proj"], "biology": ["q_proj"]})
    write_json(folder / "family" / "xlora_config.json", xlora_content())
    order = write_json(folder / "order.json", {"order": ["biology"], "base_model_id": "owner/base"})
    for words in (["-o", str(order)], []):
        found = adapters("--lora", "a=adapter", "-i", "lora-llama", "-m", "owner/base", "-a", "family", *words)
        names = [source.name for source in resolve_adapters(found, base="owner/base", token=no_token).adapters]
        assert names == ["biology", "a"] if words else ["math", "biology", "a"]
        with pytest.raises(LoadError, match=r"the base models differ: the model says 'other/base', .* 'owner/base'"):
            resolve_adapters(found, base="other/base", token=no_token)
        assert caplog.text == ""
        with caplog.at_level(logging.WARNING):
            resolve_adapters(found, base="./base", token=no_token)
        assert "whether the base models are the same is not known: the model says './base'" in caplog.text
        caplog.clear()
    wrong = write_json(folder / "wrong.json", {"order": ["physics"]})
    with pytest.raises(LoadError, match="family has no physics/adapter_config"):
        resolve_adapters(
            adapters("-i", "lora-llama", "-m", "a/b", "-a", "family", "-o", str(wrong)), base=None, token=no_token
        )
