"""Time to the first token of an aLoRA after a prompt that the base has computed, beside the same adapter as LoRA.

    python -m benchmarks.alora MODEL.gguf [--tokens 4000] [--rank 16] [--rounds 5] [--threads N]

In each round the base answers a prompt that nobody has asked before. Then both adapters answer it with the invocation
and a few tokens behind it: the aLoRA finds the base's KV in the prefix cache, the LoRA has to compute everything. The
adapters are the same random numbers as peft would save them. Nothing else should run.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.random_adapters import random_adapter
from mistralrs.adapters.lora.peft_writer import write_peft
from mistralrs.adapters.tools.base_model import read_base_model
from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.local_model import AdapterOptions, AdapterSource, LocalModel
from mistralrs.engine.config import SamplingParams
from mistralrs.engine.events import Delta, Failed, Finished

INVOCATION = (11, 12, 13, 14)
QUESTION = 12
"""Tokens behind the invocation."""
TOKENS = range(1000, 20000)
"""Tokens that prompts consist of: none of the invocation, and no control tokens."""
FIRST_TOKEN = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        adapters = write_adapters(args.model, Path(folder), rank=args.rank)
        options = LoadOptions(threads=args.threads, adapters=AdapterOptions(adapters=adapters))
        with LocalModel.load(ModelSource(None, args.model, None, None), options) as model:
            info = model.info
            print(f"{args.model.name}, {info.backend}, {info.threads} threads, rank {args.rank}, {args.tokens} tokens")
            measure(model, tokens=args.tokens, rounds=args.rounds)


def write_adapters(model: Path, folder: Path, *, rank: int) -> tuple[AdapterSource, ...]:
    """Writes the same adapter as aLoRA and as LoRA."""
    base = read_base_model(model)
    sources = []
    for name, tokens in {"alora": INVOCATION, "lora": ()}.items():
        adapter = random_adapter(base.spec, name, rank=rank, seed=0, invocation_tokens=tokens)
        write_peft(adapter, folder / name, architecture=base.architecture, spec=base.spec)
        sources.append(AdapterSource(name, str(folder / name)))
    return tuple(sources)


def measure(model: LocalModel, *, tokens: int, rounds: int) -> None:
    """Prints the medians of the rounds and their ratio."""
    source = random.Random(0)
    found: dict[str, list[float]] = {"alora": [], "lora": []}
    for number in range(rounds + 1):
        length = tokens if number else len(INVOCATION)  # the first round is a short one, which only warms up
        prompt = source.choices(TOKENS, k=length)
        first_token(model, prompt, None)
        asked = [*prompt, *INVOCATION, *source.choices(TOKENS, k=QUESTION)]
        for name in sorted(found, reverse=number % 2 == 1):
            seconds, cached = first_token(model, asked, name)
            if number:
                found[name].append(seconds)
                print(f"round {number}, {name}: {seconds:.3f} s, {cached} of {len(asked)} tokens from the cache")
    ratio = statistics.median(with_ / without for with_, without in zip(*found.values(), strict=True))
    medians = {name: statistics.median(each) for name, each in found.items()}
    print(f"first token: {medians['alora']:.3f} s as aLoRA, {medians['lora']:.3f} s as LoRA, {ratio:.1%}")


def first_token(model: LocalModel, prompt: list[int], adapter: str | None) -> tuple[float, int]:
    """Seconds from the request to its first token, and the tokens whose KV was in the cache. None: the base."""
    started, seconds = time.perf_counter(), 0.0
    for event in model.complete(prompt, FIRST_TOKEN, adapters={} if adapter is None else {adapter: 1.0}):
        if isinstance(event, Delta) and event.tokens and not seconds:
            seconds = time.perf_counter() - started
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Finished):
            return seconds, event.usage.cached_tokens
    raise AssertionError("the stream has no end")


if __name__ == "__main__":
    main()
