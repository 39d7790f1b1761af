"""Clients in environments of their own that ask for tool calls and for values of a schema.

The model is small: tool choices and schemas decide what it writes, and the tests say nothing of its reasons.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import CLIENTS, Observe
from tests.clients.test_openai_node import MODULES
from tests.serving import RunningServer

PROGRAMS = Path(__file__).parent / "programs"


def seen_by(name: str, observe: Observe, server: RunningServer, **environment: str) -> dict[str, Any]:
    """Returns the view of a Python package."""
    python = CLIENTS / name / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{name} is not installed; make clients installs it")
    program = PROGRAMS / f"ask_tools_{name.replace('-', '_')}.py"
    return observe(str(python), str(program), environment={"BASE_URL": server.base_url, **environment})


def assert_place(place: dict[str, Any]) -> None:
    assert place.keys() == {"city", "continent"}
    assert place["continent"] in ("Africa", "Europe")
    assert len(place["city"]) <= 20


@pytest.mark.parametrize("mode", ["tools", "strict", "schema"])
def test_instructor(mode: str, instructor_seen: dict[str, Any]) -> None:
    whole, streamed = instructor_seen[mode]
    assert_place(whole)
    assert streamed == whole


@pytest.fixture(scope="module")
def instructor_seen(observe: Observe, tool_server: RunningServer) -> dict[str, Any]:
    return seen_by("instructor", observe, tool_server)


def test_pydantic_ai(observe: Observe, tool_server: RunningServer) -> None:
    seen = seen_by("pydantic-ai", observe, tool_server)
    for kind in ("text", "tool", "schema"):
        whole, streamed = seen[kind]
        assert whole == streamed
        assert kind == "text" or assert_place(whole) is None
    assert seen["text"][0]
    assert seen["function"] in ("snow in Paris", "snow in Oslo")


def test_litellm(observe: Observe, tool_server: RunningServer) -> None:
    seen = seen_by("litellm", observe, tool_server, LITELLM_LOCAL_MODEL_COST_MAP="True")
    assert_place(json.loads(seen["schema"]))
    for choice in ("required", "named"):
        (name, arguments), streamed = seen[choice]
        assert streamed == [name, arguments]
        assert name == "place"
        assert_place(json.loads(arguments))


def test_the_npm_package(observe: Observe, tool_server: RunningServer) -> None:
    node = shutil.which("node")
    if node is None or not (MODULES / "zod").is_dir():
        pytest.skip("node or the npm packages openai and zod are not installed; make clients installs the packages")
    environment = {"NODE_PATH": str(MODULES), "BASE_URL": tool_server.base_url}
    seen = observe(node, str(PROGRAMS / "ask_tools_openai.js"), environment=environment)
    whole, streamed = seen["parsed"]
    assert_place(whole)
    assert streamed == whole
    for run in (seen["whole"], seen["streamed"]):
        assert run["roles"] == ["user", "assistant", "tool"]
        assert [call["city"] in ("Paris", "Oslo") for call in run["calls"]] == [True]
        assert run["result"] == "snow"
