"""Prints the description of a model, as text or as one JSON object."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict

from mistralrs.api.loaded_adapters.inspected_adapters import adapter_sizes
from mistralrs.api.local_model import hub_token, locate
from mistralrs.loading.describe import Description, TextInfo, TokenInfo, describe
from mistralrs_cli.commands.utility_jobs import InspectJob
from mistralrs_cli.terminal.exits import leaving_at_once
from mistralrs_cli.terminal.output import (
    ProgressLine,
    Sanitizer,
    Streams,
    byte_size,
    clean_block,
    escape_reordering,
    grouped,
)

PRECISION_MEANINGS = {
    "fast": "activations are rounded to 8 bits, few outliers to 15",
    "default": "activations are rounded to 8 bits, to 15 where they stand out",
    "high": "activations are rounded to 15 bits",
}
"""The effect of each ``--precision`` inside matrix products."""


def run_inspect(job: InspectJob, streams: Streams) -> int:
    """Describes the model that the job names; returns the exit code."""
    progress = ProgressLine(streams.stderr)
    with leaving_at_once(progress.clear):
        try:
            path = locate(job.source, token_source=job.token_source, progress=progress)
        finally:
            progress.clear()
        sizes = (
            adapter_sizes(job.adapters, token=hub_token(job.token_source), progress=progress) if job.adapters else None
        )
        try:
            description = describe(
                path,
                gqa=job.source.gqa,
                adapters=sizes,
                kv_cache_dtype=job.kv_cache_dtype,
                precision=job.precision,
            )
        finally:
            progress.clear()
    if job.json:
        streams.stdout.write(json.dumps({**asdict(description), "precision": job.precision}, default=str) + "\n")
    else:
        lines = (*page(description), _line("precision", f"{job.precision}: {PRECISION_MEANINGS[job.precision]}"))
        streams.stdout.writelines(f"{line}\n" for line in lines)
    streams.stdout.flush()
    return 0


def page(model: Description) -> Iterator[str]:
    """Returns the lines of the text."""
    yield _line("file", f"{model.path} ({model.container}, {byte_size(model.file_bytes)})")
    yield _line("architecture", _architecture(model))
    yield _line("parameters", grouped(model.parameters))
    yield _line("context", f"{grouped(model.context_length)} tokens{_windows(model)}")
    yield ""
    for each in model.tensors:
        types = ", ".join(f"{name} x {count}" for name, count in each.types)
        yield _line(each.use, f"{grouped(each.parameters):>15}  {byte_size(each.nbytes):>8}  {types}")
    yield ""
    yield from _text(model.text)
    own = ", ".join(f"{name} {value:g}" for name, value in model.sampling.items())
    yield _line("sampling", own or "nothing of its own")
    yield ""
    yield _line("weights", f"{byte_size(model.memory.weights)} of memory ({model.memory.backend})")
    kv = f"{byte_size(model.memory.kv_per_1000_tokens)} of memory for 1 000 tokens"
    yield _line("context", f"{kv} (KV cache in {model.memory.kv_dtype})")
    for name, nbytes in model.memory.adapters:
        yield _line("adapter", f"{byte_size(nbytes)} of memory ({name})")


def _architecture(model: Description) -> str:
    shape = (
        f"{model.architecture}: {model.layers} layers, width {model.hidden_size}, feed-forward {model.ffn_size}, "
        f"{model.heads} heads of {model.head_dim}, {model.kv_heads} key heads"
    )
    return f"{shape}, {model.experts_used} of {model.experts} experts" if model.experts else shape


def _windows(model: Description) -> str:
    lengths = " and ".join(grouped(window) for window in model.windows)
    return f", sliding window of {lengths}" if lengths else ""


def _text(text: TextInfo) -> Iterator[str]:
    yield _line("tokenizer", f"{text.kind}, {grouped(text.size)} tokens")
    starts = " (in front of a text)" if text.adds_bos else ""
    yield _line("begin", f"{_token(text.bos)}{starts}" if text.bos else "none")
    yield _line("end", ", ".join(_token(token) for token in text.eos) or "none")
    yield _line("answers", ", ".join(part.replace("_", " ") for part in text.answer_parts))
    if text.sample is not None:
        yield "template, with a sample conversation:"
        shown = escape_reordering(Sanitizer().feed(text.sample))
        yield from (f"    {line}" for line in shown.split("\n"))
    else:
        yield _line("template", f"refuses the sample: {text.refusal}" if text.refusal else "none: it cannot chat")


def _token(token: TokenInfo) -> str:
    return f"{token.id} {token.text!r}"


def _line(name: str, value: str) -> str:
    return f"{name:<13} {clean_block(value)}".replace("\n", " ")
