"""Requests to a server with adapters, and their solo runs in this process, whose bits the answers must have."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx

from mistralrs.api.loaded_adapters.scalings import ScalingNames, choice_scalings
from mistralrs.api.local_model import LocalModel
from mistralrs.engine.config import SamplingParams
from mistralrs.engine.events import Delta, Scalings
from tests.parity.running import random_tokens
from tests.serving import RunningServer
from tests.tiny import TOKENIZER_SIZE

MAX_TOKENS = 12
LONG_ANSWER = 48
"""Tokens of an answer that takes more blocks than the scheduler keeps free for it, so that it may preempt others."""
INVOCATION = (9, 3)
"""The tokens that invoke the aLoRA."""
STEMS = tuple(tuple(random_tokens(TOKENIZER_SIZE, 48, seed=seed)) for seed in (1, 2))
"""The beginnings that prompts share."""


@dataclass(frozen=True, slots=True)
class Answer:
    text: str = ""
    logprobs: tuple[float, ...] = ()
    scalings: Mapping[str, object] | None = None
    """Those of X-LoRA, as a choice has them; None: the request does not ask for them."""


@dataclass(frozen=True, slots=True)
class Asked:
    prompt: tuple[int, ...]
    fields: Mapping[str, Any]
    """What the body says beside ``prompt``."""
    adapters: Mapping[str, float]
    """The adapters that ``fields`` choose."""
    stream: bool
    max_tokens: int = MAX_TOKENS


@dataclass
class Alone:
    """Answers of requests that run alone, without drafts and without a prefix cache."""

    model: LocalModel
    known: dict[tuple[object, ...], tuple[Answer, tuple[int, ...]]] = field(default_factory=dict)

    def answer(
        self,
        prompt: tuple[int, ...],
        adapters: Mapping[str, float],
        *,
        max_tokens: int = MAX_TOKENS,
        scalings: bool = False,
    ) -> Answer:
        return self._run(prompt, adapters, max_tokens, scalings=scalings)[0]

    def turn(self, prompt: tuple[int, ...], more: Sequence[int]) -> tuple[int, ...]:
        """The prompt, its answer without adapters, and ``more``: the next turn of a chat."""
        return (*prompt, *self._run(prompt, {}, MAX_TOKENS, scalings=False)[1], *more)

    def _run(
        self, prompt: tuple[int, ...], adapters: Mapping[str, float], max_tokens: int, *, scalings: bool
    ) -> tuple[Answer, tuple[int, ...]]:
        key = (prompt, tuple(sorted(adapters.items())), max_tokens, scalings)
        if key not in self.known:
            sampling = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, logprobs=1)
            chosen = adapters if self.model.known_adapters().are_possible else None
            events = list(self.model.complete(prompt, sampling, adapters=chosen, scalings=scalings))
            whole = Delta.joined([event for event in events if isinstance(event, Delta)])
            weights = [self._shown(event) for event in events if isinstance(event, Scalings)]
            logprobs = tuple(logprob.logprob for logprob in whole.logprobs)
            self.known[key] = Answer(whole.text, logprobs, *weights), whole.tokens
        return self.known[key]

    def _shown(self, scalings: Scalings) -> dict[str, object]:
        axes = self.model.known_adapters().require_scalings()
        return choice_scalings(scalings, ScalingNames(axes, self.model.tokenizer))


@dataclass
class Counted:
    """Sums of the servers' own counters: a kind of event that never happens is not tested."""

    preemptions: int = 0
    prefix_hit_tokens: int = 0
    draft_tokens_accepted: int = 0

    def add(self, server: RunningServer) -> None:
        status, text = server.ask("GET", "/metrics")
        assert status == 200, text
        values = dict(line.split() for line in text.splitlines() if line and " " in line and not line.startswith("#"))
        for name in vars(self):
            setattr(self, name, getattr(self, name) + int(float(values[f"mistralrs_{name}_total"])))

    @property
    def missing(self) -> list[str]:
        """The kinds of events that never happened."""
        return [name for name, value in vars(self).items() if not value]

    def __str__(self) -> str:
        return ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in vars(self).items())


def draw_length(random: Random) -> int:
    """Tokens of an answer."""
    return LONG_ANSWER if random.random() < 0.5 else MAX_TOKENS


def prompts(random: Random) -> list[tuple[int, ...]]:
    """Eight prompts that share beginnings of whole blocks; some invoke the aLoRA."""
    found = []
    for _ in range(8):
        own = random_tokens(TOKENIZER_SIZE, random.randint(1, 20), seed=random.randint(3, 6))
        invoked = INVOCATION if random.random() < 0.5 else ()
        found.append((*random.choice(STEMS)[: random.choice((16, 33, 48))], *invoked, *own))
    return found


def ask(client: httpx.Client, asked: Asked) -> tuple[int, Answer, int | None]:
    """The status, answer and generation of a request."""
    body = {
        "prompt": list(asked.prompt), "temperature": 0, "max_tokens": asked.max_tokens, "ignore_eos": True,
        "logprobs": 1, "stream": asked.stream, **asked.fields,
    }  # fmt: skip
    response = client.post("/v1/completions", json=body)
    if not asked.stream:
        parts = [response.json()]
    else:
        lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
        parts = [json.loads(line) for line in lines or [response.text] if line != "[DONE]"]
    errors = [part["error"]["code"] for part in parts if "error" in part]
    if errors:
        statuses = {"adapter_not_found": 404, "model_not_found": 404, "adapter_slots_full": 429, "invalid_value": 400}
        return statuses.get(errors[0], 500), Answer(), None
    choices = [choice for part in parts for choice in part["choices"]]
    logprobs = [value for choice in choices if choice["logprobs"] for value in choice["logprobs"]["token_logprobs"]]
    [generation] = {part["adapter_generation"] for part in parts if "adapter_generation" in part} or {None}
    [scalings] = [choice["scalings"] for choice in choices if choice.get("scalings")] or [None]
    text = "".join(choice["text"] for choice in choices)
    return response.status_code, Answer(text, tuple(logprobs), scalings), generation
