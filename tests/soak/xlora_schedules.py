"""Servers with an X-LoRA, started again and again with the same KV on disk and another X-LoRA in the same folder: every
answer, and its scalings, must have the bits of its solo run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random

import httpx

from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.loaded_adapters.adapter_options import AdapterOptions
from mistralrs.api.local_model import LocalModel
from tests.adapters.xlora_files import axis_of, write_xlora
from tests.architectures import Variant, write_folder
from tests.parity.running import random_tokens
from tests.server.adapter_server import AMPLE, XLoraServer
from tests.soak.solo_runs import Alone, Asked, Counted, ask, draw_length, prompts
from tests.tiny import TOKENIZER_SIZE

LONG_PROMPT = 530
"""Tokens of a prompt that is prefilled in chunks, because a step has fewer."""
RESTART_EVERY = 10
"""Schedules after which the server is started anew, in the next setting."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How a server is started."""

    content: str
    """The X-LoRA that lies in the served folder then."""
    non_granular: int | None
    kv_memory: str
    keeps_kv: bool = True

    @property
    def has_room(self) -> bool:
        """Whether long prompts fit into the KV cache."""
        return self.kv_memory == AMPLE


SCARCE = "192K"
"""A KV cache of 12 blocks, so that sequences are preempted."""
SETTINGS = (
    Setting("first", 2, SCARCE),
    Setting("second", None, AMPLE),
    Setting("first", None, SCARCE),
    Setting("second", 2, AMPLE),
    Setting("first", None, AMPLE, keeps_kv=False),
)


@dataclass(frozen=True, slots=True)
class XLoraFolders:
    base: Path
    contents: Path
    """The folder of the X-LoRAs."""
    served: Path
    """The folder that servers are started with."""


def write_xloras(path: Path) -> XLoraFolders:
    """Writes a tiny Llama, whose context has room for long prompts, and two X-LoRAs of it below ``path``."""
    base = write_folder(path / "base", Variant("llama", {"max_position_embeddings": 1024}))
    for seed, name in enumerate(("first", "second")):
        write_xlora(path / name, base, axis_of("llama"), seed=seed, layerwise_scalings=True, scaling_pass_value=0.2)
    return XLoraFolders(base, path, path / "served")


@dataclass
class XLoraResult:
    schedules: int = 0
    starts: int = 0
    compared: int = 0
    """Answers that were compared."""
    with_scalings: int = 0
    """Those whose scalings were compared as well."""
    refused: int = 0
    """Requests that chose an adapter, which X-LoRA does itself."""
    counted: Counted = field(default_factory=Counted)
    findings: list[str] = field(default_factory=list)

    def report(self) -> str:
        return "\n".join(
            [
                "## X-LoRA",
                "",
                f"{self.schedules} schedules, {self.starts} starts of the server;",
                f"{self.compared} answers compared, {self.with_scalings} of them with their scalings;",
                f"{self.refused} requests refused: they chose an adapter.",
                f"Counted by the servers: {self.counted}.",
                "",
                "Findings: " + ("none" if not self.findings else ""),
                *(f"- {finding}" for finding in self.findings),
                "",
            ]
        )


@contextmanager
def solo_xloras(
    folders: XLoraFolders, settings: Sequence[Setting] = SETTINGS
) -> Iterator[Mapping[tuple[str, int | None], Alone]]:
    """The solo runs for the contents and non-granular indices of ``settings``."""
    with ExitStack() as stack:

        @cache
        def alone(content: str, index: int | None) -> Alone:
            adapters = AdapterOptions(xlora=str(folders.contents / content), non_granular_index=index)
            options = LoadOptions(threads=1, prefix_cache_n=0, max_draft=0, adapters=adapters)
            source = ModelSource(None, folders.base, None, None)
            return Alone(stack.enter_context(LocalModel.load(source, options)))

        yield {(each.content, each.non_granular): alone(each.content, each.non_granular) for each in settings}


@contextmanager
def serving(
    folders: XLoraFolders, setting: Setting, kv: Path, *, environment: Mapping[str, str] | None = None
) -> Iterator[XLoraServer]:
    """Puts the setting's X-LoRA into the served folder, in the place of another, and serves it."""
    shutil.rmtree(folders.served, ignore_errors=True)
    shutil.copytree(folders.contents / setting.content, folders.served)
    with XLoraServer(
        folders.base,
        folders.served,
        kv if setting.keeps_kv else None,
        kv_memory=setting.kv_memory,
        non_granular=setting.non_granular,
        environment=environment,
    ) as server:
        yield server


def run_xlora_schedules(
    server: XLoraServer, alone: Alone, seeds: range, result: XLoraResult, *, long_prompts: bool
) -> None:
    """Runs one schedule for each seed: requests at once, then the next turns of their chats at once."""
    result.starts += 1
    with httpx.Client(base_url=server.root, timeout=60) as client, ThreadPoolExecutor(8) as pool:
        for seed in seeds:
            random = Random(seed)
            first = prompts(random)
            if long_prompts and random.random() < 0.5:
                first[0] = (*first[0], *random_tokens(TOKENIZER_SIZE, LONG_PROMPT, seed=random.randint(7, 8)))
            later = [alone.turn(prompt, random_tokens(TOKENIZER_SIZE, 3, seed=9)) for prompt in first[1:4]]
            for together in (first, later):
                wanted = [_choice(random, prompt) for prompt in together]
                answers = pool.map(lambda asked: ask(client, asked), wanted)
                for asked, (status, answer, generation) in zip(wanted, answers, strict=True):
                    if asked.adapters:
                        result.refused += 1
                        right = (status, generation) == (400, None)
                    else:
                        scalings = "scalings" in asked.fields
                        result.compared += 1
                        result.with_scalings += scalings
                        expected = alone.answer(asked.prompt, {}, max_tokens=asked.max_tokens, scalings=scalings)
                        right = (status, answer, generation) == (200, expected, None)
                    if not right:
                        result.findings.append(f"schedule {seed}: {asked} with status {status} is not as alone")
            result.schedules += 1
    if not server.until_quiet(10):
        result.findings.append("requests stayed")
    result.counted.add(server)


def _choice(random: Random, prompt: tuple[int, ...]) -> Asked:
    length = draw_length(random)
    if random.random() < 0.05:
        return Asked(prompt, {"adapters": {"music": 1}}, {"music": 1.0}, stream=False, max_tokens=length)
    if random.random() < 0.3:
        return Asked(prompt, {"scalings": True}, {}, stream=False, max_tokens=length)
    return Asked(prompt, {}, {}, stream=random.random() < 0.5, max_tokens=length)


def drill_xloras(
    folder: Path, *, count: int, restart_every: int = RESTART_EVERY, environment: Mapping[str, str] | None = None
) -> XLoraResult:
    """Runs ``count`` schedules, ``restart_every`` in each setting after the other."""
    folders, result = write_xloras(folder / "xloras"), XLoraResult()
    with solo_xloras(folders) as alone:
        for number, first in enumerate(range(0, count, restart_every)):
            setting = SETTINGS[number % len(SETTINGS)]
            with serving(folders, setting, folder / "kv", environment=environment) as server:
                solo = alone[setting.content, setting.non_granular]
                some = range(first, min(first + restart_every, count))
                run_xlora_schedules(server, solo, some, result, long_prompts=setting.has_room)
    return result
