"""A real server with adapters beside each other, which change while requests run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import httpx
import pytest

from tests.adapters.adapter_folders import AdapterFolders
from tests.server.adapter_server import SLOTS, AdapterServer
from tests.soak import adapter_schedules, xlora_schedules
from tests.soak.adapter_schedules import (
    CONTENTS,
    LATE,
    LOAD,
    LOADED,
    Result,
    run_schedules,
    running_alone,
    write_schedule_folders,
)
from tests.soak.faulty_servers import LORA_FAULTS, faulty
from tests.soak.solo_runs import INVOCATION, Alone, Asked, ask, prompts
from tests.soak.xlora_schedules import XLoraResult, run_xlora_schedules, serving, solo_xloras, write_xloras

pytestmark = pytest.mark.native

SCHEDULES, XLORA_SCHEDULES = 24, 6
"""Of those that `make soak` runs 500 of."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> AdapterFolders:
    return write_schedule_folders(tmp_path_factory.mktemp("schedules"))


@pytest.fixture(scope="module")
def server(folders: AdapterFolders, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdapterServer]:
    memory = adapter_schedules.SCARCE
    with AdapterServer(folders, tmp_path_factory.mktemp("kv"), LOADED, kv_memory=memory) as server:
        yield server


@pytest.fixture(scope="module")
def alone(folders: AdapterFolders) -> Iterator[Alone]:
    with running_alone(folders) as alone:
        yield alone


def test_every_answer_has_the_bits_of_its_solo_run(server: AdapterServer, alone: Alone) -> None:
    result = Result()
    run_schedules(server, alone, range(SCHEDULES), result)
    assert result.findings == []
    assert result.counted.missing == []
    assert result.schedules == SCHEDULES
    assert result.moved > SCHEDULES
    assert result.compared > SCHEDULES * 5  # of eight in each
    status, listed = server.ask("GET", "/v1/lora_adapters")
    assert (status, listed["max_adapters"]) == (200, SLOTS)
    invoked = next(prompt for prompt in prompts(Random(0)) if INVOCATION in itertools.pairwise(prompt))
    answers = [alone.answer(invoked, {name: 1.0} if name else {}) for name in (None, *CONTENTS, LATE)]
    assert len({answer.text for answer in answers}) == len(answers)


def test_a_broken_adapter_disturbs_nobody(server: AdapterServer, folders: AdapterFolders, alone: Alone) -> None:
    prompt = prompts(Random(9))[0]
    broken = folders.root / "broken"
    broken.mkdir()
    (broken / "adapter_config.json").write_bytes((folders.root / "a/adapter_config.json").read_bytes())
    weights = (folders.root / "a/adapter_model.safetensors").read_bytes()
    (broken / "adapter_model.safetensors").write_bytes(weights[: len(weights) // 2])
    with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=server.root, timeout=60) as client:
        running = pool.submit(ask, client, Asked(prompt, {"model": "a"}, {"a": 1.0}, stream=True))
        for path, status, code in (
            ("broken", 400, "adapter_not_loadable"),
            ("nowhere", 400, "adapter_not_loadable"),
            ("../base", 403, "adapter_path_forbidden"),
            ("/etc", 403, "adapter_path_forbidden"),
        ):
            answered, body = server.ask("POST", LOAD, {"lora_name": "new", "lora_path": path})
            assert (answered, body["error"]["code"]) == (status, code), body
        assert running.result()[:2] == (200, alone.answer(prompt, {"a": 1.0}))
    assert "new" not in [each["id"] for each in server.ask("GET", "/v1/models")[1]["data"]]


def test_the_default_of_later_requests(server: AdapterServer, alone: Alone) -> None:
    prompt = prompts(Random(11))[0]
    listed = server.ask("GET", "/lora-adapters")[1]
    place = next(each["id"] for each in listed if each["name"] == "b")
    with httpx.Client(base_url=server.root, timeout=60) as client:
        try:
            assert server.ask("POST", "/lora-adapters", [{"id": place, "scale": 0.5}]) == (200, {"success": True})
            plain = ask(client, Asked(prompt, {}, {}, stream=False))
            assert plain[1] == alone.answer(prompt, {"b": 0.5})
        finally:
            assert server.ask("POST", "/lora-adapters", [])[0] == 200
        assert ask(client, Asked(prompt, {}, {}, stream=False))[1] == alone.answer(prompt, {})


def test_it_ends_in_an_orderly_way(server: AdapterServer) -> None:
    assert server.stop() == 0
    [line] = [line for line in server.said if line.startswith("Adapters: ")]
    assert line.startswith("Adapters: a, b, late; active unless a request says otherwise: none; ")
    assert line.endswith(" KiB of memory\n")


def test_every_answer_of_an_xlora_has_the_bits_of_its_solo_run(tmp_path: Path) -> None:
    folders, result = write_xloras(tmp_path), XLoraResult()
    setting = xlora_schedules.SETTINGS[0]
    assert (setting.non_granular, setting.kv_memory) == (2, xlora_schedules.SCARCE)
    with solo_xloras(folders, [setting]) as alone, serving(folders, setting, tmp_path / "kv") as server:
        [solo] = alone.values()
        run_xlora_schedules(server, solo, range(XLORA_SCHEDULES), result, long_prompts=False)
    assert result.findings == []
    assert result.counted.preemptions > 0
    assert result.counted.prefix_hit_tokens > 0
    assert (result.schedules, result.compared + result.refused) == (XLORA_SCHEDULES, 11 * XLORA_SCHEDULES)
    assert result.refused > 0
    assert result.with_scalings > XLORA_SCHEDULES


def test_a_fault_is_found(folders: AdapterFolders, alone: Alone, tmp_path: Path) -> None:
    """One of those that `make soak` puts into servers on purpose."""
    result, fault = Result(), next(iter(LORA_FAULTS.values()))
    environment = faulty(tmp_path / "fault", fault)
    with AdapterServer(folders, tmp_path / "kv", LOADED, environment=environment) as server:
        run_schedules(server, alone, range(2), result)
    assert len(result.findings) > 3
