"""Makes and changes ordering files; writes them to a file or to stdout."""

from __future__ import annotations

from mistralrs.adapters.json_fields import JsonFields
from mistralrs.adapters.lora.target_modules import named_modules
from mistralrs.adapters.orderings.adapter_layout import derive_ordering, read_layout
from mistralrs.adapters.orderings.layer_axis import layer_axis, modules_of_config
from mistralrs.adapters.orderings.ordering import (
    Ordering,
    check_names,
    ordering_json,
    read_ordering,
    rename_adapters,
    write_ordering,
)
from mistralrs.errors import LoadError, UsageError
from mistralrs.loading.hub_files import companion
from mistralrs.loading.token_source import token
from mistralrs_cli.adapter_commands.ordering_job import CreateOrderingJob, OrderingJob, RenameOrderingJob
from mistralrs_cli.terminal.exits import leaving_at_once
from mistralrs_cli.terminal.output import ProgressLine, Streams, clean_line


def run_ordering(job: OrderingJob, streams: Streams) -> int:
    """Does what the job says; returns the exit code."""
    if isinstance(job, RenameOrderingJob):
        ordering = rename_adapters(read_ordering(job.file), job.names)
    else:
        progress = ProgressLine(streams.stderr)
        with leaving_at_once(progress.clear):
            try:
                ordering = _created(job, progress)
            finally:
                progress.clear()
    if job.output.path is None:
        streams.stdout.write(ordering_json(ordering))
        streams.stdout.flush()
        return 0
    write_ordering(ordering, job.output.path, replace_existing=job.output.replace_existing)
    modules = 0 if ordering.layers is None else len(ordering.layers)
    counts = f"{len(ordering.adapters)} adapters, {modules} layers"
    streams.stderr.write(f"{clean_line(str(job.output.path))}: {counts}\n")
    streams.stderr.flush()
    return 0


def _created(job: CreateOrderingJob, progress: ProgressLine) -> Ordering:
    secret = token(job.token_source)
    config = companion(job.model, "config.json", token=secret, progress=progress)
    if config is None:
        hint = "name the safetensors model; a GGUF file's repository names it on its page"
        raise LoadError(f"{job.model} has no config.json, which says how many layers there are", hint=hint)
    modules = modules_of_config(JsonFields.read(config, hint="fetch config.json again"))
    if job.adapters is not None:
        layout = read_layout(job.adapters, job.names, as_lora=job.is_subset, token=secret, progress=progress)
        return derive_ordering(layout, modules, base=job.base_model_id)
    names, targets = job.names or (), job.target_modules or ()
    try:
        check_names(names)
    except UsageError as error:
        raise UsageError(f"--names {error.message}", hint="an adapter is called as its folder") from error
    for target in targets:
        if not layer_axis(modules, [named_modules([target])]):
            known = ", ".join(dict.fromkeys(module.rpartition(".")[2] for module in modules))
            raise UsageError(f"--target-modules: {target!r} is no module of {job.model}", hint=f"it has {known}")
    axis = layer_axis(modules, [named_modules(targets)])
    return Ordering(source=job.model, adapters=names, layers=axis, base_model_id=job.base_model_id)
