"""Every form of `--token-source`, and that no message shows a token."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

from mistralrs.errors import UsageError
from mistralrs.loading.token_source import token


@pytest.fixture(autouse=True)
def no_tokens_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "token"
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(path))
    return path


def test_literal() -> None:
    assert token("literal:hf_abc") == "hf_abc"
    assert token("literal: hf:with:colons \n") == "hf:with:colons"


def test_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", " hf_default\n")
    monkeypatch.setenv("MINE", "hf_mine")
    assert token("env") == "hf_default"
    assert token("env:MINE") == "hf_mine"


def test_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").write_text("hf_filed\n")
    assert token(f"path:{tmp_path / 'mine'}") == "hf_filed"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert token("path:~/mine") == "hf_filed"


def test_cache_is_the_token_of_the_hubs_tools(no_tokens_around: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert token("cache") is None
    no_tokens_around.write_text("hf_logged_in\n")
    assert token("cache") == "hf_logged_in"
    monkeypatch.setenv("HF_TOKEN", "hf_variable")
    assert token("cache") == "hf_variable"
    assert token("none") is None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("literal:", "after the colon is missing"),
        ("literal: ", "after the colon is missing"),
        ("literal:hf abc", "is not a token"),
        ("literal:hf_\nabc", "is not a token"),
        ("literal:hf_ä", "is not a token"),
        ("env", "HUGGING_FACE_HUB_TOKEN is not set"),
        ("env:NOT_THERE", "NOT_THERE is not set"),
        ("env:", "the name after 'env:' is missing"),
        ("path:", "the file after 'path:' is missing"),
        ("path:/no/such/file", "/no/such/file cannot be read: No such file"),
        ("literal", "not a source of tokens"),
        ("path", "not a source of tokens"),
        ("cache:x", "'cache:...' is not a source"),
        ("none:x", "'none:...' is not a source"),
        ("file:x", "'file:...' is not a source"),
        ("", "not a source of tokens"),
    ],
)
def test_anything_else_is_refused_by_name(source: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        token(source)


def test_empty_and_binary_files(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text(" \n")
    with pytest.raises(UsageError, match="empty is empty"):
        token(f"path:{tmp_path / 'empty'}")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="binary is not UTF-16-LE"):
        token(f"path:{tmp_path / 'binary'}")
    with pytest.raises(UsageError, match="is not a regular file"):
        token(f"path:{tmp_path}")


@pytest.mark.parametrize("source", ["hf_topsecret", "literal:hf_topsecret bad", "token:hf_topsecret"])
def test_messages_never_show_what_may_be_a_token(source: str) -> None:
    with pytest.raises(UsageError) as caught:
        token(source)
    assert "topsecret" not in f"{caught.value} {caught.value.hint}"
