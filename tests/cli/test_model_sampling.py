"""Sampling defaults: the model's own, unless the user gave another value, wherever that stands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mistralrs.api.schemas.request_bodies import ChatCompletionBody
from mistralrs.api.serving.sampling_params import sampling_params
from mistralrs.engine.config import SamplingParams
from mistralrs_cli.app import main
from tests.api.served import served
from tests.cli.fake import load_fake
from tests.cli.in_process import InProcess, running

OWN = {"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.05, "xtc_probability": 0.5}


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[InProcess]:
    with running(tmp_path, capsys, monkeypatch) as command:
        model = tmp_path / "default.gguf"
        model.touch()
        monkeypatch.setenv("MISTRALRS_DEFAULT_MODEL", str(model))
        monkeypatch.setenv("FAKE_SAMPLING", json.dumps(OWN))
        yield command


def sampling(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main([*words, "--no-stdin", "--prompt", "sampling"], load=load_fake) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.usefixtures("run")
def test_the_models_own_are_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    found = sampling(capsys)
    assert {name: found[name] for name in OWN} == OWN
    assert (found["top_p"], found["frequency_penalty"]) == (0.1, 0.1), "the terminal's, where the model has none"


def test_what_the_user_gives_wins(
    run: InProcess, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run.configure("top-k = 5\n")
    monkeypatch.setenv("MISTRALRS_REPEAT_PENALTY", "1.5")
    found = sampling(capsys, "--temperature", "0.1")
    assert (found["temperature"], found["top_k"], found["repetition_penalty"]) == (0.1, 5, 1.5)
    assert found["xtc_probability"] == 0.5


def test_without_them_all_is_as_before(
    run: InProcess, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FAKE_SAMPLING")
    found = sampling(capsys)
    assert (found["temperature"], found["top_k"], found["top_p"]) == (0.1, 32, 0.1)
    out = run("help")[1]
    assert "[default: (the model's own, or 0.1)]" in " ".join(out.split())


def test_requests_to_a_server_have_them_too() -> None:
    model = served()
    model = replace(model, info=replace(model.info, sampling={"temperature": 0.6, "top_k": 20}))
    body = ChatCompletionBody.model_validate({"messages": [{"role": "user", "content": "x"}], "top_k": 7})
    found = sampling_params(body, SamplingParams(top_p=0.5), model, max_tokens=None, logprobs=None)
    assert (found.temperature, found.top_k, found.top_p) == (0.6, 7, 0.5)
