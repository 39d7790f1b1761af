"""Writes a model as a GGUF file with quantized weights: finds the source, shows the progress, reports the result."""

from __future__ import annotations

from mistralrs.api.local_model import locate
from mistralrs.loading.quantize_model import quantize_model
from mistralrs.process import import_torch_without_working_folder
from mistralrs_cli.commands.utility_jobs import QuantizeJob
from mistralrs_cli.terminal.exits import leaving_at_once
from mistralrs_cli.terminal.output import ProgressLine, Streams, byte_size, clean_line


def run_quantize(job: QuantizeJob, streams: Streams) -> int:
    """Runs the job; returns the exit code."""
    progress = ProgressLine(streams.stderr)
    try:
        with leaving_at_once(progress.clear):
            source = locate(job.source, token_source=job.token_source, progress=progress)
        import_torch_without_working_folder()
        quantize_model(source, job.out, job.type, name=_name(job.source.repo), progress=progress)
    finally:
        progress.clear()
    streams.stderr.write(f"{clean_line(str(job.out))}: {byte_size(job.out.stat().st_size)}\n")
    streams.stderr.flush()
    return 0


def _name(repo: str | None) -> str | None:
    """Returns a hub repository's name for its model: in the cache the folder is named by its commit."""
    return None if repo is None else repo.partition("@")[0].rpartition("/")[2]
