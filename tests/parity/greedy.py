"""llama.cpp's greedy tokens as golden files: their inputs, which the script that writes them shares, and the comparison
of a model with them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.local_model import LocalModel
from mistralrs.engine.config import SamplingParams
from mistralrs.engine.events import Delta, Finished, Stream, TokenLogprob
from tests.tolerances import GREEDY_TIE

Precision = Literal["default", "high"]

PRECISIONS: tuple[Precision, ...] = ("default", "high")
GOLDEN = Path(__file__).parent / "golden"
COUNT = 64
"""Tokens after each prompt."""
BEST = 5
"""The number of our most likely tokens that are compared where two answers disagree."""

QUESTIONS = (
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "Explain in a few sentences how a bicycle stays upright.",
    "Write a Python function that reverses a string, and say how it works.",
    "Tell me a story about a fox who learns to read.",
    "Übersetze ins Englische: Der schnelle braune Fuchs springt über den faulen Hund.",
)
BEGINNINGS = (
    "The capital of France is",
    "Once upon a time, in a village at the edge of a great forest,",
    "def fibonacci(n):\n",
    "Water boils at 100 degrees Celsius. At high altitudes",
    "Die wichtigste Erfindung des 19. Jahrhunderts war",
    "1, 2, 3, 5, 8, 13,",
)


def asked(question: str) -> str:
    """Returns the prompt that the default model's template makes of a question."""
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    return f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


PROMPTS = {"smollm2": tuple(map(asked, QUESTIONS)), "gemma3": BEGINNINGS}
"""The prompts by golden file: questions for a chat model, texts to continue for a base model."""


@dataclass(frozen=True, slots=True)
class Golden:
    """A prompt and llama.cpp's tokens after it; the end-of-sequence token is a token like any other."""

    prompt: str
    ids: list[int]
    """The prompt's tokens."""
    tokens: list[int]
    second: list[int]
    """The second most likely token at each position."""
    margins: list[float]
    """The best token's lead over the second in nats."""


def path_of(name: str) -> Path:
    return GOLDEN / f"greedy_{name}.json"


def read(name: str) -> list[Golden]:
    return [Golden(**entry) for entry in json.loads(path_of(name).read_text(encoding="utf-8"))["prompts"]]


def check(model: Path, name: str, *, precision: Precision) -> None:
    """Checks that the model's greedy tokens are the golden ones, up to the first tie of the best two."""
    golden = read(name)
    sampling = SamplingParams(temperature=0.0, max_tokens=COUNT, ignore_eos=True, logprobs=BEST)
    same = 0
    options = LoadOptions(threads=2, precision=precision)
    with LocalModel.load(ModelSource(None, model, None, None), options) as running:
        for entry in golden:
            assert running.tokenizer.encode(entry.prompt, special=True, bos=running.tokenizer.add_bos) == entry.ids
        streams = [running.complete(entry.ids, sampling) for entry in golden]
        for entry, stream in zip(golden, streams, strict=True):
            same += _agreeing(entry, list(_drawn(stream)))
    # ties must not excuse everything
    assert same >= COUNT * len(golden) // 2, f"only {same} tokens were compared"


def _drawn(stream: Stream) -> Iterator[TokenLogprob]:
    for event in stream:
        if isinstance(event, Delta):
            yield from event.logprobs
        else:
            assert isinstance(event, Finished), event


def _agreeing(golden: Golden, ours: list[TokenLogprob]) -> int:
    """Returns the number of equal tokens; fails unless the first difference is a tie, for llama.cpp or for us."""
    assert len(ours) == len(golden.tokens) == COUNT
    for place, (token, drawn) in enumerate(zip(golden.tokens, ours, strict=True)):
        if drawn.token == token:
            continue
        scores = {each.token: each.logprob for each in drawn.top}
        ours_apart = drawn.logprob - scores[token] if token in scores else float("inf")
        theirs_apart = golden.margins[place] if golden.second[place] == drawn.token else float("inf")
        assert min(ours_apart, theirs_apart) <= GREEDY_TIE, (
            f"token {place} after {golden.prompt!r} is {drawn.token} ({drawn.text!r}), not {token}: "
            f"better by {ours_apart:.3f} nats here, worse by {theirs_apart:.3f} there"
        )
        return place
    return COUNT
