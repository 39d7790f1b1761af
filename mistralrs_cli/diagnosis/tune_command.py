"""``tune``: what fits into the memory of this machine, or of another one, and the command lines for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from mistralrs.api.local_model import locate
from mistralrs.loading.describe import Description, describe
from mistralrs.ops.memory import available_bytes
from mistralrs_cli.diagnosis.diagnosis_jobs import TuneJob
from mistralrs_cli.terminal.output import ProgressLine, Streams, byte_size, clean_line, grouped

SERVED = 16
"""Sequences at once of a server, by default."""
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Fit:
    """A context, and how many sequences of it fit at once."""

    context: int
    """Tokens."""
    kv_bytes: int
    """Of one sequence."""
    sequences: int


@dataclass(frozen=True, slots=True)
class Budget:
    """The memory of a model on a machine, in bytes."""

    memory: int
    """All that may be used."""
    weights: int
    kv_per_1000_tokens: int
    kv_memory: int
    """That of the KV cache by default: half of what the weights leave."""
    fits: tuple[Fit, ...]
    commands: tuple[str, ...]
    """Command lines with settings that fit; empty if nothing does."""


def run_tune(job: TuneJob, streams: Streams) -> int:
    """Prints the budget; returns the exit code, 1 if the model does not fit."""
    progress = ProgressLine(streams.stderr)
    try:
        path = locate(job.source, token_source=job.token_source, progress=progress)
    finally:
        progress.clear()
    found = budget(
        describe(path, gqa=job.source.gqa, kv_cache_dtype=job.kv_cache_dtype),
        job.memory or available_bytes(),
        job.row,
        kv_cache_dtype=job.kv_cache_dtype,
    )
    if job.json:
        streams.stdout.write(json.dumps(asdict(found)) + "\n")
    else:
        streams.stdout.writelines(f"{line}\n" for line in _page(found))
    streams.stdout.flush()
    return 0 if found.commands else 1


def budget(model: Description, memory: int, row: str, *, kv_cache_dtype: str = "auto") -> Budget:
    """Returns what fits into ``memory`` bytes. ``row``: the words that name the model on a command line;
    ``kv_cache_dtype``: that of ``model``, which command lines name unless it is ``auto``."""
    kv_memory = max(0, memory - model.memory.weights) // 2
    fits = tuple(
        Fit(each.tokens, each.nbytes, kv_memory // each.nbytes if each.nbytes else 0) for each in model.memory.contexts
    )
    return Budget(
        memory=memory,
        weights=model.memory.weights,
        kv_per_1000_tokens=model.memory.kv_per_1000_tokens,
        kv_memory=kv_memory,
        fits=fits,
        commands=tuple(_commands(fits, kv_memory, row, dtype="" if kv_cache_dtype == "auto" else kv_cache_dtype)),
    )


def _commands(fits: tuple[Fit, ...], kv_memory: int, row: str, *, dtype: str) -> Iterator[str]:
    """Yields the line of a chat with the longest context, and that of a server with as long a one for all sequences.

    Both name the KV's memory, so that they mean the same whatever else runs at their start.
    """
    for sequences, words in ((1, "-i"), (SERVED, "--port 1234")):
        longest = max((fit for fit in fits if fit.sequences >= sequences), key=lambda fit: fit.context, default=None)
        if longest is None:
            continue
        need = -(-longest.kv_bytes * sequences // _MIB)
        memory = min(need + need // 8 + 1, kv_memory // _MIB)  # blocks are whole, and windows overlap a step
        kv = f"--kv-memory {memory}M" + (f" --kv-cache-dtype {dtype}" if dtype else "")
        yield f"mistralrs --max-seqs {sequences} --max-model-len {longest.context} {kv} {words} {row}"


def _page(found: Budget) -> Iterator[str]:
    yield f"memory       {byte_size(found.memory)}"
    yield f"weights      {byte_size(found.weights)}"
    yield f"KV           {byte_size(found.kv_per_1000_tokens)} for 1 000 tokens"
    yield f"KV's memory  {byte_size(found.kv_memory)}, half of what the weights leave; --kv-memory changes it"
    yield ""
    yield f"{'context':>12}  {'KV of one':>10}  sequences that fit"
    for fit in found.fits:
        yield f"{grouped(fit.context):>12}  {byte_size(fit.kv_bytes):>10}  {grouped(fit.sequences)}"
    yield ""
    if not found.commands:
        yield "the model does not fit: take one with smaller weights, or --isq TYPE for safetensors"
    yield from map(clean_line, found.commands)
