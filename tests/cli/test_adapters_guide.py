"""The commands of the guide to adapters: each of them names what it says, and runs with tiny models."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from mistralrs.api.loaded_adapters.adapter_options import AdapterOptions
from mistralrs.api.selectors.model_selector import SELECTORS
from mistralrs_cli.arguments.command_line import parse
from mistralrs_cli.arguments.invocation import Invocation, resolve
from mistralrs_cli.commands.serve import ServeJob
from tests.adapters.adapter_files import write_adapters, write_json
from tests.adapters.gguf_lora_of import write_gguf_lora_of
from tests.adapters.peft_adapters import write_adapter
from tests.adapters.xlora_files import NAMES, axis_of, write_xlora
from tests.architectures import VARIANTS, Variant, write_folder
from tests.cli.forked_commands import ForkedCommands
from tests.cli.terminal import ROOT, environment
from tests.gguf_of import write_gguf
from tests.hub import COMMIT, Hub, Repository
from tests.serving import RunningServer

GUIDE = (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
COMMANDS = [
    shlex.split(line, comments=True)
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("mistralrs ")
]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the guide's first table names, as far as parsing looks at them."""
    for name in ("base.gguf", "style.gguf"):
        (tmp_path / name).touch()
    (tmp_path / "base").mkdir()
    (tmp_path / "adapters").mkdir()
    write_adapters(tmp_path, {"style": ["q_proj"], "law": ["v_proj"]})
    write_adapters(tmp_path / "family", {"one": ["q_proj"], "two": ["q_proj"]})
    write_json(tmp_path / "order.json", {"order": ["one", "two"]})
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_of_the_guide(words: list[str], files: Path) -> None:
    parsed = parse(words[1:])
    assert parsed is not None
    task = resolve(parsed)
    if isinstance(task, Invocation | ServeJob):
        assert task.load.adapters != AdapterOptions()
    else:
        assert words[1] in ("adapter", "ordering", "inspect")


def test_the_guide_s_files_are_those_of_the_commands(files: Path) -> None:
    table = GUIDE.partition("| --- | --- |")[2].partition("\n\n")[0]
    named = {name for cell in re.findall(r"^\| (.*?) \|", table, re.MULTILINE) for name in re.findall("`(.*?)`", cell)}
    assert named == {path.name for path in files.iterdir()} - {"adapters"}
    assert len(COMMANDS) > 25


def test_the_bodies_of_requests_are_json() -> None:
    bodies = [body for block in BLOCKS for body in re.findall(r"-d '(.*?)'", block, re.DOTALL)]
    assert len(bodies) == 3
    assert all(isinstance(json.loads(body), dict) for body in bodies)


# They run


TARGETS = ("q_proj", "v_proj", "down_proj")
PAPER = [f"adapter_{number}" for number in range(1, 10)]
PAPER_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj")
PAPER_LAYERS = 32
ONCE, FOLDER, FILE = ("--prompt", "Hello"), ("auto", "base"), ("gguf", "-f", "base.gguf")
GREEDY = ("--temperature", "0", "--max-tokens", "8", "--threads", "1")
ANSWERING = [words for words in COMMANDS if {"-i", "--prompt"} & set(words) and words[1] != "adapter"]
SERVING = [words for words in COMMANDS if "--port" in words]
TOOLS = [words for words in COMMANDS if words not in ANSWERING and words not in SERVING]
REQUESTS = [
    shlex.split(line)
    for block in BLOCKS
    for line in re.sub(r"\\\n", " ", block).replace("{\n", "{").splitlines()
    if line.startswith("curl ")
]
LIKE_THE_BASE = (["--lora", "style", "--lora", "law", "auto", "base"], ["--adapter", "none", "auto", "base"])
"""The ends of commands with which no adapter acts at first."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the guide's first table, and the folder of adapters that clients may load."""
    folder = tmp_path_factory.mktemp("guide")
    base = write_folder(folder / "base", VARIANTS["llama"])
    write_gguf(folder / "base.gguf", base)
    for seed, name in enumerate(("style", "law")):
        write_adapter(folder / name, base, seed=seed, deviation=0.5, settings={"target_modules": [*TARGETS]})
    write_gguf_lora_of(folder / "style.gguf", folder / "style", base)
    write_xlora(folder / "family", base, axis_of("llama", targets=TARGETS), layerwise_scalings=True)
    write_json(folder / "order.json", {"order": list(NAMES), "base_model_id": "base"})
    shutil.copytree(folder / "law", folder / "adapters" / "law")
    return folder


