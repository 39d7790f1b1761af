"""Shows an adapter, or writes it in another format."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from mistralrs.adapters.adapter_source import find_adapter
from mistralrs.adapters.tools.describe_adapter import AdapterDescription, describe_adapter
from mistralrs.api.load_options import ModelSource
from mistralrs.api.local_model import locate
from mistralrs.loading.token_source import token
from mistralrs.process import import_torch_without_working_folder
from mistralrs.progress import Progress
from mistralrs_cli.adapter_commands.adapter_jobs import (
    AdapterConvertJob,
    AdapterInspectJob,
    AdapterJob,
    AdapterMergeJob,
)
from mistralrs_cli.terminal.exits import leaving_at_once
from mistralrs_cli.terminal.output import ProgressLine, Streams, byte_size, clean_block, clean_line, grouped

_MOST_TOKENS = 16


def run_adapter(job: AdapterJob, streams: Streams) -> int:
    """Does what the job says; returns the exit code."""
    progress = ProgressLine(streams.stderr)
    try:
        if isinstance(job, AdapterInspectJob):
            return _inspect(job, streams, progress)
        if isinstance(job, AdapterMergeJob):
            return _merge(job, streams, progress)
        return _convert(job, streams, progress)
    finally:
        progress.clear()


def _inspect(job: AdapterInspectJob, streams: Streams, progress: ProgressLine) -> int:
    with leaving_at_once(progress.clear):
        path = _locate_adapter(job.source, job.token_source, progress)
        progress.clear()
        description = describe_adapter(path)
    if job.json:
        streams.stdout.write(json.dumps(asdict(description), default=str) + "\n")
    else:
        streams.stdout.writelines(f"{line}\n" for line in adapter_page(description))
    streams.stdout.flush()
    return 0


def _convert(job: AdapterConvertJob, streams: Streams, progress: ProgressLine) -> int:
    with leaving_at_once(progress.clear):
        path = _locate_adapter(job.source, job.token_source, progress)
        base = locate(job.base, token_source=job.token_source, progress=progress)
    import_torch_without_working_folder()
    from mistralrs.adapters.tools.convert_adapter import convert_adapter

    convert_adapter(path, base, job.out, to=job.to, gqa=job.base.gqa, base_name=job.base.repo)
    progress.clear()
    _report(job.out, streams)
    return 0


def _merge(job: AdapterMergeJob, streams: Streams, progress: ProgressLine) -> int:
    with leaving_at_once(progress.clear):
        adapters = [(_locate_adapter(source, job.token_source, progress), weight) for source, weight in job.adapters]
        base = locate(job.base, token_source=job.token_source, progress=progress)
    import_torch_without_working_folder()
    from mistralrs.adapters.tools.merge_adapters import merge_adapters

    merge_adapters(base, adapters, job.out, type=job.type, name=_name(job.base.repo), progress=progress)
    progress.clear()
    _report(job.out, streams)
    return 0


def _locate_adapter(source: ModelSource, token_source: str, progress: Progress) -> Path:
    place = source.repo if source.path is None else str(source.path)
    assert place is not None
    return find_adapter(place, source.filename, token=lambda: token(token_source), progress=progress).path


def _name(repo: str | None) -> str | None:
    """Returns a hub repository's name for its model: in the cache the folder is named by its commit."""
    return None if repo is None else repo.partition("@")[0].rpartition("/")[2]


def _report(out: Path, streams: Streams) -> None:
    files = [out] if out.is_file() else [path for path in out.iterdir() if path.is_file()]
    size = byte_size(sum(path.stat().st_size for path in files))
    streams.stderr.write(f"{clean_line(str(out))}: {size}\n")
    streams.stderr.flush()


def adapter_page(adapter: AdapterDescription) -> Iterator[str]:
    """Returns the lines of the text."""
    types = ", ".join(f"{name} x {count}" for name, count in adapter.types)
    yield _line("adapter", f"{adapter.path} ({adapter.container}, {byte_size(adapter.file_bytes)})")
    yield _line("kind", adapter.kind)
    yield _line("base", adapter.base_model or "not named")
    if adapter.architecture is not None:
        yield _line("architecture", adapter.architecture)
    yield _line("rank", _listed(adapter.ranks))
    yield _line("alpha", "none: the scale is 1" if adapter.alpha is None else f"{adapter.alpha:g}")
    yield _line("parameters", f"{grouped(adapter.parameters)}  {types}")
    if adapter.slot_bytes:
        yield _line("memory", f"{byte_size(adapter.slot_bytes)} beside its model")
    if adapter.invocation_tokens:
        more = len(adapter.invocation_tokens) - _MOST_TOKENS
        tokens = _listed(adapter.invocation_tokens[:_MOST_TOKENS]) + (f" and {more} more" if more > 0 else "")
        yield _line("invoked by", f"the tokens {tokens}")
    if adapter.extras:
        yield _line("also", ", ".join(adapter.extras))
    yield ""
    yield _line("matrices", grouped(adapter.matrices))
    for place in adapter.places:
        yield _line(f"  {place.name}", f"{grouped(place.matrices):>6}  rank {_listed(place.ranks)}")


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers)) or "none"


def _line(name: str, value: str) -> str:
    return f"{clean_block(name):<15} {clean_block(value)}".replace("\n", " ")
