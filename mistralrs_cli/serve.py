"""Serving: from options to the server's settings, checked before a model is loaded, and the call that serves.

Knows no route, and imports no framework before it serves.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mistralrs.api.local_model import LoadOptions, ModelSource
from mistralrs.engine.config import SamplingParams
from mistralrs.errors import LoadError, UsageError
from mistralrs.files import read_text
from mistralrs.server.settings import ServerSettings
from mistralrs_cli.global_options import GlobalOptions
from mistralrs_cli.output import ProgressLine, Streams, clean_line
from mistralrs_cli.values import byte_count, check_range, positive

MAX_QUEUE = 4096
"""Room for one request of as many prompts as there may be, and as much again."""
KEYS_VARIABLE = "MISTRALRS_API_KEY"
_KEYS_BYTES = 1 << 20
_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^/?#@\s]+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ServeJob:
    """Serve a model over HTTP until told to end."""

    source: ModelSource
    load: LoadOptions
    settings: ServerSettings


def serve_job(options: GlobalOptions, source: ModelSource, load: LoadOptions, sampling: SamplingParams) -> ServeJob:
    """The job that ``options`` ask for. Raises ``UsageError``.

    ``sampling`` is what a request gets that does not say.
    """
    assert options.port is not None
    check_range("--drain-seconds", options.drain_seconds, 0, 86_400)
    positive("--request-timeout", options.request_timeout, hint="give seconds, or leave it out for any time")
    defaults = ServerSettings()
    keys = api_keys(options, os.environ.get(KEYS_VARIABLE))
    if options.isolate_keys and not keys:
        raise UsageError("--isolate-keys needs API keys", hint="add --api-key or --api-key-file, or leave it out")
    settings = ServerSettings(
        host=options.serve_ip or defaults.host,
        port=options.port,
        model_name=_model_name(options.model_name, source),
        strict=options.strict,
        strict_model=options.strict_model,
        truncate=options.truncate_sequence,
        sampling=sampling,
        api_keys=keys,
        isolate_keys=options.isolate_keys,
        cors_origins=tuple(map(_origin, options.cors_origin or ())),
        tls_cert=options.ssl_certfile,
        tls_key=options.ssl_keyfile,
        log=options.log,
        log_bodies=options.log_bodies != "off",
        drain_seconds=defaults.drain_seconds if options.drain_seconds is None else options.drain_seconds,
        request_timeout=options.request_timeout,
        max_body_bytes=byte_count("--max-body", options.max_body) if options.max_body else defaults.max_body_bytes,
    )
    max_queue = MAX_QUEUE if options.max_queue is None else options.max_queue
    return ServeJob(source, replace(load, max_queue=max_queue), settings)


def run_serve(job: ServeJob, streams: Streams) -> int:
    """Serve, and return the exit code. Raises what ``mistralrs.server.run.serve`` does."""
    from mistralrs.server.run import serve

    progress = ProgressLine(streams.stderr)

    def announce(line: str) -> None:
        progress.clear()
        streams.stderr.write(f"{clean_line(line)}\n")
        streams.stderr.flush()

    try:
        return serve(job.source, job.load, job.settings, progress=progress, announce=announce)
    finally:
        progress.clear()


def api_keys(options: GlobalOptions, variable: str | None) -> tuple[str, ...]:
    """The keys of the options or, without any of these, of the environment's ``variable``.

    Raises ``UsageError`` for what cannot be a key, and where keys were asked for and there are none: a server that was
    to be closed must not be open.
    """
    named: list[tuple[str, Sequence[str]]] = []
    if options.api_key:
        named.append(("--api-key", options.api_key))
    if options.api_key_file is not None:
        named.append((f"--api-key-file {options.api_key_file}", _lines(options.api_key_file)))
    if not named and variable is not None:
        named.append((KEYS_VARIABLE, [key.strip() for key in variable.split(",")]))
    for where, keys in named:
        if not keys:
            raise UsageError(f"{where}: no key in it", hint="a key a line, or leave it out to serve without")
        for key in keys:
            _check_key(where, key)
    return tuple(dict.fromkeys(key for _, keys in named for key in keys))


def _lines(path: Path) -> list[str]:
    try:
        text = read_text(path, limit=_KEYS_BYTES, hint="name a text file with a key a line", pipe=True)
    except LoadError as error:
        raise UsageError(f"--api-key-file {error.message}", hint=error.hint) from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _check_key(where: str, key: str) -> None:
    """The key is not repeated in the message: it may be right but for a slip."""
    if not key:
        raise UsageError(f"{where}: a key is empty", hint="give its text, or leave it out to serve without")
    if any(character.isspace() or not character.isprintable() for character in key):
        raise UsageError(f"{where}: a key has a space or a control character", hint="no client could send it")


def _origin(given: str) -> str:
    if not _ORIGIN.fullmatch(given):
        raise UsageError(
            f"--cors-origin {given}: not an origin", hint="write it as https://example.org, or '*' for all"
        )
    return given.lower()


def _model_name(given: str | None, source: ModelSource) -> str:
    """The model's id: as given, the repository, or the name of the file or folder without its ending."""
    if given is not None:
        if not given.strip() or not given.isprintable():
            raise UsageError(f"--model-name {given!r} is no name", hint="give it some letters")
        return given
    if source.repo is not None:
        return source.repo.partition("@")[0]
    assert source.path is not None
    path = source.path.resolve()
    return path.name if path.is_dir() else path.stem
