"""A real server on which adapters are loaded, replaced and unloaded while requests with and without them run, and which
is started again and again with the same KV on disk: every answer must have the bits of its solo run.

    python -m tests.soak.adapter_schedules [--count 500] [--report FILE]

The exit code is 1 if anything is found.
"""

from __future__ import annotations

import argparse
import json
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
from mistralrs.engine.config import SamplingParams
from mistralrs.engine.events import Delta
from tests.adapters.adapter_folders import AdapterFolders, write_adapter_folders
from tests.adapters.peft_adapters import write_adapter
from tests.parity.running import random_tokens
from tests.server.adapter_server import AdapterServer
from tests.tiny import TOKENIZER_SIZE

MAX_TOKENS = 12
LATE = "late"
"""An aLoRA."""
INVOCATION = (9, 3)
LOADED = ("a", "b", LATE)
CONTENTS = ("a", "b", "c", "d")
CHANGING = "moving"
"""The name that means one content after the other."""
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
RESTART_EVERY = 50
"""Schedules after which the server is started anew."""

Answer = tuple[str, list[float]]
"""Text and log-probabilities."""


def write_schedule_folders(path: Path) -> AdapterFolders:
    """Writes a tiny base and all adapters below ``path``."""
    found = write_adapter_folders(path)
    everywhere: dict[str, Any] = {"r": 8, "target_modules": "all-linear"}
    for seed, name in enumerate(("c", "d"), start=5):
        write_adapter(found.root / name, found.base, seed=seed, deviation=0.5, settings=everywhere)
    late = {**everywhere, "alora_invocation_tokens": list(INVOCATION)}
    write_adapter(found.root / LATE, found.base, seed=9, deviation=0.5, settings=late)
    return found


@dataclass
class Alone:
    """Answers of requests that run alone, without drafts and without a prefix cache."""

    model: LocalModel
    known: dict[tuple[object, ...], Answer] = field(default_factory=dict)

    def answer(self, prompt: tuple[int, ...], adapters: Mapping[str, float]) -> Answer:
        key = (prompt, tuple(sorted(adapters.items())))
        if key not in self.known:
            sampling = SamplingParams(temperature=0, max_tokens=MAX_TOKENS, ignore_eos=True, logprobs=1)
            whole = Delta.joined(
                event for event in self.model.complete(prompt, sampling, adapters=adapters) if isinstance(event, Delta)
            )
            self.known[key] = whole.text, [logprob.logprob for logprob in whole.logprobs]
        return self.known[key]


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


@dataclass(frozen=True)
class Asked:
    prompt: tuple[int, ...]
    fields: Mapping[str, Any]
    adapters: Mapping[str, float]
    stream: bool


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
    starts: int = 1
    findings: list[str] = field(default_factory=list)

    def report(self) -> str:
        return "\n".join(
            [
                "# Adapters that change while requests run",
                "",
                f"{self.schedules} schedules, {self.starts} starts of the server, {self.changes} changes of adapters;",
                f"{self.compared} answers compared, {self.moved} of them with the adapter that changes;",
                f"{self.refused} requests refused: the adapter was not there, or had no slot.",
                "",
                "Findings: " + ("none" if not self.findings else ""),
                *(f"- {finding}" for finding in self.findings),
                "",
            ]
        )


def prompts(random: Random) -> list[tuple[int, ...]]:
    """Prompts that share beginnings of whole blocks; some invoke the aLoRA."""
    stems = [random_tokens(TOKENIZER_SIZE, 48, seed=seed) for seed in (1, 2)]
    found = []
    for _ in range(8):
        own = random_tokens(TOKENIZER_SIZE, random.randint(1, 20), seed=random.randint(3, 6))
        invoked = INVOCATION if random.random() < 0.5 else ()
        found.append((*random.choice(stems)[: random.choice((16, 33, 48))], *invoked, *own))
    return found


def ask(client: httpx.Client, asked: Asked) -> tuple[int, Answer, int | None]:
    """The status, answer and generation of a request."""
    body = {
        "prompt": list(asked.prompt), "temperature": 0, "max_tokens": MAX_TOKENS, "ignore_eos": True, "logprobs": 1,
        "stream": asked.stream, **asked.fields,
    }  # fmt: skip
    response = client.post("/v1/completions", json=body)
    if not asked.stream:
        parts = [response.json()]
    else:
        lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
        parts = [json.loads(line) for line in lines or [response.text] if line != "[DONE]"]
    errors = [part["error"]["code"] for part in parts if "error" in part]
    if errors:
        statuses = {"adapter_not_found": 404, "model_not_found": 404, "adapter_slots_full": 429}
        return statuses.get(errors[0], 500), ("", []), None
    choices = [choice for part in parts for choice in part["choices"]]
    logprobs = [value for choice in choices if choice["logprobs"] for value in choice["logprobs"]["token_logprobs"]]
    [generation] = {part["adapter_generation"] for part in parts if "adapter_generation" in part} or {None}
    return response.status_code, ("".join(choice["text"] for choice in choices), logprobs), generation


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


def run_schedules(root: str, alone: Alone, seeds: range, result: Result) -> None:
    """Runs one schedule for each seed on the server at ``root``, which was just started."""
    contents = Contents()
    with httpx.Client(base_url=root, timeout=60) as client, ThreadPoolExecutor(8) as pool:
        for seed in seeds:
            random = Random(seed)
            wanted = []
            for prompt in prompts(random):
                if random.random() < 0.4:
                    change(client, random, contents)
                    result.changes += 1
                fields, adapters = choice(random)
                asked = Asked(prompt, fields, adapters, random.random() < 0.5)
                wanted.append((asked, pool.submit(ask, client, asked)))
            change(client, random, contents)
            result.changes += 1
            for asked, answered in wanted:
                _compare(f"schedule {seed}", asked, answered.result(), alone, contents, result)
            result.schedules += 1


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
    if answer != alone.answer(asked.prompt, acting):
        result.findings.append(f"{where}: {asked} has another answer than alone")


def drill(folder: Path, *, count: int) -> Result:
    folders, result = write_schedule_folders(folder), Result(starts=0)
    with running_alone(folders) as alone:
        for first in range(0, count, RESTART_EVERY):
            with AdapterServer(folders, folder / "kv", LOADED) as server:
                result.starts += 1
                seeds = range(first, min(first + RESTART_EVERY, count))
                run_schedules(server.root, alone, seeds, result)
                if not server.until_quiet(10):
                    result.findings.append("requests stayed")
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = drill(Path(folder), count=args.count)
    print(result.report())
    if args.report:
        args.report.write_text(result.report())
    return 1 if result.findings else 0


if __name__ == "__main__":
    sys.exit(main())
