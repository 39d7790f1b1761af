"""The jobs of the subcommands that need no model in this process: their data, and how options become them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mistralrs.api.load_options import ModelSource
from mistralrs.api.loaded_adapters.adapter_options import AdapterSource
from mistralrs.api.options.declarations import DEFAULTS
from mistralrs.api.options.kv_flags import KvCacheDtype
from mistralrs.api.options.option import Mode
from mistralrs.api.selectors.named_adapters import named_adapters
from mistralrs.errors import UsageError
from mistralrs.quant.quantize import isq_type
from mistralrs_cli.adapter_commands.adapter_jobs import AdapterInspectJob, AdapterJob, AdapterOptions, adapter_job
from mistralrs_cli.adapter_commands.ordering_job import OrderingJob, ordering_job
from mistralrs_cli.arguments.source_options import FORMATTER, source_at
from mistralrs_cli.commands.chats_job import ChatsJob, chats_job
from mistralrs_cli.commands.serve import ServeJob
from mistralrs_cli.commands.utility_options import (
    ChatsOptions,
    InspectOptions,
    ModelsOptions,
    ModelToolOptions,
    OrderingCreateOptions,
    OrderingRenameOptions,
    QuantizeOptions,
)
from mistralrs_cli.diagnosis.diagnosis_jobs import DiagnosisJob
from mistralrs_cli.diagnosis.diagnosis_options import (
    ConfigOptions,
    DiagnosisOptions,
    DoctorOptions,
    TuneOptions,
    VerifyOptions,
)

_MODES = (
    (InspectOptions, Mode.INSPECT),
    (ModelsOptions, Mode.MODELS),
    (ChatsOptions, Mode.CHATS),
    (QuantizeOptions, Mode.QUANTIZE),
    (OrderingCreateOptions, Mode.ORDERING_CREATE),
    (OrderingRenameOptions, Mode.ORDERING_RENAME),
    (AdapterOptions, Mode.ADAPTER),
    (ConfigOptions, Mode.CONFIG),
    (DoctorOptions, Mode.DOCTOR),
    (VerifyOptions, Mode.VERIFY),
    (TuneOptions, Mode.TUNE),
)


@dataclass(frozen=True, slots=True)
class InspectJob:
    """Describes a model."""

    source: ModelSource
    adapters: tuple[AdapterSource, ...]
    token_source: str
    json: bool
    precision: str = DEFAULTS.precision
    """The precision that a run with these options has."""
    kv_cache_dtype: KvCacheDtype = DEFAULTS.kv_cache_dtype
    """The type of keys and values in its KV cache; ``auto``: that of the precision."""


@dataclass(frozen=True, slots=True)
class ModelsJob:
    """Lists the models on this machine, or deletes one."""

    delete: str | None
    """The repository to delete; None: list all."""
    yes: bool
    json: bool


@dataclass(frozen=True, slots=True)
class QuantizeJob:
    """Writes ``source`` to ``out`` with weights of ``type``, a key of ``quant.quantize.ISQ_TYPES``."""

    source: ModelSource
    token_source: str
    out: Path
    type: str


UtilityCommand = InspectJob | ModelsJob | ChatsJob | QuantizeJob | OrderingJob | AdapterJob | ServeJob | DiagnosisJob
"""The jobs that need no model in this process."""


def utility_command(
    options: ModelToolOptions,
    token_source: str,
    *,
    precision: str = DEFAULTS.precision,
    kv_cache_dtype: KvCacheDtype = DEFAULTS.kv_cache_dtype,
) -> UtilityCommand:
    """Returns the job of a subcommand that needs no model in this process. Raises ``UsageError`` and ``LoadError``."""
    if isinstance(options, InspectOptions):
        source = source_at(options.source, options.filename, gqa=options.gqa or 1)
        adapters = named_adapters(options.lora or (), FORMATTER)
        return InspectJob(source, adapters, token_source, options.json, precision, kv_cache_dtype)
    if isinstance(options, OrderingCreateOptions | OrderingRenameOptions):
        return ordering_job(options, token_source)
    if isinstance(options, AdapterOptions):
        return adapter_job(options, token_source)
    if isinstance(options, ChatsOptions):
        return chats_job(options)
    return _models_job(options) if isinstance(options, ModelsOptions) else _quantize_job(options, token_source)


def mode_of_tool(options: ModelToolOptions | DiagnosisOptions) -> Mode:
    """Returns the mode of a subcommand that needs no model in this process."""
    return next(mode for options_class, mode in _MODES if isinstance(options, options_class))


def tool_writes_answers(job: UtilityCommand) -> bool:
    """Returns whether a job writes its result to stdout; serving, writing files and deleting do not."""
    if isinstance(job, ModelsJob):
        return job.delete is None
    if isinstance(job, ChatsJob):
        return job.writes_answer
    if isinstance(job, OrderingJob):
        return job.output.path is None
    return isinstance(job, InspectJob | AdapterInspectJob | DiagnosisJob)


def _quantize_job(words: QuantizeOptions, token_source: str) -> QuantizeJob:
    wanted = isq_type(words.type).name.lower()
    if words.out.suffix != ".gguf":
        raise UsageError(f"{words.out} is to be a GGUF file", hint="give it a name that ends in .gguf")
    if words.out.exists():
        raise UsageError(f"{words.out} is there already", hint="remove it, or give another name")
    if not words.out.parent.is_dir():
        raise UsageError(f"{words.out.parent} is no folder", hint="make it first")
    return QuantizeJob(source_at(words.source, None), token_source, words.out, wanted)


def _models_job(words: ModelsOptions) -> ModelsJob:
    if words.action == "list":
        if words.name or words.yes:
            extra = words.name or "--yes"
            raise UsageError(f"models list takes no {extra}", hint="mistralrs models delete OWNER/NAME deletes a model")
        return ModelsJob(None, yes=False, json=words.json)
    if not words.name:
        raise UsageError("models delete needs the name of a model", hint="mistralrs models lists them")
    if words.json:
        raise UsageError("--json is for the list", hint="leave it out")
    return ModelsJob(words.name, yes=words.yes, json=False)
