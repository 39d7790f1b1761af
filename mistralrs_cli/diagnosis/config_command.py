"""Shows the options in force, the origin of each, and what each was stronger than."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mistralrs.api.options.config_file import find_config
from mistralrs.api.options.declarations import DECLARED, DEFAULTS
from mistralrs.api.options.option import Mode
from mistralrs.api.options.resolve import VARIABLES, Origin, ResolvedOptions, resolve_options
from mistralrs.user_dirs import user_folder
from mistralrs_cli.arguments.typer_parameters import shown_default
from mistralrs_cli.diagnosis.diagnosis_jobs import ConfigJob
from mistralrs_cli.terminal.output import Streams, clean_line

HIDDEN = "(hidden)"
"""Stands for a secret."""
_COLUMN = 24
"""The width of values; longer ones push their origin aside."""
_WORDS = {Origin.FLAG: "flag", Origin.ENVIRONMENT: "environment", Origin.FILE: "file", Origin.DEFAULT: "default"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One option."""

    option: str
    """Its word, as in the config file."""
    value: object
    """The value in force; secrets are hidden. None: the mode or the model decides."""
    origin: str
    """``flag``, ``environment``, ``file`` or ``default``."""
    written: str | None
    """The place that gave the value; None for a default."""
    over: list[str] = field(default_factory=list)
    """Weaker places that give the option too, and do not count."""
    default: str | None = None
    """The default as help shows it."""


def run_config(job: ConfigJob, streams: Streams) -> int:
    """Shows the options; returns the exit code."""
    found, environment = entries(job.options, os.environ), set_variables(os.environ)
    path = find_config(os.environ)
    if job.json:
        record = {
            "config_file": None if path is None else str(path),
            "options": [_record(entry) for entry in found],
            "variables": environment,
        }
        streams.stdout.write(json.dumps(record, ensure_ascii=False) + "\n")
    else:
        streams.stdout.writelines(f"{line}\n" for line in _page(path, found, environment))
    streams.stdout.flush()
    return 0


def entries(options: ResolvedOptions, environment: Mapping[str, str]) -> list[Entry]:
    """Returns all options that may stand elsewhere than on the command line, the strongest origin first."""
    weaker = [
        resolve_options({}, mode=Mode.CONFIG, environment=environment, config=None),
        resolve_options({}, mode=Mode.CONFIG, environment={}, config=options.config),
    ]
    found = []
    for name, declared in DECLARED.items():
        if declared.key is None:
            continue
        origin, value = options.origin(name), getattr(options.values, name)
        found.append(
            Entry(
                declared.key,
                _without_secret(name, value),
                _WORDS[origin],
                None if origin is Origin.DEFAULT else options.written(name),
                [each.written(name) for each in weaker if Origin.DEFAULT < each.origin(name) < origin],
                declared.shown_default or shown_default(getattr(DEFAULTS, name)),
            )
        )
    order = list(_WORDS.values())
    return sorted(found, key=lambda entry: order.index(entry.origin))


def set_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables that are no options and are set, with their values."""
    return {name: environment[name] for name in VARIABLES if environment.get(name)}


def _without_secret(name: str, value: object) -> object:
    if name == "api_key" and isinstance(value, tuple):
        return [HIDDEN for _ in value]
    if name == "token_source" and isinstance(value, str) and value.startswith("literal:"):
        return f"literal:{HIDDEN}"
    return value


def _record(entry: Entry) -> dict[str, object]:
    value = str(entry.value) if isinstance(entry.value, Path) else entry.value
    return {
        "option": entry.option,
        "value": value,
        "origin": entry.origin,
        "written": entry.written,
        "over": entry.over,
        "default": entry.default,
    }


def _page(path: Path | None, found: list[Entry], environment: Mapping[str, str]) -> Iterator[str]:
    yield f"config file  {_place(path)}"
    for name, value in environment.items():
        yield f"{name}={clean_line(value)}  ({VARIABLES[name]})"
    yield ""
    width = max(len(entry.option) for entry in found)
    for entry in found:
        place = "default" if entry.written is None else entry.written
        over = f", stronger than {' and '.join(entry.over)}" if entry.over else ""
        yield f"{entry.option:<{width}}  {_shown(entry) or '-':<{_COLUMN}}  {clean_line(place + over)}"


def _place(path: Path | None) -> str:
    if path is not None:
        return clean_line(str(path))
    if os.environ.get("MISTRALRS_CONFIG"):
        return "none, as MISTRALRS_CONFIG says"
    folder = user_folder("XDG_CONFIG_HOME", ".config", os.environ)
    return (
        "none, and no home folder that could have one" if folder is None else f"none; it would be {folder}/config.toml"
    )


def _shown(entry: Entry) -> str:
    value = entry.value
    if entry.written is None and entry.default is not None:
        return entry.default
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | tuple):
        return ", ".join(clean_line(str(each)) for each in value)
    return "" if value is None else clean_line(f"{value:g}" if isinstance(value, float) else str(value))
