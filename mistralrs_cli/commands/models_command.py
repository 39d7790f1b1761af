"""Lists the models that are on this machine, and deletes one from the hub's cache."""

from __future__ import annotations

import json
import time
from dataclasses import asdict

from mistralrs.api.cached_models import CachedModel, DefaultModel, cached_models, default_model, delete_cached_model
from mistralrs.errors import UsageError
from mistralrs_cli.commands.utility_jobs import ModelsJob
from mistralrs_cli.terminal.output import Streams, byte_size, clean_line, is_terminal


def run_models(job: ModelsJob, streams: Streams) -> int:
    """Runs the job; returns the exit code."""
    if job.delete is not None:
        return _delete(job.delete, streams, ask=not job.yes)
    default, models = default_model(), cached_models()
    if job.json:
        record = {"default": asdict(default), "cached": [asdict(model) for model in models]}
        streams.stdout.write(json.dumps(record, default=str) + "\n")
    else:
        streams.stdout.write("".join(f"{line}\n" for line in _table(default, models)))
    streams.stdout.flush()
    return 0


def _table(default: DefaultModel, models: list[CachedModel]) -> list[str]:
    """Returns the lines: the default model, then each repository in the cache and its weights."""
    place = str(default.path) if default.path else f"not here; {default.hint}"
    lines = [f"default model  {byte_size(default.nbytes) if default.path else '-':>8}  {clean_line(place)}"]
    if not models:
        return [*lines, "the hub's cache holds no model"]
    width = max(len(model.repo) for model in models)
    for model in models:
        day = time.strftime("%Y-%m-%d", time.localtime(model.modified))
        revisions = ", ".join(name[:12] for name in model.revisions)
        lines.append(f"{clean_line(model.repo):<{width}}  {byte_size(model.nbytes):>8}  {day}  {clean_line(revisions)}")
        lines.extend(f"    {clean_line(name)}" for name in model.weights)
    return [*lines, f"{byte_size(sum(model.nbytes for model in models))} in the hub's cache"]


def _delete(repo: str, streams: Streams, *, ask: bool) -> int:
    found = next((model for model in cached_models() if model.repo == repo), None)
    if found is None:
        raise UsageError(f"{repo} is not in the hub's cache", hint="mistralrs models lists what is")
    if ask and not _confirmed(found, streams):
        streams.stderr.write("nothing was deleted\n")
        return 0
    freed = delete_cached_model(repo)
    streams.stderr.write(f"{clean_line(repo)} is deleted, {byte_size(freed)} are free\n")
    return 0


def _confirmed(model: CachedModel, streams: Streams) -> bool:
    if not (is_terminal(streams.stdin) and is_terminal(streams.stderr)):
        raise UsageError(f"nobody can be asked whether to delete {model.repo}", hint="add --yes to delete it anyway")
    streams.stderr.write(f"delete {clean_line(model.repo)}, {byte_size(model.nbytes)}? [y/N] ")
    streams.stderr.flush()
    return streams.stdin.readline().strip().lower() in ("y", "yes")
