"""One server for all clients, and the environments of clients that conflict with this project's packages."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.serving import ROOT, RunningServer

if TYPE_CHECKING:
    from tests.server.adapter_server import AdapterServer

KEY = "sk-test-of-the-clients"
HEADERS = {"Authorization": f"Bearer {KEY}"}
CLIENTS = Path(os.environ.get("MISTRALRS_CLIENTS", ROOT / ".clients"))
"""The environments of clients that conflict with this one; `make clients` makes them."""
RUN_S = 120.0

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
"""The default model's greedy answer."""
ADAPTED = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}
"""Fields with which the answers of adapters are compared."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts this folder's tests into one group; the hook gets the tests of other folders too."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.clients)


@pytest.fixture(scope="session")
def server(default_model: Path) -> Iterator[RunningServer]:
    """Serves the default model to clients with the key. At the end no request is under way, and it ends in order."""
    environment = {"MISTRALRS_DEFAULT_MODEL": str(default_model)}
    with RunningServer("--api-key", KEY, environment=environment) as process:
        yield process
        assert process.until_quiet(20, headers=HEADERS)
        assert process.stop() == 0


@pytest.fixture(scope="session")
def tool_server(default_model: Path) -> Iterator[RunningServer]:
    """Serves the default model with a chat template that shows it tools, to clients with any key."""
    environment = {"MISTRALRS_DEFAULT_MODEL": str(default_model)}
    with RunningServer("--chat-template", "hermes", environment=environment) as process:
        yield process
        assert process.until_quiet(20)
        assert process.stop() == 0


@pytest.fixture(scope="session")
def model(server: RunningServer) -> str:
    """The served model's id."""
    status, found = server.ask("GET", "/v1/models", headers=HEADERS)
    assert status == 200
    name: str = found["data"][0]["id"]
    return name


@pytest.fixture(scope="session")
def adapter_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdapterServer]:
    """Serves a tiny Llama, `tiny`, with the adapters `a` and `b`, to clients with any key."""
    pytest.importorskip("peft", reason="peft makes the adapters")
    from tests.adapters.adapter_folders import write_adapter_folders
    from tests.server.adapter_server import AdapterServer

    folder = tmp_path_factory.mktemp("adapters")
    with AdapterServer(write_adapter_folders(folder), folder / "kv", ("a", "b")) as server:
        yield server


@pytest.fixture(scope="session")
def adapted(adapter_server: AdapterServer) -> dict[str, str]:
    """The answer of the base and of each adapter to ``QUESTION``, by the name of the model; no two are equal.

    Asked for without a client, and by the field ``adapter``, not by the model's name.
    """
    found = {}
    for name, adapter in {"tiny": "none", "a": "a", "b": "b"}.items():
        body = {"model": "tiny", "adapter": adapter, "messages": [{"role": "user", "content": QUESTION}], **ADAPTED}
        status, answer = adapter_server.ask("POST", "/v1/chat/completions", body)
        assert status == 200
        found[name] = answer["choices"][0]["message"]["content"]
    assert len(set(found.values())) == 3
    return found


Observe = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def observe(server: RunningServer, model: str) -> Observe:
    """Runs a program of a client outside of this interpreter, and returns the JSON object that it prints."""

    def run(*command: str, environment: Mapping[str, str]) -> dict[str, Any]:
        told = {"BASE_URL": server.base_url, "API_KEY": KEY, "MODEL": model, "QUESTION": QUESTION}
        done = subprocess.run(
            command, env={**os.environ, **told, **environment}, capture_output=True, text=True, timeout=RUN_S
        )
        assert done.returncode == 0, done.stderr
        seen: dict[str, Any] = json.loads(done.stdout)
        return seen

    return run
