"""Measures the microseconds of both samplers for one token, in turns, for several settings and vocabularies, on one
thread: the kernels' one and the reference in torch.

python benchmarks/sampler_speed.py [--vocab 49152,128256] [--repeats 50]
"""

from __future__ import annotations

import argparse
import statistics
import time
from array import array
from functools import partial

import torch

from mistralrs.engine.config import SamplingParams
from mistralrs.engine.sampling.native_sampler import NativeSampler
from mistralrs.engine.sampling.sampler import Sampler
from mistralrs.engine.sampling.sampling_input import SamplingInput
from mistralrs.ops.arena import Arena, buffer, buffers_bytes
from mistralrs.ops.native_backend import NativeBackend

SETTINGS = {
    "greedy": SamplingParams(temperature=0.0),
    "temperature": SamplingParams(),
    "top-p 0.9": SamplingParams(top_p=0.9),
    "top-k 1000": SamplingParams(top_k=1000),
    "chat default": SamplingParams(
        temperature=0.1, top_k=32, top_p=0.1, frequency_penalty=0.1, presence_penalty=0.1, repetition_penalty=1.1
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", default="49152,128256")
    parser.add_argument("--repeats", type=int, default=50)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for vocab in map(int, args.vocab.split(",")):
        generator = torch.Generator().manual_seed(0)
        values = array("f", (torch.randn(vocab, generator=generator) * 4).tolist())
        logits = buffer(Arena(buffers_bytes((1, vocab))), 1, vocab)
        tokens = list(range(100, 300))
        make = partial(Sampler, vocab)
        samplers = NativeSampler(vocab, NativeBackend(threads=1).row_sampler(), make), make()
        for name, params in SETTINGS.items():
            row = SamplingInput(params, tokens)
            times: tuple[list[float], list[float]] = ([], [])
            for _ in range(args.repeats):
                for sampler, own in zip(samplers, times, strict=True):
                    logits.values[:] = values
                    started = time.perf_counter()
                    sampler.sample(logits, [row])
                    own.append(time.perf_counter() - started)
            native, torchs = (statistics.median(own) * 1e6 for own in times)
            print(f"{vocab:>7} {name:<14} {native:8.0f} us, torch {torchs:8.0f} us")


if __name__ == "__main__":
    main()
