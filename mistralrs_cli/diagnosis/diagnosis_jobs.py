"""The jobs of the commands here: their data, and how options become them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mistralrs.api.load_options import ModelSource
from mistralrs.api.options.declarations import DECLARED
from mistralrs.api.options.kv_flags import KvCacheDtype
from mistralrs.api.options.resolve import Origin, ResolvedOptions
from mistralrs.api.options.values import byte_count
from mistralrs.errors import UsageError
from mistralrs_cli.arguments.source_options import source_at
from mistralrs_cli.diagnosis.diagnosis_options import (
    ConfigOptions,
    DiagnosisOptions,
    DoctorOptions,
    TuneOptions,
    VerifyOptions,
)

if TYPE_CHECKING:
    from mistralrs_cli.server_client.server_connection import Server


@dataclass(frozen=True, slots=True)
class ConfigJob:
    """Shows the options in force, and where each comes from."""

    options: ResolvedOptions
    json: bool


@dataclass(frozen=True, slots=True)
class DoctorJob:
    """Examines this machine."""

    hub: bool
    """Ask the hub whether it answers."""
    json: bool


@dataclass(frozen=True, slots=True)
class ApiJob:
    """Checks a server."""

    server: Server
    model_name: str | None
    """None: the first of the server's models."""
    json: bool


@dataclass(frozen=True, slots=True)
class VerifyJob:
    """Verifies the files of a model."""

    path: Path
    sha256: str | None
    json: bool


@dataclass(frozen=True, slots=True)
class TuneJob:
    """Shows what fits into the memory."""

    source: ModelSource
    row: str
    """The words that name the model on a command line."""
    token_source: str
    memory: int | None
    """Bytes; None: what is free."""
    kv_cache_dtype: KvCacheDtype
    """The type of keys and values in the KV cache; ``auto``: the default one."""
    json: bool


DiagnosisJob = ConfigJob | DoctorJob | ApiJob | VerifyJob | TuneJob
"""The jobs of the commands here."""


def diagnosis_job(words: DiagnosisOptions, options: ResolvedOptions) -> DiagnosisJob:
    """Returns the job of a command; ``options`` are those before it. Raises ``UsageError`` and ``LoadError``."""
    if isinstance(words, ConfigOptions):
        return ConfigJob(options, words.json)
    if isinstance(words, VerifyOptions):
        return _verify_job(words)
    return _tune_job(words, options) if isinstance(words, TuneOptions) else _doctor_job(words, options)


def _verify_job(words: VerifyOptions) -> VerifyJob:
    if words.sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", words.sha256):
        raise UsageError("--sha256 takes 64 hexadecimal digits", hint="sha256sum FILE prints them")
    return VerifyJob(words.file, words.sha256, words.json)


def _tune_job(words: TuneOptions, options: ResolvedOptions) -> TuneJob:
    row = ["auto", words.source]
    row += ["-f", words.filename] if words.filename else []
    row += ["--gqa", str(words.gqa)] if words.gqa else []
    return TuneJob(
        source_at(words.source, words.filename, gqa=words.gqa or 1),
        shlex.join(row),
        options.values.token_source,
        None if words.memory is None else byte_count("--memory", words.memory),
        options.values.kv_cache_dtype,
        words.json,
    )


def _doctor_job(words: DoctorOptions, options: ResolvedOptions) -> DoctorJob | ApiJob:
    if words.api is None:
        for name in ("api_key", "model_name"):
            if options.origin(name) is Origin.FLAG:
                flag = DECLARED[name].flags[0]
                raise UsageError(f"{flag} is for a server", hint=f"name it with doctor --api, or leave {flag} out")
        return DoctorJob(words.hub, words.json)
    if words.hub:
        raise UsageError("--hub is about this machine, --api about a server", hint="give one of them")
    # here: the other commands have no server, and need not import what speaks to one
    from mistralrs_cli.arguments.server_choice import key_of
    from mistralrs_cli.server_client.server_address import ServerAddress
    from mistralrs_cli.server_client.server_connection import Server

    address = ServerAddress.parse(words.api, written="--api")
    return ApiJob(Server(address, key_of(options)), options.values.model_name, words.json)
