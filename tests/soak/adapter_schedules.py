"""A real server on which adapters are loaded, replaced and unloaded while requests with and without them run, and which
is started again and again with the same KV on disk: every answer must have the bits of its solo run. Three schedules of
ten are those of ``xlora_schedules``. Servers with faults show that the schedules find such.

    python -m tests.soak.adapter_schedules [--count 500] [--report FILE]

The exit code is 1 if anything is found, if a fault is not, or if nothing was preempted, reused or drafted.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx

from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.loaded_adapters.adapter_options import AdapterOptions, AdapterSource
from mistralrs.api.local_model import LocalModel
from tests.adapters.adapter_folders import AdapterFolders, write_adapter_folders
from tests.adapters.peft_adapters import write_adapter
from tests.server.adapter_server import AMPLE, AdapterServer
from tests.soak.faulty_servers import LORA_FAULTS, XLORA_FAULTS, faulty
from tests.soak.solo_runs import INVOCATION, Alone, Answer, Asked, Counted, ask, draw_length, prompts
from tests.soak.xlora_schedules import drill_xloras

LATE = "late"
"""An aLoRA."""
LOADED = ("a", "b", LATE)
CONTENTS = ("a", "b", "c", "d")
CHANGING = "moving"
"""The name that means one content after the other."""
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
SCARCE = "96K"
"""A KV cache of 12 blocks, so that sequences are preempted."""
RESTART_EVERY = 50
"""Schedules after which the server is started anew."""
SELF_TEST = 10
"""Schedules in which a fault must be found."""


def write_schedule_folders(path: Path) -> AdapterFolders:
    """Writes a tiny base and all adapters below ``path``."""
    found = write_adapter_folders(path)
    everywhere: dict[str, Any] = {"r": 8, "target_modules": "all-linear"}
    for seed, name in enumerate(("c", "d"), start=5):
        write_adapter(found.root / name, found.base, seed=seed, deviation=0.5, settings=everywhere)
    late = {**everywhere, "alora_invocation_tokens": list(INVOCATION)}
    write_adapter(found.root / LATE, found.base, seed=9, deviation=0.5, settings=late)
    return found


@contextmanager
def running_alone(folders: AdapterFolders) -> Iterator[Alone]:
    sources = tuple(AdapterSource(name, str(folders.root / name)) for name in (*CONTENTS, LATE))
    options = LoadOptions(threads=1, prefix_cache_n=0, max_draft=0, adapters=AdapterOptions(sources))
    with LocalModel.load(ModelSource(None, folders.base, None, None), options) as model:
        yield Alone(model)


@dataclass
class Contents:
    """What the changing name has meant since which generation; None: nothing."""

    since: list[tuple[int, str | None]] = field(default_factory=lambda: [(0, None)])

    def at(self, generation: int) -> str | None:
        return [content for start, content in self.since if start <= generation][-1]


@dataclass
class Result:
    schedules: int = 0
    compared: int = 0
    """Answers that were compared."""
    moved: int = 0
    """Those of the changing adapter."""
    refused: int = 0
    """Requests for an adapter that was not there, or had no slot."""
    changes: int = 0
    starts: int = 0
    counted: Counted = field(default_factory=Counted)
    findings: list[str] = field(default_factory=list)

    def report(self) -> str:
        return "\n".join(
            [
                "# Adapters that change while requests run",
                "",
                f"{self.schedules} schedules, {self.starts} starts of the server, {self.changes} changes of adapters;",
                f"{self.compared} answers compared, {self.moved} of them with the adapter that changes;",
                f"{self.refused} requests refused: the adapter was not there, or had no slot.",
                f"Counted by the servers: {self.counted}.",
                "",
                "Findings: " + ("none" if not self.findings else ""),
                *(f"- {finding}" for finding in self.findings),
                "",
            ]
        )


def choice(random: Random) -> tuple[Mapping[str, Any], Mapping[str, float]]:
    """The fields of a request, and what they choose."""
    choices: list[tuple[Mapping[str, Any], Mapping[str, float]]] = [
        ({}, {}),
        ({"adapter": "none"}, {}),
        ({"model": "a"}, {"a": 1.0}),
        ({"adapter_id": "b"}, {"b": 1.0}),
        ({"adapters": {"a": 0.5, "b": -1.5}}, {"a": 0.5, "b": -1.5}),
        ({"lora": [{"id": 0, "scale": 0.5}]}, {"a": 0.5}),
        ({"adapter": LATE}, {LATE: 1.0}),
        ({"adapters": {LATE: 1, "a": 0.5}}, {LATE: 1.0, "a": 0.5}),
        ({"model": CHANGING}, {CHANGING: 1.0}),
        ({"model": CHANGING}, {CHANGING: 1.0}),
        ({"adapters": {CHANGING: 0.5, "a": 1.0}}, {CHANGING: 0.5, "a": 1.0}),
    ]
    return random.choice(choices)


def change(client: httpx.Client, random: Random, contents: Contents) -> None:
    """Loads, replaces or unloads the changing adapter."""
    content: str | None = random.choice(CONTENTS)
    if contents.since[-1][1] is not None and random.random() < 0.3:
        content = None
        response = client.post(UNLOAD, json={"lora_name": CHANGING})
    else:
        body = {"lora_name": CHANGING, "lora_path": content, "load_inplace": True}
        response = client.post(LOAD, json=body)
    response.raise_for_status()
    contents.since.append((response.json()["generation"], content))


def run_schedules(server: AdapterServer, alone: Alone, seeds: range, result: Result) -> None:
    """Runs one schedule for each seed on a server that was just started."""
    contents = Contents()
    result.starts += 1
    with httpx.Client(base_url=server.root, timeout=60) as client, ThreadPoolExecutor(8) as pool:
        for seed in seeds:
            random = Random(seed)
            wanted = []
            for prompt in prompts(random):
                if random.random() < 0.4:
                    change(client, random, contents)
                    result.changes += 1
                fields, adapters = choice(random)
                asked = Asked(prompt, fields, adapters, random.random() < 0.5, draw_length(random))
                wanted.append((asked, pool.submit(ask, client, asked)))
            change(client, random, contents)
            result.changes += 1
            for asked, answered in wanted:
                _compare(f"schedule {seed}", asked, answered.result(), alone, contents, result)
            result.schedules += 1
    if not server.until_quiet(10):
        result.findings.append("requests stayed")
    result.counted.add(server)


def _compare(
    where: str,
    asked: Asked,
    answered: tuple[int, Answer, int | None],
    alone: Alone,
    contents: Contents,
    result: Result,
) -> None:
    status, answer, generation = answered
    if status in (404, 429):
        result.refused += 1
        if status == 404 and CHANGING not in asked.adapters:
            result.findings.append(f"{where}: {asked} was refused")
        return
    acting = dict(asked.adapters)
    weight = acting.pop(CHANGING, None)
    if status != 200 or (generation is None) != (not asked.adapters):
        result.findings.append(f"{where}: {asked} has status {status} and generation {generation}")
        return
    if weight is not None:
        content = contents.at(generation or 0)
        if content is None or content in acting:  # in the mix under two names, whose sum nobody has computed
            return
        acting[content] = weight
        result.moved += 1
    result.compared += 1
    if answer != alone.answer(asked.prompt, acting, max_tokens=asked.max_tokens):
        result.findings.append(f"{where}: {asked} has another answer than alone")


def drill(
    folder: Path, *, count: int, restart_every: int = RESTART_EVERY, environment: Mapping[str, str] | None = None
) -> Result:
    """Runs ``count`` schedules, ``restart_every`` on each start of the server; every other start has little memory."""
    folders, result = write_schedule_folders(folder), Result()
    with running_alone(folders) as alone:
        for number, first in enumerate(range(0, count, restart_every)):
            memory = AMPLE if number % 2 else SCARCE
            with AdapterServer(folders, folder / "kv", LOADED, kv_memory=memory, environment=environment) as server:
                run_schedules(server, alone, range(first, min(first + restart_every, count)), result)
    return result


def found_faults(folder: Path) -> dict[str, int]:
    """Returns for each fault how many answers of servers with it differ from their solo runs."""
    found = {}
    for number, (name, fault) in enumerate([*LORA_FAULTS.items(), *XLORA_FAULTS.items()]):
        runs = drill if name in LORA_FAULTS else drill_xloras
        environment = faulty(folder / f"fault-{number}", fault)
        result = runs(
            folder / f"drill-{number}", count=SELF_TEST, restart_every=SELF_TEST // 2, environment=environment
        )
        found[name] = len(result.findings)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    num_xlora = args.count * 3 // 10
    with tempfile.TemporaryDirectory() as folder:
        result = drill(Path(folder, "lora"), count=args.count - num_xlora)
        xlora = drill_xloras(Path(folder, "xlora"), count=num_xlora)
        faults = found_faults(Path(folder, "faults"))
    lines = [f"- {name}: {number} answers differ" for name, number in faults.items()]
    report = "\n".join([result.report(), xlora.report(), "## Faults on purpose", "", *lines, ""])
    print(report)
    if args.report:
        args.report.write_text(report)
    missing = [*result.counted.missing, *xlora.counted.missing, *(name for name, found in faults.items() if not found)]
    if missing:
        print(f"not seen: {', '.join(missing)}", file=sys.stderr)
    return 1 if result.findings or xlora.findings or missing else 0


if __name__ == "__main__":
    sys.exit(main())
