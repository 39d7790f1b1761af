"""Merges options from the defaults, the config file, the environment and the flags, each stronger than those before."""

from __future__ import annotations

import difflib
import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mistralrs.api.options.config_file import ConfigFile
from mistralrs.api.options.declarations import DECLARED, Options, types
from mistralrs.api.options.option import ALL, Mode
from mistralrs.api.options.values import check_value, parse_text, without_none

VARIABLES: Mapping[str, str] = {
    "MISTRALRS_CONFIG": "The config file, instead of the one in the user's config folder; /dev/null: none.",
    "MISTRALRS_DEBUG": "Show tracebacks, as --debug does; 0 or nothing: do not.",
    "MISTRALRS_DEFAULT_MODEL": "The file of the default model.",
    "MISTRALRS_KERNELS": "Another library of kernels to load.",
    "MISTRALRS_NO_NATIVE": "1: compute without the kernels, slower.",
}
"""Environment variables that are no options, with their meaning."""
_OF_TESTS = "MISTRALRS_TEST_"
"""The prefix of variables that only the project's own tests and scripts read."""
_BY_VARIABLE = {option.variable: name for name, option in DECLARED.items() if option.variable is not None}


class Origin(enum.IntEnum):
    """The origin of a value; a larger one is stronger."""

    DEFAULT = 0
    FILE = 1
    ENVIRONMENT = 2
    FLAG = 3


@dataclass(frozen=True, slots=True)
class ResolvedOptions:
    """The values in force, and their origins."""

    values: Options
    origins: Mapping[str, Origin]
    """The origins by option; options with their default value are absent."""
    config: ConfigFile | None

    def origin(self, name: str) -> Origin:
        """Returns the origin of an option's value."""
        return self.origins.get(name, Origin.DEFAULT)

    def written(self, name: str) -> str:
        """Returns the option as the user wrote it: ``--threads``, ``MISTRALRS_THREADS`` or ``FILE: threads``."""
        return _written(name, self.origin(name), self.config)


def resolve_options(
    flags: Mapping[str, object], *, mode: Mode | None, environment: Mapping[str, str], config: ConfigFile | None
) -> ResolvedOptions:
    """Returns the options of a command. ``flags`` holds those that were typed, by the names of their fields.

    A value of the file or the environment is always checked, and counts only in the modes that its option applies to,
    because other calls read it too; ``config`` shows them all. Raises ``UsageError`` that names the origin.
    """
    layers: tuple[tuple[Origin, Mapping[str, object]], ...] = (
        (Origin.FILE, config.values if config else {}),
        (Origin.ENVIRONMENT, _from_environment(environment)),
        (Origin.FLAG, flags),
    )
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    for origin, layer in layers:
        for name, value in layer.items():
            written = _written(name, origin, config)
            checked = check_value(DECLARED[name], without_none(types()[name]), value, written=written)
            if origin is Origin.FLAG or _means_something(name, mode):
                values[name], origins[name] = checked, origin
    for name in _outdone(origins):
        del values[name], origins[name]
    return ResolvedOptions(Options(**values), origins, config)


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Returns a sentence for each variable that looks like one of ours and is not read."""
    return [
        f"{variable} is not read: {_advice(variable)}"
        for variable in sorted(environment)
        if variable.startswith("MISTRALRS_")
        and not variable.startswith(_OF_TESTS)
        and variable not in _BY_VARIABLE
        and variable not in VARIABLES
    ]


def _advice(variable: str) -> str:
    flag = f"--{variable.removeprefix('MISTRALRS_').replace('_', '-').lower()}"
    if any(flag in option.flags and not option.is_shared for option in DECLARED.values()):
        return f"{flag} is for the command line alone"
    if renamed := [option.variable for option in DECLARED.values() if flag in option.flags]:
        return f"did you mean {renamed[0]}?"
    words = [name.removeprefix("MISTRALRS_") for name in (*_BY_VARIABLE, *VARIABLES) if name is not None]
    nearest = difflib.get_close_matches(variable.removeprefix("MISTRALRS_").upper(), words, n=1)
    return f"did you mean MISTRALRS_{nearest[0]}?" if nearest else "no option has this name"


def _from_environment(environment: Mapping[str, str]) -> dict[str, object]:
    found = {}
    for variable, name in _BY_VARIABLE.items():
        text = environment.get(variable)
        option = DECLARED[name]
        if text is not None and (text.strip() or option.empty_counts):
            found[name] = parse_text(option, without_none(types()[name]), text, written=variable)
    return found


def _means_something(name: str, mode: Mode | None) -> bool:
    modes = DECLARED[name].modes
    return mode is Mode.CONFIG or modes == ALL or mode in modes


def _outdone(origins: Mapping[str, Origin]) -> list[str]:
    """Returns the options that mean the same as another one from a stronger origin."""
    strongest: dict[str, Origin] = {}
    for name, origin in origins.items():
        group = DECLARED[name].together
        if group is not None:
            strongest[group] = max(origin, strongest.get(group, origin))
    return [name for name, origin in origins.items() if origin < strongest.get(DECLARED[name].together or "", origin)]


def _written(name: str, origin: Origin, config: ConfigFile | None) -> str:
    option = DECLARED[name]
    if origin is Origin.ENVIRONMENT and option.variable is not None:
        return option.variable
    if origin is Origin.FILE and config is not None:
        return f"{config.path}: {option.key}"
    return option.flags[0]
