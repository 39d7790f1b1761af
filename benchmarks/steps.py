"""The parts of a decoding step: the forward pass and the sampling in one call of the library, and the Python between.

    python -m benchmarks.steps MODEL.gguf [--sequences 1] [--tokens 200] [--rounds 5] [--threads N]

Answers come from the engine, with the chat's default sampling and their text. Times are microseconds from one step's
start to the next one's, so that everything between them counts; page faults are those of the whole process, and
16 of them are 64 KB. Gaps are those between two events of a sequence, as the thread that reads all of them sees them.
Nothing else should run.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.local_model import LocalModel
from mistralrs.engine.config import Request, SamplingParams
from mistralrs.engine.events import End, Event, Failed
from mistralrs.engine.model_runner import ModelRunner
from mistralrs.ops.native_program import NativeProgram

PROMPT = "Write a long text about the sea."
CHAT = SamplingParams(
    temperature=0.1, top_k=32, top_p=0.1, frequency_penalty=0.1, presence_penalty=0.1, repetition_penalty=1.1
)
WARM = 20
"""First steps of an answer that do not count."""


@dataclass
class Steps:
    """Seconds of each step since the last ``clear``, and page faults."""

    library: float = 0.0
    rows: list[tuple[float, float, int]] = field(default_factory=list)
    """When a step began, the library's part of the one before, and the process's page faults until then."""

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> None:
            started = time.perf_counter()
            call(*arguments)
            self.library += time.perf_counter() - started

        return run

    def counted(self, step: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            self.rows.append((time.perf_counter(), self.library, faults))
            self.library = 0.0
            step()

        return run

    def medians(self) -> tuple[float, float, float]:
        """Microseconds of a step and of its call of the library, and page faults a step."""
        rows = self.rows[WARM:-1]
        pairs = list(itertools.pairwise(rows))
        whole = statistics.median(after[0] - before[0] for before, after in pairs)
        library = statistics.median(after[1] for _, after in pairs)
        return 1e6 * whole, 1e6 * library, (rows[-1][2] - rows[0][2]) / len(pairs)


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
        rounds, gaps = [], []
        for _ in range(args.rounds):
            steps.rows.clear()
            gaps += answer(model, args.sequences, args.tokens)
            rounds.append(steps.medians())
    whole, library, faults = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"{args.model.name}, {args.sequences} sequences, medians of {args.rounds} rounds: a step {whole:.0f} us")
    print(f"the library {library:.0f} us, Python {whole - library:.0f} us")
    median, late = (1e6 * statistics.quantiles(gaps, n=100)[percent - 1] for percent in (50, 95))
    print(f"page faults {faults:.2f} a step; between two tokens of a sequence {median:.0f} us, p95 {late:.0f} us")


def watched(model: LocalModel) -> Steps:
    """The times of the model's steps from now on."""
    steps = Steps()
    engine = model.engine
    program = cast(NativeProgram, cast(ModelRunner, engine._core._executor)._decoder.forward)
    program._run = steps.timed(program._run)
    engine._core.step = steps.counted(engine._core.step)  # type: ignore[method-assign]
    return steps


def answer(model: LocalModel, sequences: int, tokens: int) -> list[float]:
    """Answers a prompt in each sequence at once. Returns the seconds between two events of a sequence."""
    prompt = tuple(model.tokenizer.encode(PROMPT, special=False, bos=model.tokenizer.add_bos))
    sampling = replace(CHAT, max_tokens=tokens, ignore_eos=True)
    events: SimpleQueue[tuple[int, Event]] = SimpleQueue()
    for seed in range(sequences):
        request = Request(prompt, replace(sampling, seed=seed), reuse=False)
        model.engine.submit_to(partial(_deliver, events, seed), request)
    times: list[list[float]] = [[] for _ in range(sequences)]
    num_open = sequences
    while num_open:
        number, event = events.get()
        times[number].append(time.perf_counter())
        num_open -= isinstance(event, End)
        if isinstance(event, Failed):
            raise SystemExit(f"a request failed: {event}")
    return [after - before for of_one in times for before, after in itertools.pairwise(of_one[WARM:-1])]


def _deliver(events: SimpleQueue[tuple[int, Event]], number: int, event: Event) -> None:
    events.put((number, event))


if __name__ == "__main__":
    main()
