"""Reads ``config.toml`` in the user's config folder: one key for each option, no sections."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_origin

from mistralrs.api.options.declarations import DECLARED, types
from mistralrs.api.options.values import without_none
from mistralrs.errors import LoadError, UsageError
from mistralrs.files import read_text
from mistralrs.parsing import parse_nested
from mistralrs.user_dirs import expand_user, user_folder

VARIABLE = "MISTRALRS_CONFIG"
CONFIG_BYTES = 1 << 20
_BY_KEY = {option.key: name for name, option in DECLARED.items() if option.key is not None}
_EXAMPLE = 'a line of it looks like: kv-memory = "4G"'


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A config file that was read."""

    path: Path
    values: Mapping[str, object]
    """Values of the right type, by the names of the options' fields; their ranges are not checked yet."""


def find_config(environment: Mapping[str, str]) -> Path | None:
    """Returns the config file's path; None: there is none. Raises ``UsageError`` if one is named that does not exist.

    ``MISTRALRS_CONFIG`` names it, where that is set; otherwise it is in the user's config folder.
    """
    named = environment.get(VARIABLE, "")
    if named:
        if named == os.devnull:
            return None
        path = expand_user(named)
        if not os.path.lexists(path):
            raise UsageError(f"{VARIABLE}: {path} does not exist", hint=f"{VARIABLE}={os.devnull} does without a file")
        return path
    folder = user_folder("XDG_CONFIG_HOME", ".config", environment)
    return folder / "config.toml" if folder is not None and os.path.lexists(folder / "config.toml") else None


def read_config(environment: Mapping[str, str]) -> ConfigFile | None:
    """Returns the content of the config file; None: there is none.

    Raises ``UsageError`` for a file that cannot be read or is not TOML, for keys that are no option, and for values of
    another type than the option's.
    """
    path = find_config(environment)
    if path is None:
        return None
    import tomllib  # takes milliseconds that a start without a file need not spend

    try:
        table = parse_nested(tomllib.loads, read_text(path, limit=CONFIG_BYTES, hint=_EXAMPLE))
    except LoadError as error:
        raise UsageError(error.message, hint=error.hint) from error
    except ValueError as error:
        raise UsageError(f"{path} is not TOML: {str(error)[:200]}", hint=_EXAMPLE) from error
    values = {}
    for key, value in table.items():
        name = _BY_KEY.get(key)
        if name is None:
            raise UsageError(f"{path}: {key[:100]}: {_refusal(key, value)}", hint=_advice(key, value))
        values[name] = _typed(name, value, path)
    return ConfigFile(path, values)


def _refusal(key: str, value: object) -> str:
    if _is_flag(key):
        return "an option for the command line alone"
    return "the file has no sections" if isinstance(value, dict) else "no such option"


def _advice(key: str, value: object) -> str:
    if _is_flag(key):
        return f"leave it out, and type --{key}"
    if isinstance(value, dict):
        return f"leave out the line [{key[:100]}]; each key is an option"
    nearest = difflib.get_close_matches(key[:100].replace("_", "-").lower(), list(_BY_KEY), n=1)
    return f"did you mean {nearest[0]}?" if nearest else "keys are the long options without dashes: mistralrs --help"


def _is_flag(key: str) -> bool:
    return key not in _BY_KEY and any(f"--{key}" in option.flags for option in DECLARED.values())


def _typed(name: str, value: Any, path: Path) -> object:
    """Returns the value in its option's type. Errors never repeat the value, which may be a secret key."""
    option, hint = DECLARED[name], without_none(types()[name])
    if get_origin(hint) is tuple:
        if isinstance(value, str):
            return (value,)
        if isinstance(value, list) and all(isinstance(each, str) for each in value):
            return tuple(value)
        expected = "a text, or a list of texts"
    elif hint is bool:
        if isinstance(value, bool):
            return value
        expected = "true or false"
    elif option.is_size:
        if isinstance(value, int | str) and not isinstance(value, bool):
            return value
        expected = 'a size such as "512M"'
    elif hint in (int, float):
        if isinstance(value, int if hint is int else int | float) and not isinstance(value, bool):
            return _number(hint, value)
        expected = "a whole number" if hint is int else "a number"
    else:
        if isinstance(value, str):
            is_path = hint is Path or value.endswith(option.file_endings)
            return hint(path.parent / expand_user(value)) if is_path else value
        expected = "a text in quotes"
    raise UsageError(f"{path}: {option.key} must be {expected}", hint="see docs/cli.md for what each option takes")


def _number(kind: type, value: float) -> float:
    """Returns the number as ``kind``; a whole number of thousands of digits stays whole, and its range refuses it."""
    try:
        number: float = kind(value)
    except OverflowError:
        return value
    return number
