"""``ordering create`` and ``ordering rename`` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mistralrs.errors import UsageError
from mistralrs_cli.app import main
from mistralrs_cli.arguments.command_line import parse
from mistralrs_cli.arguments.invocation import resolve
from tests.adapters.adapter_files import ATTENTION, write_adapters, write_json, xlora_content
from tests.cli.terminal import ROOT
from tests.hub import Repository, serving

PAPER = {
    "xlora-paper-ordering.json": ("mistral", 32, "HuggingFaceH4/zephyr-7b-beta", 9, [*ATTENTION, "gate_proj"]),
    "xlora-gemma-paper-ordering.json": (
        "gemma", 28, "google/gemma-7b-it", 4, [*ATTENTION, "gate_proj", "up_proj", "down_proj"],
    ),
}  # fmt: skip


def write_model(folder: Path, model_type: str = "llama", layers: int = 2) -> str:
    write_json(folder / "config.json", {"model_type": model_type, "num_hidden_layers": layers})
    return str(folder)


@pytest.mark.parametrize("name", PAPER)
def test_the_shipped_orderings_are_what_it_makes(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    model_type, layers, base, count, modules = PAPER[name]
    model = write_model(tmp_path, model_type, layers)
    names = ",".join(f"adapter_{number}" for number in range(1, count + 1))
    words = ["--base-model-id", base, "--names", names, "--target-modules", ",".join(modules)]
    assert main(["ordering", "create", model, *words]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ((ROOT / "orderings" / name).read_text(), "")
    assert [path.name for path in (ROOT / "orderings").glob("*.json") if path.name not in PAPER] == []


@pytest.mark.parametrize("name", PAPER)
def test_the_shipped_orderings_are_those_of_the_paper(name: str) -> None:
    _, layers, base, count, modules = PAPER[name]
    content = json.loads((ROOT / "orderings" / name).read_text())
    names = [
        f"model.layers.{layer}.{'self_attn' if module in ATTENTION else 'mlp'}.{module}"
        for layer in range(layers)
        for module in modules
    ]
    assert content == {
        "order": [f"adapter_{number}" for number in range(1, count + 1)],
        "layers": {name: place for place, name in enumerate(names)},
        "base_model_id": base,
    }


def test_create_reads_the_configs_of_the_adapters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, adapters = write_model(tmp_path / "model"), tmp_path / "adapters"
    write_adapters(adapters, {"math": ["v_proj"], "biology": ["q_proj"]}, base=None)
    write_json(adapters / "xlora_config.json", xlora_content())
    out = tmp_path / "ordering.json"
    assert main(["ordering", "create", model, "-a", str(adapters), "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith(f"{out}: 2 adapters, 4 layers\n")
    assert json.loads(out.read_text()) == {
        "order": ["math", "biology"],
        "layers": {
            "model.layers.0.self_attn.q_proj": 0,
            "model.layers.0.self_attn.v_proj": 1,
            "model.layers.1.self_attn.q_proj": 2,
            "model.layers.1.self_attn.v_proj": 3,
        },
        "base_model_id": "owner/base",
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapters", "model", "ordering.json"]
    part = ["ordering", "create", model, "-a", str(adapters), "--names", "biology"]
    assert main(part) == 3
    assert "names 2 adapters, 1 were given\nhint: X-LoRA needs all adapters" in capsys.readouterr().err
    assert main([*part, "--subset"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["order"], len(content["layers"])) == (["biology"], 2)


def test_create_fetches_configs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    local = write_adapters(tmp_path / "a", {"math": ["v_proj"], "biology": ["q_proj"]})
    write_json(local / "xlora_config.json", xlora_content())
    write_model(tmp_path / "m")
    weights = {"math/adapter_model.safetensors": b"x", "xlora_classifier.safetensors": b"x"}
    files = {str(path.relative_to(local)): path.read_bytes() for path in local.rglob("*.json")}
    repositories = {
        "owner/base": Repository({"config.json": (tmp_path / "m" / "config.json").read_bytes()}),
        "owner/adapters": Repository(files | weights),
    }
    with serving(repositories, monkeypatch, tmp_path / "cache") as hub:
        words = ["--token-source", "none", "ordering", "create", "owner/base", "--adapters", "owner/adapters"]
        assert main(words) == 0
        fetched = [asked.path.rpartition("/main/")[2] for asked in hub.downloads()]
    assert not set(fetched) & set(weights)
    content = json.loads(capsys.readouterr().out)
    assert (content["order"], content["base_model_id"], len(content["layers"])) == (
        ["math", "biology"],
        "owner/base",
        4,
    )


def test_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = "orderings/xlora-gemma-paper-ordering.json"
    assert main(["ordering", "rename", shipped, "--names", "d, c,b,a"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content == json.loads((ROOT / shipped).read_text()) | {"order": ["d", "c", "b", "a"]}
    own = str(write_json(tmp_path / "own.json", {"order": ["x"]}))
    assert main(["ordering", "rename", own, "--names", "y", "--out", own, "--force"]) == 0
    assert json.loads(Path(own).read_text()) == {"order": ["y"]}
    assert [path.name for path in tmp_path.iterdir()] == ["own.json"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ordering"], "missing command"),
        (["ordering", "creat"], "no such command: creat"),
        (["ordering", "create"], "missing argument 'MODEL'"),
        (["ordering", "create", "m"], "which adapters there are and where they act is not known"),
        (["ordering", "create", "m", "--names", "a"], "where they act is not known"),
        (["ordering", "create", "m", "-a", "b", "--target-modules", "q_proj"], "exclude each other"),
        (["ordering", "create", "m", "-a", "b", "--names", "a,,b"], "--names 'a,,b' has an empty name"),
        (["ordering", "create", "m", "-a", "b", "--subset"], "--subset needs --adapters and --names"),
        (["ordering", "create", "m", "-a", "b", "--force"], "--force needs --out"),
        (["ordering", "create", "m", "-a", "b", "--out", "there.json"], "there.json is there already"),
        (["ordering", "create", "m", "-a", "b", "--out", "absent/o.json"], "absent/o.json cannot be the name of a new"),
        (["ordering", "create", "m", "-a", "b", "--out", ".", "--force"], ". cannot be the name of a new file"),
        (["ordering", "rename", "there.json"], "missing option '--names'"),
        (["-i", "ordering", "rename", "f", "--names", "a"], "-i and ordering rename exclude each other"),
        (["--token-source", "none", "ordering", "rename", "f", "--names", "a"], "--token-source needs"),
    ],
)
def test_words_that_do_not_fit_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.json").touch()

    def ask() -> None:
        parsed = parse(words)
        assert parsed is not None
        resolve(parsed)

    with pytest.raises(UsageError) as refused:
        ask()
    assert said in refused.value.message
    assert refused.value.hint


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["create", "m", "--names", "a,a", "--target-modules", "q_proj"], 2, "--names has the adapter 'a' twice"),
        (["create", "m", "--names", "a/b", "--target-modules", "q_proj"], 2, "--names has the adapter 'a/b'"),
        (["create", "m", "--names", "a", "--target-modules", "q_proj,w1"], 2, "'w1' is no module of "),
        (["create", "b", "--names", "a", "--target-modules", "q_proj"], 3, "b/config.json: key model_type: is 'bert'"),
        (["create", ".", "--names", "a", "--target-modules", "q_proj"], 3, ". has no config.json"),
        (["create", "m", "-a", "a"], 3, "a: the order of its adapters is not known"),
        (["create", "m", "-a", "a", "--names", "z"], 3, "a has no z/adapter_config.json"),
        (["create", "m", "-a", "a", "--names", "x", "--base-model-id", "o/n"], 3, "the base models differ: "),
        (["rename", "o.json", "--names", "a"], 2, "1 names were given, expected 2, as o.json has so many"),
        (["rename", "o.json", "--names", "a,a"], 2, "the list of new names has the adapter 'a' twice"),
        (["rename", "m/config.json", "--names", "a"], 3, "m/config.json: key 'model_type': is not known"),
        (["rename", "absent.json", "--names", "a"], 3, "absent.json cannot be read"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "m")
    write_model(tmp_path / "b", "bert")
    write_adapters(tmp_path / "a", {"x": ["q_proj"]})
    write_json(tmp_path / "o.json", {"order": ["x", "y"]})
    assert main(["ordering", *words, "--out", "new.json"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert "\nhint: " in captured.err
    assert not (tmp_path / "new.json").exists()


def test_help_says_what_stands_after_it(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["ordering", "create", "--help"], ["help", "ordering"], ["ordering", "rename", "-h"]):
        assert parse(words) is None
    out = " ".join(capsys.readouterr().out.split())
    for said in ("--target-modules NAME,NAME,...", "create Write an ordering from", "FILE <path> An ordering, or"):
        assert said in out
