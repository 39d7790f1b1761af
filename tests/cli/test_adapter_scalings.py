"""``adapter scalings``: its table, its JSON, its picture, and refusals before a model is loaded."""

from __future__ import annotations

import io
import json
import runpy
import shutil
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.loaded_adapters.adapter_options import AdapterOptions
from mistralrs.api.local_model import LocalModel
from mistralrs.engine.config import SamplingParams
from mistralrs.errors import UsageError
from mistralrs_cli.adapter_commands.mean_scalings import MeanScalings, heat_map, mean_scalings
from mistralrs_cli.adapter_commands.scalings_picture import MOST_COLUMNS, picture
from mistralrs_cli.app import main
from mistralrs_cli.arguments.command_line import parse
from mistralrs_cli.arguments.invocation import ChatJob, resolve
from mistralrs_cli.chat import slash_commands
from mistralrs_cli.chat.session import Chat
from mistralrs_cli.chat_storage.chat_record import open_record
from mistralrs_cli.terminal.output import Streams
from tests.adapters.xlora_files import NAMES, axis_of, write_xlora
from tests.adapters.xlora_reference import ReferenceXLora
from tests.architectures import VARIANTS, write_folder
from tests.cli.in_process import running
from tests.cli.terminal import ROOT

SVG = "{http://www.w3.org/2000/svg}"
PROMPT = 'the <cat> & "dog"'
AXIS = axis_of("llama", targets=("q_proj", "v_proj"))


