"""The user's folders, with and without a home."""

from __future__ import annotations

import pwd
from pathlib import Path
from typing import Any, NoReturn

import pytest

from mistralrs.api.default_model import find_default_model
from mistralrs.errors import LoadError, UsageError
from mistralrs.loading.token_source import token
from mistralrs.user_dirs import expand_user, home_folder, user_folder
from mistralrs_cli.chat.input_history import PrivateHistory, history_file


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user whom the system does not know, without ``HOME``."""

    def unknown(user: object) -> NoReturn:
        raise KeyError(user)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "MISTRALRS_DEFAULT_MODEL"):
        monkeypatch.delenv(name, raising=False)


def test_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home_folder() == tmp_path
    assert user_folder("XDG_DATA_HOME", ".local/share", {}) == tmp_path / ".local" / "share" / "mistralrs"
    assert user_folder("XDG_DATA_HOME", "x", {"XDG_DATA_HOME": "/data"}) == Path("/data/mistralrs")
    # a relative folder is none, by the specification
    assert user_folder("XDG_DATA_HOME", "x", {"XDG_DATA_HOME": "data"}) == tmp_path / "x" / "mistralrs"
    assert expand_user("~/model.gguf") == tmp_path / "model.gguf"
    assert expand_user("owner/~name") == Path("owner/~name")
    with pytest.raises(UsageError, match="home folder ~nobody-of-that-name is not known"):
        expand_user("~nobody-of-that-name/model.gguf")


@pytest.mark.usefixtures("homeless")
def test_without_a_home(tmp_path: Path) -> None:
    assert home_folder() is None
    assert user_folder("XDG_DATA_HOME", "x", {}) is None
    assert user_folder("XDG_DATA_HOME", "x", {"XDG_DATA_HOME": "/data"}) == Path("/data/mistralrs")
    assert history_file() is None
    with pytest.raises(UsageError, match="home folder ~ is not known"):
        token("path:~/token")
    with pytest.raises(LoadError, match="no home folder is known") as caught:
        find_default_model(root=tmp_path)
    assert caught.value.hint == "set HOME, or name the file of a model in MISTRALRS_DEFAULT_MODEL"


def test_a_history_without_a_place(tmp_path: Path) -> None:
    """It is kept in memory, which is said once."""
    for path, reason in ((None, "there is no home folder"), (tmp_path, "Is a directory")):
        said: list[str] = []
        history = PrivateHistory(path, complain=said.append)
        assert list(history.load_history_strings()) == []
        for entry in ("one", "two"):
            history.append_string(entry)
        assert history.get_strings() == ["one", "two"]
        assert len(said) == 1
        assert said[0].startswith("the history is not kept: ")
        assert reason in said[0]


def test_a_history_that_is_only_read(tmp_path: Path) -> None:
    path, said = tmp_path / "history", list[str]()
    PrivateHistory(path, complain=said.append).append_string("before")
    written = path.read_bytes()
    history = PrivateHistory(path, complain=said.append, keeps=False)
    history.append_string("now")
    assert (list(history.load_history_strings()), history.get_strings()) == (["before"], ["now"])
    assert (path.read_bytes(), said) == (written, [])


def test_a_token_that_may_not_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Any:
        raise PermissionError(13, "Permission denied", "/elsewhere/huggingface/token")

    monkeypatch.setattr("huggingface_hub.get_token", refuse)
    with pytest.raises(UsageError, match="huggingface/token may not be read by this user"):
        token("cache")
