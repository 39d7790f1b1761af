"""``--plugin``: functions of a file take part in the requests that name them, and in no others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.local_model import LocalModel
from mistralrs.api.plugin_file import load_plugin
from mistralrs.errors import LoadError, MistralrsError, UsageError
from tests.serving import ROOT, RunningServer

pytestmark = pytest.mark.native

PLUGIN = """
from dataclasses import dataclass

import numpy


@dataclass
class Only:
    token: int

    def __call__(self, tokens, logits):
        kept = logits[self.token]
        logits[:] = -numpy.inf
        logits[self.token] = kept


def broken(tokens, logits):
    raise KeyError("mine")


LOGITS_PROCESSORS = {"seven": Only(7), "broken": broken}
STOPPING_RULES = {"three": lambda tokens: tokens[-3:] == (7, 7, 7)}
"""
ASK: dict[str, Any] = {"prompt": [5, 6, 8], "max_tokens": 6, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def server(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    plugin = tmp_path_factory.mktemp("plugin") / "hooks.py"
    plugin.write_text(PLUGIN, encoding="utf-8")
    with RunningServer("--plugin", str(plugin), "auto", str(tiny_llama)) as process:
        yield process


def ask(server: RunningServer, **fields: Any) -> tuple[int, Any]:
    return server.ask("POST", "/v1/completions", {**ASK, **fields})


def test_named_functions_act_on_their_requests_alone(server: RunningServer) -> None:
    _, spelled = server.ask("POST", "/detokenize", {"tokens": [7]})
    _, before = ask(server)
    status, answer = ask(server, logits_processors=["seven"])
    assert status == 200, answer
    assert answer["choices"][0]["text"].replace(" ", "") == (spelled["content"] * 6).replace(" ", "")
    status, answer = ask(server, logits_processors=["seven"], stopping_rules=["three"], n=2)
    assert [each["finish_reason"] for each in answer["choices"]] == ["stop", "stop"]
    assert answer["usage"]["completion_tokens"] == 2 * 3
    _, after = ask(server)
    assert after["choices"] == before["choices"]
    assert after["choices"][0]["text"] != answer["choices"][0]["text"]


def test_a_chat_names_them_too(server: RunningServer) -> None:
    body = {"messages": "Hi!", "max_tokens": 9, "logits_processors": ["seven"], "stopping_rules": ["three"]}
    status, answer = server.ask("POST", "/v1/chat/completions", body)
    assert (status, answer["usage"]["completion_tokens"]) == (200, 3), answer


def test_one_that_raises_fails_its_request_alone(server: RunningServer) -> None:
    status, answer = ask(server, logits_processors=["seven", "broken"])
    assert (status, answer["error"]["code"]) == (500, "hook_failed"), answer
    assert "the logits processor broken failed: KeyError: 'mine'" in answer["error"]["message"]
    assert ask(server)[0] == 200


@pytest.mark.parametrize("field", ["logits_processors", "stopping_rules"])
def test_unknown_names_are_refused(server: RunningServer, field: str) -> None:
    status, answer = ask(server, **{field: ["other"]})
    assert (status, answer["error"]["param"]) == (400, field)
    assert "'other', which is not there" in answer["error"]["message"]
    assert ask(server, **{field: "seven"})[0] == 400
    assert ask(server, **{field: []})[0] == 200


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        (None, UsageError, "is no file"),
        ("x = 3", UsageError, "names no hooks"),
        ("LOGITS_PROCESSORS = [print]", UsageError, "LOGITS_PROCESSORS of the plugin .* is no dict"),
        ('STOPPING_RULES = {"a": 3}', UsageError, "STOPPING_RULES .* has 'a', which names no function"),
        ("def", LoadError, "failed: SyntaxError"),
        ("import sys; sys.exit(0)", LoadError, "failed: SystemExit"),
    ],
)
def test_files_that_are_no_plugin(tmp_path: Path, text: str | None, error: type[MistralrsError], words: str) -> None:
    plugin = tmp_path / "hooks.py"
    if text is not None:
        plugin.write_text(text, encoding="utf-8")
    with pytest.raises(error, match=words):
        load_plugin(plugin)
    source = ModelSource(None, tmp_path / "none.gguf", None, None)  # it is read before the model is
    with pytest.raises(error, match=words):
        LocalModel.load(source, LoadOptions(plugin=plugin))


def test_the_plugin_of_the_guide_does_what_it_says(tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```python\n([^`]*^LOGITS_PROCESSORS.*?)^```", guide, re.DOTALL | re.MULTILINE)
    plugin = tmp_path / "hooks.py"
    plugin.write_text(text, encoding="utf-8")
    hooks = load_plugin(plugin)
    logits = np.zeros(32, dtype=np.float32)
    hooks.logits_processors["no_digits"]((1, 2), logits)
    assert [place for place, value in enumerate(logits) if value < 0] == list(range(15, 25))
    assert [hooks.stopping_rules["forty"](range(count)) for count in (39, 40)] == [False, True]
