"""Downloads from the stand-in hub: requests, the cache, and error messages."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants

from mistralrs.errors import LoadError, UsageError
from mistralrs.loading.hub_files import NotInRepositoryError, companion, fetch, fetch_optional
from tests.hub import COMMIT, Hub, Repository, serving

REPO = "TheBloke/Tiny-GGUF"
MODEL = os.urandom(300_000)
CHUNK = 10_000


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    files = {"tiny.Q4_K_M.gguf": MODEL, "tiny.Q8_0.gguf": b"8", "tokenizer.json": b"{}", "deep/er/file.gguf": b"deep"}
    repositories = {
        REPO: Repository(files),
        "secret/private": Repository({"a.gguf": b"a"}, private=True),
        "meta/gated": Repository({"a.gguf": b"a"}, gated=True),
    }
    with serving(repositories, monkeypatch, tmp_path / "hub", chunk=CHUNK) as hub:
        yield hub


def test_downloads_once_and_then_sends_no_requests(hub: Hub) -> None:
    path = fetch(REPO, "tiny.Q4_K_M.gguf")
    assert path.read_bytes() == MODEL
    asked = len(hub.asked)
    assert fetch(REPO, "tiny.Q4_K_M.gguf") == path
    assert len(hub.asked) == asked
    assert fetch(REPO, "deep/er/file.gguf").read_bytes() == b"deep"


def test_progress_rises_to_the_whole(hub: Hub) -> None:
    reports: list[tuple[str, int, int]] = []
    fetch(REPO, "tiny.Q4_K_M.gguf", progress=lambda *report: reports.append(report))
    counts = [done for _, done, _ in reports]
    assert counts == sorted(set(counts))
    assert (counts[0], counts[-1]) == (0, len(MODEL))
    assert len(counts) > 10
    assert {(what, total) for what, _, total in reports} == {("tiny.Q4_K_M.gguf", len(MODEL))}


def test_shows_no_progress_bar_of_its_own(hub: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    fetch(REPO, "tiny.Q4_K_M.gguf", progress=lambda *report: None)
    fetch(REPO, "tiny.Q8_0.gguf")
    assert capfd.readouterr() == ("", "")


def test_a_broken_download_is_resumed(hub: Hub) -> None:
    hub.trouble.cuts = [10 * CHUNK + 5]
    reports: list[int] = []
    path = fetch(REPO, "tiny.Q4_K_M.gguf", progress=lambda what, done, total: reports.append(done))
    assert path.read_bytes() == MODEL
    assert [asked.range for asked in hub.downloads()] == [None, f"bytes={10 * CHUNK}-"]
    assert reports == sorted(reports)
    assert reports[-1] == len(MODEL)


def test_a_download_that_fails_leaves_nothing_behind_and_can_be_repeated(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if done > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(REPO, "tiny.Q4_K_M.gguf", progress=stop)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size >= CHUNK]
    assert fetch(REPO, "tiny.Q4_K_M.gguf").read_bytes() == MODEL


def test_revisions(hub: Hub) -> None:
    for repo, revision in ((f"{REPO}@{COMMIT}", None), (REPO, COMMIT), (f"{REPO}@main", "main")):
        assert fetch(repo, "tiny.Q8_0.gguf", revision=revision).read_bytes() == b"8"
    with pytest.raises(LoadError, match="no revision 'v9'") as caught:
        fetch(f"{REPO}@v9", "tiny.Q8_0.gguf")
    assert f"{hub.url}/{REPO}/commits" in str(caught.value.hint)
    with pytest.raises(UsageError, match="two revisions"):
        fetch(f"{REPO}@main", "tiny.Q8_0.gguf", revision=COMMIT)
    with pytest.raises(UsageError, match="after the @"):
        fetch(f"{REPO}@", "tiny.Q8_0.gguf")


def test_the_token_is_sent_only_when_given(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_from_the_environment")
    fetch(REPO, "tiny.Q8_0.gguf")
    assert {asked.authorization for asked in hub.asked} == {None}
    hub.asked.clear()
    fetch(REPO, "tokenizer.json", token="hf_given")
    assert {asked.authorization for asked in hub.asked} == {"Bearer hf_given"}


def test_private_and_gated_with_the_right_token(hub: Hub) -> None:
    for repo in ("secret/private", "meta/gated"):
        assert fetch(repo, "a.gguf", token="hf_let_me_in").read_bytes() == b"a"


@pytest.mark.parametrize(
    ("repo", "token", "message", "hint"),
    [
        ("meta/gated", None, "is gated", "accept its licence at .*/meta/gated, then give a token with --token-source"),
        ("meta/gated", "hf_other", "is gated", "the account that was let in"),
        ("secret/private", None, "no repository secret/private", "--token-source"),
        ("secret/private", "hf_other", "no repository secret/private", "account may not see it"),
        ("no/such", None, "no repository no/such", "check the name"),
    ],
)
def test_refusals_have_a_hint(hub: Hub, repo: str, token: str | None, message: str, hint: str) -> None:
    with pytest.raises(LoadError, match=message) as caught:
        fetch(repo, "a.gguf", token=token)
    assert re.search(hint, str(caught.value.hint))
    assert "hf_other" not in f"{caught.value} {caught.value.hint}"


def test_a_missing_file_names_similar_ones(hub: Hub) -> None:
    with pytest.raises(NotInRepositoryError, match=r"has no file 'tiny\.q4_k_s\.gguf'") as caught:
        fetch(REPO, "tiny.q4_k_s.gguf")
    assert "tiny.Q4_K_M.gguf" in str(caught.value.hint)
    with pytest.raises(NotInRepositoryError) as caught:
        fetch(REPO, "something-else-altogether.gguf")
    assert "tiny.Q8_0.gguf" in str(caught.value.hint)


def test_optional_files(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fetch_optional(REPO, "generation_config.json") is None
    hub.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch_optional(REPO, "generation_config.json") is None
    assert hub.asked == []
    with pytest.raises(LoadError, match="HF_HUB_OFFLINE"):
        fetch_optional(REPO, "tokenizer.json")


def test_companions_in_a_folder_and_in_a_repository(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("[]")
    assert companion(str(tmp_path), "tokenizer.json") == tmp_path / "tokenizer.json"
    assert companion(str(tmp_path), "generation_config.json") is None
    found = companion(REPO, "tokenizer.json")
    assert found is not None
    assert found.read_bytes() == b"{}"
    assert companion(REPO, "generation_config.json") is None
    for place in (str(tmp_path / "gone"), "./gone", str(tmp_path / "tokenizer.json")):
        with pytest.raises(LoadError, match="no such folder"):
            companion(place, "tokenizer.json")


def test_offline_uses_the_cache_and_names_what_it_lacks(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fetch(REPO, "tiny.Q8_0.gguf")
    hub.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch(REPO, "tiny.Q8_0.gguf") == path
    with pytest.raises(LoadError, match=rf"{REPO}: tiny.Q4_K_M.gguf is not in the cache") as caught:
        fetch(REPO, "tiny.Q4_K_M.gguf")
    assert "-f PATH" in str(caught.value.hint)
    assert hub.asked == []


def test_no_network_is_reported_at_once(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fetch(REPO, "tiny.Q8_0.gguf")
    nowhere = "http://127.0.0.1:9"
    monkeypatch.setattr(constants, "ENDPOINT", nowhere)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", nowhere + "/{repo_id}/resolve/{revision}/{filename}")
    assert fetch(REPO, "tiny.Q8_0.gguf") == path
    naps: list[float] = []
    monkeypatch.setattr(time, "sleep", naps.append)  # between attempts
    with pytest.raises(LoadError, match=r"127\.0\.0\.1:9 failed.*refused"):
        fetch(REPO, "tiny.Q4_K_M.gguf")
    assert naps == []


def test_a_hub_in_trouble_is_reported_at_once(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.trouble.status = 503
    naps: list[float] = []
    monkeypatch.setattr(time, "sleep", naps.append)  # between attempts
    with pytest.raises(LoadError, match="answers 503"):
        fetch(REPO, "tiny.Q8_0.gguf")
    assert naps == []


def test_a_full_disk_is_seen_before_the_download(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=1000, used=0, free=1000))
    with pytest.raises(LoadError, match=r"takes 0\.3 MB.* has 0\.0 MB left") as caught:
        fetch(REPO, "tiny.Q4_K_M.gguf")
    assert "HF_HOME" in str(caught.value.hint)
    assert hub.downloads() == []


@pytest.mark.parametrize(
    ("error", "message", "hint"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full", "HF_HOME"),
        (PermissionError(errno.EACCES, "Permission denied", "blobs"), "cannot write blobs", "HF_HOME"),
        (OSError("Consistency check failed: 3 bytes\nand more"), "failed: Consistency check failed: 3 bytes$", "again"),
        (RuntimeError("Data processing error"), "failed: Data processing error$", "again"),
    ],
)
def test_failures_during_a_download_are_named(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str, hint: str
) -> None:
    def broken(*args: object, **options: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", broken)
    with pytest.raises(LoadError, match=message) as caught:
        fetch(REPO, "tiny.Q8_0.gguf")
    assert hint in str(caught.value.hint)


def test_a_cache_that_cannot_be_made(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in-the-way").write_text("")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "in-the-way"))
    with pytest.raises(LoadError, match="in-the-way"):
        fetch(REPO, "tiny.Q8_0.gguf")


@pytest.mark.parametrize("name", ["../up.gguf", "/etc/passwd", "a//b", "", "a\\..\\b", "."])
def test_names_that_leave_the_repository_are_refused(hub: Hub, name: str) -> None:
    with pytest.raises(LoadError, match="cannot be the name of a file"):
        fetch(REPO, name)
    assert hub.asked == []


@pytest.mark.parametrize("repo", ["a/b/c", "two words", "", "owner/..", f"{REPO}@../up"])
def test_names_that_are_no_repository_are_refused(hub: Hub, repo: str) -> None:
    with pytest.raises(LoadError, match="cannot be the name of"):
        fetch(repo, "a.gguf")
    assert hub.asked == []


def test_the_environment_of_a_process_leads_it_to_the_hub(hub: Hub, tmp_path: Path) -> None:
    program = f"from mistralrs.loading.hub_files import fetch; print(fetch({REPO!r}, 'tiny.Q8_0.gguf').read_text())"
    environment = {**os.environ, **hub.env(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "8\n"
    assert len(hub.downloads()) == 1
    offline = {**environment, "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    again = subprocess.run([sys.executable, "-c", program], env=offline, capture_output=True, text=True, check=True)
    assert again.stdout == "8\n"
