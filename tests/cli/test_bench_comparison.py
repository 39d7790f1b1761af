"""``bench --compare``: new results against those of an older benchmark."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mistralrs_cli.app import main
from mistralrs_cli.benchmark.old_results import Difference
from tests.cli.fake import load_fake
from tests.cli.in_process import InProcess, running

SMALL = ("-p", "16", "-n", "8", "-r", "2")


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[InProcess]:
    with running(tmp_path, capsys, monkeypatch) as command:
        model = tmp_path / "default.gguf"
        model.touch()
        monkeypatch.setenv("MISTRALRS_DEFAULT_MODEL", str(model))
        yield command


def bench(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert main(["bench", *SMALL, *words], load=load_fake) == 0
    return capsys.readouterr().out.splitlines()


def test_a_table_of_what_changed(run: InProcess, capsys: pytest.CaptureFixture[str]) -> None:
    old = run.home / "old.json"
    lines = [json.loads(line) for line in bench(capsys, "--json")]
    assert [line["tok_s_mean"] for line in lines] == [28.0, 32.0]
    slower = {**lines[0], "tok_s_all": [13.9, 14.1], "version": "0.0.1"}
    old.write_text("".join(json.dumps(line) + "\n" for line in (slower, lines[1])))
    shown = [line.split() for line in bench(capsys, "--compare", str(old), "-c", "1,2")[-7:]]
    assert shown[1] == ["tg8", "1", "14.00", "±", "0.14", "28.00", "±", "0.00", "+100.0", "%", "faster"]
    assert shown[2][-1] == "same"
    assert shown[3][:4] == ["tg8", "2", "not", "there"]
    assert shown[5] == ["old:", "0.0.1,", "avx2,", "2", "threads"]
    compared = [json.loads(line) for line in bench(capsys, "--json", "--compare", str(old))]
    assert [(line["old_tok_s_mean"], line["change_percent"], line["verdict"]) for line in compared] == [
        (14.0, 100.0, "faster"),
        (32.0, 0.0, "same"),
    ]


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        ((10.0, 11.0, 9.0), (10.5, 11.5, 9.5), "same"),
        ((10.0, 10.1, 9.9), (8.0, 8.1, 7.9), "slower"),
        ((10.0,), (20.0, 20.0), "unknown"),
        ((10.0, 10.0), (10.0, 10.0), "same"),
    ],
)
def test_verdicts(old: tuple[float, ...], new: tuple[float, ...], verdict: str) -> None:
    assert Difference(old, new).verdict == verdict


@pytest.mark.parametrize(
    "text", ["", "hello\n", "{}\n", '{"test": "pp1", "concurrency": 1, "tok_s_all": ["x"]}\n', "3\n"]
)
def test_what_is_no_old_result_is_refused(run: InProcess, text: str) -> None:
    old = run.home / "old.json"
    old.write_text(text)
    for path in (old, run.home / "absent.json"):
        code, out, err = run("bench", "--compare", str(path))
        assert (code, out) == (2, "")
        assert "--compare" in err
        assert "\nhint: " in err