@pytest.fixture(scope="module")
def row(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    base = write_folder(tmp_path_factory.mktemp("scalings") / "base", VARIANTS["llama"], dtype=torch.float32)
    mixture = write_xlora(tmp_path_factory.mktemp("scalings") / "mix", base, AXIS, layerwise_scalings=True)
    return ["auto", str(base), "--xlora", str(mixture)]


def ask(words: list[str]) -> None:
    parsed = parse(words)
    assert parsed is not None
    resolve(parsed)


@pytest.mark.native
def test_the_table_and_the_picture(row: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table has the means of the JSON's weights, and those are the paper's."""
    svg = tmp_path / "out.svg"
    words = ["--dtype", "f32", "adapter", "scalings", "--prompt", PROMPT]
    assert main([*words, "--json", *row]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["adapters"], found["layers"]) == (list(NAMES), AXIS)
    weights = torch.tensor([token["weights"] for token in found["tokens"]])
    reference = ReferenceXLora(Path(row[1]), Path(row[3]), AXIS)
    expected = reference.scalings([token["id"] for token in found["tokens"]])
    torch.testing.assert_close(weights.double(), expected, rtol=1e-3, atol=1e-4)
    assert "".join(token["text"] for token in found["tokens"]).strip() == PROMPT

    capsys.readouterr()
    assert main([*words, "--svg", str(svg), *row]) == 0
    out, err = capsys.readouterr()
    assert err == f"{svg}: {len(weights)} tokens\n"
    head, *lines = out.splitlines()
    assert head.split() == ["position", "token", *NAMES]
    means = torch.tensor([[float(cell) for cell in line.split()[-3:]] for line in lines])
    torch.testing.assert_close(means, weights.mean(dim=1), rtol=0, atol=6e-4)
    drawn = ElementTree.parse(svg).getroot()
    assert len(drawn.findall(f"{SVG}rect/{SVG}title")) == len(weights) * len(NAMES)
    texts = [each.text for each in drawn.iter(f"{SVG}text")]
    assert {*NAMES, "mean over the layers", f"{means.max().item():.2f}"} <= {*texts}
    assert [text for text in texts if text in [token["text"] for token in found["tokens"]]]


def test_a_picture_of_any_text_is_xml() -> None:
    tokens = ("<svg>", "&amp;", '"', "\x00\x1b[31m", "\ud800", "\uffff", "\n", "", "z" * 50) * 9
    weights = tuple((place / 90, -place / 180) for place in range(len(tokens)))
    root = ElementTree.fromstring(picture(MeanScalings(("a<b", "c&d"), 5, tokens, weights)))
    texts = [each.text for each in root.iter(f"{SVG}text")]
    assert {"<svg>", "&amp;", "a<b", "c&d", "↵", "·", "-0.44", "0.89"} <= {*texts}
    columns = {each.get("x") for each in root.findall(f"{SVG}rect") if each.find(f"{SVG}title") is not None}
    assert len(columns) == MOST_COLUMNS
    assert ElementTree.fromstring(picture(MeanScalings(("a",), 0, (), ()))) is not None


@pytest.mark.native
def test_the_readme_s_picture_is_drawn_by_its_script(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Colours may differ by a step where another instruction set rounds differently."""
    out, kept = tmp_path / "out.svg", ROOT / "docs" / "pictures" / "scalings.svg"
    monkeypatch.setattr(sys, "argv", ["draw_scalings.py", str(out)])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with running(tmp_path, capsys, monkeypatch):
        assert runpy.run_path(str(ROOT / "scripts" / "draw_scalings.py"))["main"]() == 0
    fresh, old = (ElementTree.parse(path).getroot() for path in (out, kept))
    assert [each.text for each in fresh.iter(f"{SVG}text")] == [each.text for each in old.iter(f"{SVG}text")]
    titles = [[str(each.text) for each in root.findall(f"{SVG}rect/{SVG}title")] for root in (fresh, old)]
    assert len(titles[0]) == len(titles[1]) > 50
    for one, other in zip(*titles, strict=True):
        assert one.rpartition(" ")[0] == other.rpartition(" ")[0]
        assert abs(float(one.rpartition(" ")[2]) - float(other.rpartition(" ")[2])) < 0.02
    assert f"({kept.relative_to(ROOT)})" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [10, 30, 80, 200])
def test_a_heat_map_fits_the_terminal(width: int) -> None:
    from rich.cells import cell_len

    tokens = ("the", " 猫", "\n", "z" * 50, "\x1b[2J", "") * 12
    weights = tuple((place / 72, 1 - place / 72) for place in range(len(tokens)))
    *lines, legend = heat_map(
        MeanScalings(("music", "a-very-long-name-of-an-adapter"), 0, tokens, weights), width=width
    )
    assert max(map(cell_len, lines)) <= width
    assert "\x1b" not in "".join(lines)
    assert legend.endswith("█ 1.00")
    assert lines[1].startswith("mus")
    if width > 30:
        assert lines[1].rstrip().endswith(("░", "▒")) or "░" in lines[1]
        assert "█" in lines[2]


@pytest.mark.native
def test_the_chat_draws_the_last_answer(row: list[str]) -> None:
    """Each turn starts from the prefix cache: only the answer's tokens are drawn, and all of them but the last."""
    adapters = AdapterOptions(xlora=row[3])
    template = "{% for each in messages %}{{ each.content }};{% endfor %}"
    load = LoadOptions(threads=1, adapters=adapters, chat_template=template)
    streams = Streams(io.StringIO(), io.StringIO(), io.StringIO())
    sampling = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    with LocalModel.load(ModelSource(None, Path(row[1]), None, None), load) as model:
        record = open_record("model", wanted=False, say=pytest.fail)
        chat = Chat(model, ChatJob(sampling, None, truncate=False, stats=False), streams, record=record)
        for text in ("the cat and the dog", "again"):
            chat.take_turn(text, mark_cut=False)
            assert chat.scalings is not None
            assert chat.last is not None
            assert chat.scalings.start == chat.last.cached_tokens
            assert chat.scalings.start + len(chat.scalings.tokens) == chat.last.prompt_tokens + 5
        slash_commands.run(chat, "/scalings")
        said = streams.stderr.getvalue()
        assert all(f"\n{name}" in said for name in NAMES)
        means = mean_scalings(
            chat.scalings, model.known_adapters().require_scalings(), model.tokenizer, first=chat.last.prompt_tokens
        )
        assert len(means.tokens) == 5
        assert said == "".join(f"{line}\n" for line in heat_map(means, width=shutil.get_terminal_size().columns))


def test_what_is_refused_before_anything_is_loaded(row: list[str], tmp_path: Path) -> None:
    there = tmp_path / "there.svg"
    there.touch()
    words = ["adapter", "scalings", "--prompt", "a"]
    for more, said in (
        (["--svg", str(there)], "is there already"),
        (["--svg", str(tmp_path / "out.png")], "is to be a picture"),
        (["--svg", str(tmp_path / "no" / "out.svg")], "is no folder"),
        (["--force"], "--force is for the picture"),
    ):
        with pytest.raises(UsageError, match=said):
            ask([*words, *more, *row])
    ask([*words, "--svg", str(there), "--force", *row])
    with pytest.raises(UsageError, match="only X-LoRA has scalings"):
        ask([*words, *row[:2]])
    with pytest.raises(UsageError, match="no such command: outo"):
        ask([*words, "outo"])
    with pytest.raises(UsageError, match="--prompt"):
        ask(["adapter", "scalings", *row])
    with pytest.raises(UsageError, match="exclude each other"):
        ask(["-i", *words, *row])
    with pytest.raises(UsageError, match="--temperature needs"):
        ask(["--temperature", "1", *words, *row])
