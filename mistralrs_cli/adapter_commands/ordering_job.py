"""What the words after ``ordering`` ask for: refuses what does not fit together."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mistralrs.errors import UsageError
from mistralrs_cli.commands.utility_options import OrderingCreateOptions, OrderingRenameOptions


@dataclass(frozen=True, slots=True)
class OrderingOutput:
    """Where an ordering goes."""

    path: Path | None
    """None: stdout."""
    replace_existing: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateOrderingJob:
    """Make an ordering of the adapters of ``model``."""

    model: str
    base_model_id: str
    adapters: str | None
    """A folder or hub repository; None: ``names`` and ``target_modules`` say all."""
    names: tuple[str, ...] | None
    """None: those of X-LoRA's config."""
    is_subset: bool
    """``names`` may leave out adapters of X-LoRA's config."""
    target_modules: tuple[str, ...] | None
    """None: those of the adapters."""
    token_source: str
    output: OrderingOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class RenameOrderingJob:
    """Give the adapters of an ordering other names."""

    file: Path
    names: tuple[str, ...]
    output: OrderingOutput


OrderingJob = CreateOrderingJob | RenameOrderingJob


def ordering_job(options: OrderingCreateOptions | OrderingRenameOptions, token_source: str) -> OrderingJob:
    """The job that the options ask for. Raises ``UsageError`` where they do not fit together."""
    output = _output(options.out, force=options.force)
    if isinstance(options, OrderingRenameOptions):
        return RenameOrderingJob(file=options.file, names=_list(options.names, "--names"), output=output)
    names = None if options.names is None else _list(options.names, "--names")
    modules = None if options.target_modules is None else _list(options.target_modules, "--target-modules")
    if options.adapters is None and (names is None or modules is None):
        raise UsageError(
            "which adapters there are and where they act is not known",
            hint="name their folder or repository with --adapters, or give both --names and --target-modules",
        )
    if options.adapters is not None and modules is not None:
        raise UsageError(
            "--adapters and --target-modules exclude each other",
            hint="the adapters' configs say where they act: leave --target-modules out",
        )
    if options.subset and (options.adapters is None or names is None):
        raise UsageError("--subset needs --adapters and --names", hint="name the adapters to keep with --names")
    return CreateOrderingJob(
        model=options.model,
        base_model_id=options.base_model_id or options.model,
        adapters=options.adapters,
        names=names,
        is_subset=options.subset,
        target_modules=modules,
        token_source=token_source,
        output=output,
    )


def _output(path: Path | None, *, force: bool) -> OrderingOutput:
    if path is None:
        if force:
            raise UsageError("--force needs --out", hint="name the file, or leave --force out")
        return OrderingOutput(None, replace_existing=False)
    if os.path.lexists(path) and not force:
        raise UsageError(f"{path} is there already", hint="give another name, or add --force to replace it")
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"{path} cannot be the name of a new file", hint="give the name of a file in a folder here")
    return OrderingOutput(path, replace_existing=force)


def _list(text: str, option: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split(","))
    if not all(parts):
        raise UsageError(f"{option} {text!r} has an empty name", hint=f"write it as {option} NAME,NAME")
    return parts
