"""The parts of a decoding step: the forward pass and the sampling in the library, and the Python between them.

    python -m benchmarks.steps MODEL.gguf [--sequences 1] [--tokens 200] [--rounds 5] [--threads N]

Answers come from the engine, with the chat's default sampling and their text. Times are microseconds from one step's
end to the next one's, so that its requests' part counts too; page faults are those of the whole process, and 16 of them
are 64 KB. Nothing else should run.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.local_model import LocalModel
from mistralrs.engine.config import Request, SamplingParams
from mistralrs.engine.events import Finished
from mistralrs.engine.model_runner import ModelRunner
from mistralrs.engine.sampling.native_sampler import NativeSampler
from mistralrs.ops.native_program import NativeProgram
from mistralrs.ops.native_row_sampler import NativeRowSampler

PROMPT = "Write a long text about the sea."
CHAT = SamplingParams(
    temperature=0.1, top_k=32, top_p=0.1, frequency_penalty=0.1, presence_penalty=0.1, repetition_penalty=1.1
)
WARM = 20
"""First steps of an answer that do not count."""


@dataclass
class Steps:
    """Seconds of each step since the last ``clear``, and page faults."""

    forward: float = 0.0
    sampling: float = 0.0
    rows: list[tuple[float, float, float, int]] = field(default_factory=list)
    """When a step ended, the library's part of it, and the process's page faults until then."""

    def timed(self, call: Callable[..., Any], part: str) -> Callable[..., Any]:
        def run(*arguments: Any) -> None:
            started = time.perf_counter()
            call(*arguments)
            setattr(self, part, getattr(self, part) + time.perf_counter() - started)

        return run

    def end(self) -> None:
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        self.rows.append((time.perf_counter(), self.forward, self.sampling, faults))
        self.forward = self.sampling = 0.0

    def medians(self) -> tuple[float, float, float, float]:
        """Microseconds of a step, of its forward pass, of its sampling, and page faults a step."""
        rows = self.rows[WARM:-1]
        pairs = list(itertools.pairwise(rows))
        whole = statistics.median(after[0] - before[0] for before, after in pairs)
        forward, sampling = (statistics.median(after[place] for _, after in pairs) for place in (1, 2))
        return 1e6 * whole, 1e6 * forward, 1e6 * sampling, (rows[-1][3] - rows[0][3]) / len(pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--sequences", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    options = LoadOptions(threads=args.threads, prefix_cache_n=0, max_draft=0, max_seqs=args.sequences)
    with LocalModel.load(ModelSource(None, args.model, None, None), options) as model:
        answer(model, args.sequences, WARM)
        steps = watched(model)
        rounds = []
        for _ in range(args.rounds):
            steps.rows.clear()
            answer(model, args.sequences, args.tokens)
            rounds.append(steps.medians())
    whole, forward, sampling, faults = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"{args.model.name}, {args.sequences} sequences, medians of {args.rounds} rounds: a step {whole:.0f} us")
    print(f"forward pass {forward:.0f} us, sampling {sampling:.0f} us, Python {whole - forward - sampling:.0f} us")
    print(f"page faults {faults:.2f} a step")


def watched(model: LocalModel) -> Steps:
    """The times of the model's steps from now on."""
    steps = Steps()
    engine = model.engine
    runner, sampler = cast(ModelRunner, engine._executor), cast(NativeSampler, engine._sampler)
    program, rows = cast(NativeProgram, runner._decoder.forward), cast(NativeRowSampler, sampler._row_sampler)
    program._run = steps.timed(program._run, "forward")
    rows._sample = steps.timed(rows._sample, "sampling")
    engine.after_step = steps.end
    return steps


def answer(model: LocalModel, sequences: int, tokens: int) -> None:
    """Answers a prompt in each sequence at once."""
    prompt = tuple(model.tokenizer.encode(PROMPT, special=False, bos=model.tokenizer.add_bos))
    sampling = replace(CHAT, max_tokens=tokens, ignore_eos=True)
    streams = [
        model.engine.submit(Request(prompt, replace(sampling, seed=seed), reuse=False)) for seed in range(sequences)
    ]
    for stream in streams:
        end = list(stream)[-1]
        if not isinstance(end, Finished):
            raise SystemExit(f"a request failed: {end}")


if __name__ == "__main__":
    main()
