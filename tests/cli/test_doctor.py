"""``mistralrs doctor``: what it finds on this machine, and what it calls a problem."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import close_session, constants

from tests.cli.in_process import InProcess, running
from tests.hub import Hub, send_to


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[InProcess]:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with running(tmp_path, capsys, monkeypatch) as command:
        yield command


def examined(run: InProcess, *words: str) -> tuple[int, dict[str, Any]]:
    code, out, err = run("doctor", "--json", *words)
    assert err == ""
    record = json.loads(out)
    assert record["ok"] == (code == 0)
    return code, {each["name"]: each for each in record["findings"]}


def test_a_sound_machine(run: InProcess) -> None:
    code, found = examined(run)
    assert code == 0
    assert {"version", "processor", "memory", "kernels", "hub's cache", "chats", "kept KV", "hub"} <= set(found)
    assert found["hub"]["said"] == "not asked: doctor --hub asks it"
    assert found["chats"]["said"].startswith(f"none yet in {run.home}")
    assert list(run.home.iterdir()) == [], "a look makes nothing"
    code, out, _ = run("doctor")
    assert (code, out.splitlines()[-1]) == (0, "everything works")


def test_a_damaged_database_is_a_problem(run: InProcess) -> None:
    path = run.home / ".local" / "share" / "mistralrs" / "chats.db"
    path.parent.mkdir(parents=True)
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE chats (id)")
        database.execute("INSERT INTO chats VALUES (1)")
    database.close()
    assert examined(run)[1]["chats"]["said"].startswith("1 chat in")
    path.write_bytes(b"no database at all, but longer than a header of one" * 9)
    code, found = examined(run)
    assert (code, found["chats"]["state"]) == (1, "problem")
    assert run("doctor")[1].splitlines()[-1] == "1 problem"


def test_the_hub_is_asked_on_demand(run: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert examined(run, "--hub")[1]["hub"]["said"] == "not asked: HF_HUB_OFFLINE forbids it"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    with Hub({}) as hub:
        send_to(hub.url, monkeypatch)
        code, found = examined(run, "--hub")
        assert (code, found["hub"]["state"]) == (1, "problem")
        assert "answers with status" in found["hub"]["said"]
    send_to("http://127.0.0.1:9", monkeypatch)
    code, found = examined(run, "--hub")
    assert (code, "cannot be reached" in found["hub"]["said"]) == (1, True)
    close_session()


def test_missing_kernels_and_unread_variables_are_said(run: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MISTRALRS_THREAD", "2")
    code, out, _ = run("doctor")
    assert code == 0
    assert "did you mean MISTRALRS_THREADS?" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["doctor", "--api", "http://x", "--hub"], "--hub is about this machine"),
        (["--api-key", "k", "doctor"], "--api-key is for a server"),
        (["--model-name", "m", "doctor"], "--model-name is for a server"),
        (["doctor", "--api", "ftp://x"], "is no address of a server"),
        (["--threads", "2", "doctor"], "--threads needs"),
    ],
)
def test_refusals(run: InProcess, words: list[str], said: str) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert said in err
    assert "\nhint: " in err