@pytest.fixture(scope="module")
def hub(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """The hub repositories of the guide: adapters of `base`, and tiny ones in the place of the paper's."""
    folder = tmp_path_factory.mktemp("paper")
    zephyr = write_folder(folder / "zephyr", Variant("mistral", {"num_hidden_layers": PAPER_LAYERS}))
    axis = [f"model.layers.{layer}.{name}" for layer in range(PAPER_LAYERS) for name in axis_names()]
    xlora = write_xlora(folder / "x-lora", zephyr, axis, names=PAPER, layerwise_scalings=True)
    row = SELECTORS["lora-mistral-gguf"]
    assert row.quantized_repo is not None
    assert row.quantized_filename is not None
    file = write_gguf(folder / row.quantized_filename, zephyr)
    repositories = {
        "OWNER/NAME": Repository(
            {**files_of(tiny / "style"), **{f"FOLDER/{name}": data for name, data in files_of(tiny / "law").items()}},
            revisions=("main", "REVISION", COMMIT),
        ),
        "HuggingFaceH4/zephyr-7b-beta": Repository(files_of(zephyr)),
        row.quantized_repo: Repository({file.name: file.read_bytes()}),
        "lamm-mit/x-lora": Repository(files_of(xlora)),
    }
    with Hub(repositories) as hub:
        yield hub


def axis_names() -> list[str]:
    """The modules of a layer in the paper's X-LoRA."""
    return [path.removeprefix("model.layers.0.") for path in axis_of("llama", targets=PAPER_TARGETS, layers=1)]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def here(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the files, which a command may change."""
    return shutil.copytree(tiny, tmp_path / "here")


Run = Callable[[list[str], Path], str]
"""Runs a command in a folder and returns its stdout; it has the message `Hello` on its stdin."""


@pytest.fixture(scope="module")
def run(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with ForkedCommands(environment(tmp_path_factory.mktemp("forks"))) as forks:

        def run(words: list[str], here: Path) -> str:
            home = here.parent / "home"
            home.mkdir(exist_ok=True)
            own = environment(home, **hub.env(home / "hub"))
            done = forks.run(words, folder=here, environment=own, stdin="Hello\n")
            assert done.returncode == 0, done.stderr
            return done.stdout

        yield run


@pytest.fixture(scope="module")
def plain(tiny: Path, run: Run) -> Callable[..., str]:
    """Answers of commands that other commands are compared with; each runs once."""
    return cache(lambda *words: run([*GREEDY, *words], tiny))


@pytest.mark.slow
@pytest.mark.parametrize("words", ANSWERING, ids=" ".join)
def test_a_command_answers(words: list[str], here: Path, run: Run, plain: Callable[..., str]) -> None:
    answer = run([*GREEDY, *words[1:]], here)
    assert answer.strip()
    if "orderings/xlora-paper-ordering.json" in words:
        return  # its base is another one
    is_base = any(words[-len(end) :] == end for end in LIKE_THE_BASE)
    job = ("-i",) if "-i" in words else ONCE
    assert (answer == plain(*job, *(FILE if "base.gguf" in words else FOLDER))) == is_base


@pytest.mark.slow
@pytest.mark.parametrize("words", TOOLS, ids=" ".join)
def test_a_tool_writes_what_it_says(words: list[str], here: Path, run: Run, plain: Callable[..., str]) -> None:
    before = {path.name for path in here.iterdir()}
    said = run(words[1:], here)
    written = {words[words.index(name) + 1] for name in ("--out", "--svg") if name in words}
    assert {path.name for path in here.iterdir()} - before == written
    if words[1] == "inspect":
        assert [line.split()[-1] for line in said.splitlines() if line.startswith("adapter ")] == ["(style)", "(law)"]
    elif words[2] == "inspect":
        assert "LoRA" in said
    elif words[2] == "scalings":
        assert all(name in said for name in NAMES)
    elif words[2] == "rename":
        assert json.loads(said)["order"] == words[-1].split(",")
    elif words[2] == "create":
        assert json.loads((here / words[-1]).read_text(encoding="utf-8"))["order"] == list(NAMES)
    elif words[2] == "merge":
        made = FILE if words[-1].endswith(".gguf") else FOLDER
        merged = run([*GREEDY, *ONCE, *made[:-1], words[-1]], here)
        assert merged not in ("", plain(*ONCE, *made))
    else:
        converted = run([*GREEDY, *ONCE, "--lora", words[-1], *FOLDER], here)
        assert converted == plain(*ONCE, "--lora", "style", *FOLDER)


def served(words: list[str], here: Path, hub: Hub) -> RunningServer:
    """The command's server, on another port."""
    assert words[:3] == ["mistralrs", "--port", "1234"]
    paths = [str(here / word) if (here / word).exists() else word for word in words[3:]]
    home = here.parent / "home"
    home.mkdir()
    return RunningServer("--threads", "1", *paths, environment=environment(home, **hub.env(home / "hub")))


def ask(server: RunningServer, words: list[str]) -> Any:
    """The answer to a request of the guide."""
    path = words[1].removeprefix("http://127.0.0.1:1234")
    assert path.startswith("/")
    body = json.loads(words[words.index("-d") + 1]) if "-d" in words else None
    status, answer = server.ask("GET" if body is None else "POST", path, body)
    assert status == 200, answer
    return answer


@pytest.mark.slow
def test_the_servers_answer_the_requests(here: Path, hub: Hub) -> None:
    several, changing, xlora = SERVING
    question, *changes = REQUESTS
    with served(several, here, hub) as server:
        assert ask(server, question)["model"] == "law"
    shutil.rmtree(here.parent / "home")
    with served(changing, here, hub) as server:
        load, unload, listed = changes
        ask(server, load)
        assert "law" in json.dumps(ask(server, listed))
        assert ask(server, question)["model"] == "law"
        ask(server, unload)
        assert "law" not in json.dumps(ask(server, listed))
    shutil.rmtree(here.parent / "home")
    with served(xlora, here, hub) as server:
        body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
        status, answer = server.ask("POST", "/v1/chat/completions", body)
        assert status == 200, answer


@pytest.mark.slow
def test_the_program_runs(here: Path, tmp_path: Path) -> None:
    [program] = re.findall(r"^```python\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    shown = f"{program}\nprint(answer.adapter_generation, answer.choices[0].message.content)"
    done = subprocess.run(
        [sys.executable, "-c", shown],
        env={**os.environ, **environment(tmp_path)},
        cwd=here,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
