"""Which modules an adapter's configuration means, by the rules of peft."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from mistralrs.parsing import parse_nested

if TYPE_CHECKING:
    from mistralrs.adapters.lora.lora_config import LoraConfig

ALL_LINEAR = frozenset({"all-linear"})
MAX_PATTERN = 20_000
"""Characters of a regular expression."""
_MAX_REPEATS = 6
"""Repeated parts of a regular expression: the time that it takes grows with the length of names to this power."""
_REPEATED_GROUP = re.compile(r"(?<!\\)\)(?:[*+]|\{\d*,\d*\})")
_UNBOUNDED = re.compile(r"(?<!\\)(?:[*+]|\{\d*,\d*\})")


Rule = Callable[[str], bool]
"""Whether an adapter acts on the module of a path."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """A regular expression from a file."""

    text: str
    compiled: re.Pattern[str] = field(compare=False)


@lru_cache(maxsize=1024)
def checked_pattern(text: str) -> Pattern:
    """The regular expression ``text``. Raises ``ValueError`` for one that is none, or that could run for hours."""
    if len(text) > MAX_PATTERN:
        raise ValueError(f"which has more than {MAX_PATTERN} characters")
    if _REPEATED_GROUP.search(text):
        raise ValueError("which repeats a group: matching it may take hours")
    if len(_UNBOUNDED.findall(text)) > _MAX_REPEATS:
        raise ValueError(f"which repeats more than {_MAX_REPEATS} times: matching it may take hours")
    try:
        parse_nested(re.compile, f"({text})")  # as it is used within others
        return Pattern(text, parse_nested(re.compile, text))
    except (re.error, OverflowError, ValueError) as error:
        raise ValueError(f"which is no regular expression: {error}") from error


def targets_module(config: LoraConfig, path: str, *, linear: bool) -> bool:
    """Whether ``target_modules`` means the module at ``path``, such as ``model.layers.0.self_attn.q_proj``.

    ``linear``: whether it is one of the matrices that ``all-linear`` means.
    """
    targets = config.target_modules
    if targets is None or is_excluded(config, path):
        return False
    if isinstance(targets, Pattern):
        return targets.compiled.fullmatch(path) is not None
    if targets == ALL_LINEAR:
        return linear
    return path in targets or (ends_with_name(targets, path) and _in_layers(config, path))


def targets_parameter(config: LoraConfig, path: str) -> bool:
    """Whether ``target_parameters`` means the parameter at ``path``, such as ``model.layers.0.mlp.gate.weight``."""
    return ends_with_name(config.target_parameters, path)


def is_excluded(config: LoraConfig, path: str) -> bool:
    """Whether ``exclude_modules`` or ``modules_to_save`` keeps the adapter from the module at ``path``."""
    excluded = config.exclude_modules
    if isinstance(excluded, Pattern):
        if excluded.compiled.fullmatch(path):
            return True
    elif ends_with_name(excluded, path):
        return True
    return any(_inside(pattern.text).match(path) for pattern in config.modules_to_save)


def is_saved(config: LoraConfig, path: str) -> bool:
    """Whether ``modules_to_save`` means the module at ``path`` or one that it lies in.

    Here peft takes an entry for the end of a path, which need not follow a dot: ``norm`` means every norm.
    """
    pieces = path.split(".")
    outer = [".".join(pieces[:count]) for count in range(1, len(pieces) + 1)]
    return any(name.endswith(pattern.text) for name in outer for pattern in config.modules_to_save)


def ends_with_name(names: frozenset[str], path: str) -> bool:
    """Whether ``path`` is one of ``names``, or ends with one of them after a dot.

    Takes as long for ten thousand names as for one: mixtures of experts have so many modules, and some files name all.
    """
    rest = path
    while rest:
        if rest in names:
            return True
        rest = rest.partition(".")[2]
    return False


def named_modules(names: Iterable[str]) -> Rule:
    """Returns the rule that means the modules of these names, or whose paths end with one of them after a dot."""
    wanted = frozenset(names)
    return lambda path: ends_with_name(wanted, path)


def matched(patterns: Mapping[str, float], path: str, default: float) -> float:
    """The value of the first pattern that matches the end of ``path`` from a dot on, or ``default``."""
    for key, value in patterns.items():
        if _ending(key).match(path):
            return value
    return default


def _in_layers(config: LoraConfig, path: str) -> bool:
    if config.layers_to_transform is None:
        return True
    if not config.layers_pattern:
        found = re.match(r".*?\.[^.]*\.(?P<index>\d+)\.", path)
    else:
        tries = (_layer(pattern.text).match(path) for pattern in config.layers_pattern)
        found = next((match for match in tries if match), None)
    return found is not None and int(found["index"]) in config.layers_to_transform


@lru_cache(maxsize=1024)
def _inside(text: str) -> re.Pattern[str]:
    return re.compile(rf"(^|.*\.){text}($|\..*)")


@lru_cache(maxsize=1024)
def _ending(text: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({text})$")


@lru_cache(maxsize=1024)
def _layer(text: str) -> re.Pattern[str]:
    return re.compile(rf"(?:^|.*?\.){text}\.(?P<index>\d+)\.")
