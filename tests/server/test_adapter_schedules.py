"""A real server on which adapters are loaded, replaced and unloaded while requests with and without them run: every
answer has the bits of its solo run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from mistralrs.api.adapter_options import AdapterOptions, AdapterSource
from mistralrs.api.local_model import LoadOptions, LocalModel, ModelSource
from mistralrs.engine.config import SamplingParams
from mistralrs.engine.events import Delta
from tests.adapters.adapter_folders import AdapterFolders, write_adapter_folders
from tests.adapters.peft_adapters import write_adapter
from tests.parity.running import random_tokens
from tests.server.adapter_server import SLOTS, AdapterServer
from tests.tiny import TOKENIZER_SIZE

pytestmark = pytest.mark.native

SCHEDULES = 30
MAX_TOKENS = 12
CONTENTS = ("a", "b", "c", "d")
CHANGING = "moving"
"""The name that means one content after the other."""
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> AdapterFolders:
    found = write_adapter_folders(tmp_path_factory.mktemp("schedules"))
    for seed, name in enumerate(CONTENTS[2:], start=5):
        write_adapter(
            found.root / name, found.base, seed=seed, deviation=0.5, settings={"r": 8, "target_modules": "all-linear"}
        )
    return found


@pytest.fixture(scope="module")
def server(folders: AdapterFolders, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdapterServer]:
    with AdapterServer(folders, tmp_path_factory.mktemp("kv")) as server:
        yield server


@dataclass
class Alone:
    """Answers of requests that run alone, without drafts and without a prefix cache."""

    model: LocalModel
    known: dict[tuple[object, ...], tuple[str, list[float]]] = field(default_factory=dict)

    def answer(self, prompt: tuple[int, ...], adapters: Mapping[str, float]) -> tuple[str, list[float]]:
        key = (prompt, tuple(sorted(adapters.items())))
        if key not in self.known:
            sampling = SamplingParams(temperature=0, max_tokens=MAX_TOKENS, ignore_eos=True, logprobs=1)
            whole = Delta.joined(
                event for event in self.model.complete(prompt, sampling, adapters=adapters) if isinstance(event, Delta)
            )
            self.known[key] = whole.text, [logprob.logprob for logprob in whole.logprobs]
        return self.known[key]


@pytest.fixture(scope="module")
def alone(folders: AdapterFolders) -> Iterator[Alone]:
    sources = tuple(AdapterSource(name, str(folders.root / name)) for name in CONTENTS)
    options = LoadOptions(threads=1, prefix_cache_n=0, max_draft=0, adapters=AdapterOptions(sources))
    with LocalModel.load(ModelSource(None, folders.base, None, None), options) as model:
        yield Alone(model)


@dataclass
class Contents:
    """What the changing name has meant since which generation; None: nothing."""

    since: list[tuple[int, str | None]]

    def at(self, generation: int) -> str | None:
        return [content for start, content in self.since if start <= generation][-1]


@dataclass(frozen=True)
class Asked:
    prompt: tuple[int, ...]
    fields: Mapping[str, Any]
    adapters: Mapping[str, float]
    stream: bool


def prompts(random: Random) -> list[tuple[int, ...]]:
    """Prompts that share beginnings of whole blocks."""
    stems = [random_tokens(TOKENIZER_SIZE, 48, seed=seed) for seed in (1, 2)]
    found = []
    for _ in range(8):
        own = random_tokens(TOKENIZER_SIZE, random.randint(1, 20), seed=random.randint(3, 6))
        found.append((*random.choice(stems)[: random.choice((16, 33, 48))], *own))
    return found


def ask(client: httpx.Client, asked: Asked) -> tuple[int, str, list[float], int | None]:
    """The status, text, log-probabilities and generation of an answer."""
    body = {
        "prompt": list(asked.prompt), "temperature": 0, "max_tokens": MAX_TOKENS, "ignore_eos": True, "logprobs": 1,
        "stream": asked.stream, **asked.fields,
    }  # fmt: skip
    response = client.post("/v1/completions", json=body)
    if not asked.stream:
        parts = [response.json()]
    else:
        lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
        parts = [json.loads(line) for line in lines if line != "[DONE]"]
    errors = [part["error"]["code"] for part in parts if "error" in part]
    if errors:
        assert errors in (["adapter_not_found"], ["model_not_found"], ["adapter_slots_full"]), parts
        return 404 if errors != ["adapter_slots_full"] else 429, "", [], None
    choices = [choice for part in parts for choice in part["choices"]]
    logprobs = [value for choice in choices if choice["logprobs"] for value in choice["logprobs"]["token_logprobs"]]
    [generation] = {part["adapter_generation"] for part in parts if "adapter_generation" in part} or {None}
    return response.status_code, "".join(choice["text"] for choice in choices), logprobs, generation


def choice(random: Random) -> tuple[Mapping[str, Any], Mapping[str, float]]:
    """The fields of a request, and what they choose."""
    choices: list[tuple[Mapping[str, Any], Mapping[str, float]]] = [
        ({}, {}),
        ({"adapter": "none"}, {}),
        ({"model": "a"}, {"a": 1.0}),
        ({"adapter_id": "b"}, {"b": 1.0}),
        ({"adapters": {"a": 0.5, "b": -1.5}}, {"a": 0.5, "b": -1.5}),
        ({"lora": [{"id": 0, "scale": 0.5}]}, {"a": 0.5}),
        ({"model": CHANGING}, {CHANGING: 1.0}),
        ({"adapters": {CHANGING: 0.5, "a": 1.0}}, {CHANGING: 0.5, "a": 1.0}),
    ]
    return random.choice(choices)


def change(client: httpx.Client, random: Random, contents: Contents) -> None:
    """Loads, replaces or unloads the changing adapter."""
    now = contents.since[-1][1]
    if now is not None and random.random() < 0.3:
        response = client.post(UNLOAD, json={"lora_name": CHANGING})
        content = None
    else:
        content = random.choice(CONTENTS)
        body = {"lora_name": CHANGING, "lora_path": content, "load_inplace": True}
        response = client.post(LOAD, json=body)
    assert response.status_code == 200, response.text
    contents.since.append((response.json()["generation"], content))


def test_every_answer_has_the_bits_of_its_solo_run(server: AdapterServer, alone: Alone) -> None:
    with httpx.Client(base_url=server.root, timeout=60) as client, ThreadPoolExecutor(8) as pool:
        contents = Contents([(0, None)])
        num_adapted = num_refused = 0
        for seed in range(SCHEDULES):
            random = Random(seed)
            wanted = []
            for prompt in prompts(random):
                if random.random() < 0.4:
                    change(client, random, contents)
                fields, adapters = choice(random)
                asked = Asked(prompt, fields, adapters, random.random() < 0.5)
                wanted.append((asked, pool.submit(ask, client, asked)))
            change(client, random, contents)
            for asked, answer in wanted:
                status, text, logprobs, generation = answer.result()
                if status == 404:
                    assert CHANGING in asked.adapters
                if status != 200:
                    num_refused += 1
                    continue
                acting = dict(asked.adapters)
                assert (generation is None) == (not acting)
                if CHANGING in acting:
                    assert generation is not None
                    content = contents.at(generation)
                    assert content is not None
                    weight = acting.pop(CHANGING)
                    acting[content] = acting.get(content, 0.0) + weight
                    if len(acting) < len(asked.adapters):  # the content is in the mix under two names
                        continue
                    num_adapted += 1
                assert (text, logprobs) == alone.answer(asked.prompt, acting), (seed, asked)
        assert num_adapted > SCHEDULES
        assert num_refused < SCHEDULES * 2  # of eight in each
        print(num_adapted, num_refused)
    answers = [
        alone.answer(prompts(Random(0))[0], each) for each in ({}, {"a": 1.0}, {"b": 1.0}, {"c": 1.0}, {"d": 1.0})
    ]
    assert len({text for text, _ in answers}) == len(answers)
    assert server.until_quiet(10)
    status, listed = server.ask("GET", "/v1/lora_adapters")
    assert (status, listed["max_adapters"]) == (200, SLOTS)


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
        assert running.result()[:3] == (200, *alone.answer(prompt, {"a": 1.0}))
    assert "new" not in [each["id"] for each in server.ask("GET", "/v1/models")[1]["data"]]


def test_the_default_of_later_requests(server: AdapterServer, alone: Alone) -> None:
    prompt = prompts(Random(11))[0]
    listed = server.ask("GET", "/lora-adapters")[1]
    place = next(each["id"] for each in listed if each["name"] == "b")
    with httpx.Client(base_url=server.root, timeout=60) as client:
        try:
            assert server.ask("POST", "/lora-adapters", [{"id": place, "scale": 0.5}]) == (200, {"success": True})
            plain = ask(client, Asked(prompt, {}, {}, stream=False))
            assert plain[1:3] == alone.answer(prompt, {"b": 0.5})
        finally:
            assert server.ask("POST", "/lora-adapters", [])[0] == 200
        assert ask(client, Asked(prompt, {}, {}, stream=False))[1:3] == alone.answer(prompt, {})


def test_it_ends_in_an_orderly_way(folders: AdapterFolders, tmp_path: Path) -> None:
    with AdapterServer(folders, tmp_path) as server:
        assert server.stop() == 0
        assert "Adapters: a, b; active unless a request says otherwise: none\n" in server.said
