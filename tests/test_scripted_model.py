"""A model that writes known words, and the benchmark of edits on it; no figure of speed is judged here."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from benchmarks import drafts, scripted_model
from tests.tiny import StorageTypes, TinyConfig, write_tiny


@pytest.mark.native
def test_edits_of_a_script_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The benchmark compares the answers with the script."""
    source, target = tmp_path / "m.gguf", tmp_path / "scripted.gguf"
    write_tiny(source, TinyConfig(tied=False, types=StorageTypes.all("Q8_0")))
    scripted_model.main([str(source), str(target)])
    assert len(scripted_model.script(gguf.GGUFReader(target))) == 16
    before, after = (
        {tensor.name: (tensor.tensor_type, tensor.shape.tolist()) for tensor in gguf.GGUFReader(path).tensors}
        for path in (source, target)
    )
    assert before == after
    monkeypatch.setattr(drafts, "UNUSED", 4)
    options = ["--cases", "words", "words-again", "--rounds", "2", "--tokens", "4"]
    drafts.main([str(target), *options])
    assert [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines()[2:]] == [
        "| words to be corrected",
        "| another edit of them",
    ]
    with pytest.raises(SystemExit, match=r"m.gguf was not written by benchmarks.scripted_model"):
        drafts.main([str(source), *options])


def test_a_model_without_a_head_of_its_own_is_refused(tmp_path: Path) -> None:
    write_tiny(tmp_path / "m.gguf")
    with pytest.raises(SystemExit, match="no head of its own"):
        scripted_model.main([str(tmp_path / "m.gguf"), str(tmp_path / "scripted.gguf")])
    assert not (tmp_path / "scripted.gguf").exists()


def test_changes_of_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt has most words of its answer, in their order, and ends with the word before them."""
    write_tiny(tmp_path / "m.gguf")
    monkeypatch.setattr(drafts, "UNUSED", 4)
    monkeypatch.setattr(drafts, "CHANGED", 2)
    words = drafts.Words(tmp_path / "m.gguf", 2, 4)
    script = scripted_model.script(gguf.GGUFReader(tmp_path / "m.gguf"))
    answer = words.answer(0)
    assert answer == script[1:5]
    [prompt] = words.prompts(0, again=False)
    assert prompt[-1] == script[0]
    assert prompt[:-1] != tuple(answer)
    common = [word for word in answer if word in prompt]
    assert len(common) >= 2
    assert [token for token in prompt if token in common] == common
    earlier, same = words.prompts(0, again=True)
    assert same == prompt
    assert earlier[-1] not in (*answer, script[0])
    with pytest.raises(SystemExit, match=r"m\.gguf knows 16 words, too few for 3 rounds of 4"):
        drafts.Words(tmp_path / "m.gguf", 3, 4)
