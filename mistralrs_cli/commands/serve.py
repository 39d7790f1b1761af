"""Turns options into the server's settings, which are checked before a model is loaded, and starts the server.

Routes are in ``mistralrs.server``; no web framework is imported before the server starts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.options.declarations import DEFAULTS
from mistralrs.api.options.resolve import Origin, ResolvedOptions
from mistralrs.engine.config import SamplingParams
from mistralrs.errors import LoadError, UsageError
from mistralrs.files import read_text
from mistralrs.server.settings import ServerSettings
from mistralrs_cli.terminal.output import ProgressLine, Streams, clean_line

MAX_QUEUE = DEFAULTS.max_queue
"""The default length of the queue: twice the prompts that one request may have."""
_KEYS_BYTES = 1 << 20
_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^/?#@\s]+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ServeJob:
    """Serves a model over HTTP until the process is told to end."""

    source: ModelSource
    load: LoadOptions
    settings: ServerSettings


def serve_job(options: ResolvedOptions, source: ModelSource, load: LoadOptions, sampling: SamplingParams) -> ServeJob:
    """Returns the job that ``options`` describe. Raises ``UsageError``.

    ``sampling``: the defaults of a request's sampling parameters.
    """
    values = options.values
    assert values.port is not None
    keys = api_keys(options)
    if values.isolate_keys and not keys:
        hint = "add --api-key or --api-key-file, or leave it out"
        raise UsageError(f"{options.written('isolate_keys')} needs API keys", hint=hint)
    origin = options.written("cors_origin")
    settings = ServerSettings(
        host=values.serve_ip or DEFAULTS.serve_ip,
        port=values.port,
        model_name=_model_name(values.model_name, source, options.written("model_name")),
        strict=values.strict,
        strict_model=values.strict_model,
        truncate=values.truncate_sequence,
        sampling=sampling,
        api_keys=keys,
        isolate_keys=values.isolate_keys,
        cors_origins=tuple(_origin(each, origin) for each in values.cors_origin),
        tls_cert=values.ssl_certfile,
        tls_key=values.ssl_keyfile,
        log=values.log,
        log_bodies=values.log_bodies != "off",
        drain_seconds=values.drain_seconds,
        request_timeout=values.request_timeout,
        max_body_bytes=values.max_body,
        ui=not values.no_ui,
    )
    return ServeJob(source, replace(load, max_queue=values.max_queue), settings)


def run_serve(job: ServeJob, streams: Streams) -> int:
    """Serves, and returns the exit code. Raises as ``mistralrs.server.run.serve`` does."""
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


def api_keys(options: ResolvedOptions) -> tuple[str, ...]:
    """Returns the keys of ``--api-key`` and of the file of keys, wherever these are given.

    Raises ``UsageError`` for an invalid key, and for a file without any key, because a server that was meant to need a
    key must not be open.
    """
    named: list[tuple[str, Sequence[str]]] = []
    values = options.values
    if options.origin("api_key") is not Origin.DEFAULT:
        named.append((options.written("api_key"), values.api_key))
    if values.api_key_file is not None:
        where = f"{options.written('api_key_file')} {values.api_key_file}"
        named.append((where, _lines(values.api_key_file, options.written("api_key_file"))))
    for where, keys in named:
        if not keys:
            raise UsageError(f"{where}: no key in it", hint="a key a line, or leave it out to serve without")
        for key in keys:
            _check_key(where, key)
    return tuple(dict.fromkeys(key for _, keys in named for key in keys))


def _lines(path: Path, written: str) -> list[str]:
    try:
        text = read_text(path, limit=_KEYS_BYTES, hint="name a text file with a key a line", pipe=True)
    except LoadError as error:
        raise UsageError(f"{written} {error.message}", hint=error.hint) from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _check_key(where: str, key: str) -> None:
    """Raises ``UsageError`` for an invalid key. The message never repeats the key: it may be nearly right."""
    if not key:
        raise UsageError(f"{where}: a key is empty", hint="give its text, or leave it out to serve without")
    if any(character.isspace() or not character.isprintable() for character in key):
        raise UsageError(f"{where}: a key has a space or a control character", hint="no client could send it")


def _origin(given: str, written: str) -> str:
    if not _ORIGIN.fullmatch(given):
        raise UsageError(f"{written} {given}: not an origin", hint="write it as https://example.org, or '*' for all")
    return given.lower()


def _model_name(given: str | None, source: ModelSource, written: str) -> str:
    """Returns the model's id: as given, the repository, or the name of the file or folder without its ending."""
    if given is not None:
        if not given.strip() or not given.isprintable():
            raise UsageError(f"{written} {given!r} is no name", hint="give it some letters")
        return given
    if source.repo is not None:
        return source.repo.partition("@")[0]
    assert source.path is not None
    path = source.path.resolve()
    return path.name if path.is_dir() else path.stem
