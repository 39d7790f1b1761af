"""The modules that an adapter acts on, as peft chooses them: a rule made of the fields of `adapter_config.json`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from mistralrs.adapters.json_fields import JsonFields
from mistralrs.adapters.layer_axis import EMBED_TOKENS, LM_HEAD
from mistralrs.loading.cursor import shown
from mistralrs.models.architecture import MAX_LAYERS

Rule = Callable[[str], bool]

ALL_LINEAR = "all-linear"
_MAX_PATTERN = 1000
"""Characters of a regular expression, at most."""
_MAX_REPEATS = 6
"""Unbounded repeats in it, at most: a match takes time that grows with the length of names to this power."""
_REPEAT = r"(?<!\\)(?:[*+]|\{\d*,\d*\})"
_REPEATED_GROUP = r"(?<!\\)\)(?:[*+]|\{\d*,\d*\})"


def named_modules_rule(names: Sequence[str]) -> Rule:
    """A rule that chooses modules by name: by the whole name, or by its last parts."""
    wanted = frozenset(names)

    def chooses(module: str) -> bool:
        parts = module.split(".")
        return any(".".join(parts[start:]) in wanted for start in range(len(parts)))

    return chooses


def target_rule(config: JsonFields) -> Rule:
    """The rule of ``target_modules``, ``exclude_modules``, ``layers_to_transform`` and ``layers_pattern``.

    Raises ``FormatError`` for a field that is missing, of another kind, or no regular expression.
    """
    included = _rule(config, "target_modules")
    if included is None:
        config.refuse("target_modules", "is missing, expected a list of modules, a regular expression or all-linear")
    excluded = _rule(config, "exclude_modules")
    layers = _layers_rule(config) if isinstance(config.content["target_modules"], list) else None

    def chooses(module: str) -> bool:
        if excluded is not None and excluded(module):
            return False
        return included(module) and (layers is None or layers(module))

    return chooses


def _rule(config: JsonFields, key: str) -> Rule | None:
    value = config.content.get(key)
    if not isinstance(value, str):
        names = config.texts(key)
        return named_modules_rule(names) if names else None
    if value == ALL_LINEAR and key == "target_modules":
        return lambda module: module not in (EMBED_TOKENS, LM_HEAD)
    pattern = _compiled(config, key, value)
    return lambda module: pattern.fullmatch(module) is not None


def _compiled(config: JsonFields, key: str, text: str) -> re.Pattern[str]:
    if len(text) > _MAX_PATTERN:
        config.refuse(key, f"has {len(text)} characters, expected a regular expression of at most {_MAX_PATTERN}")
    if re.search(_REPEATED_GROUP, text) or len(re.findall(_REPEAT, text)) > _MAX_REPEATS:
        most = f"at most {_MAX_REPEATS} repeats, none of them of a group"
        config.refuse(key, f"is {shown(text)}, which may take hours to match, expected {most}")
    try:
        return re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        config.refuse(key, f"is no regular expression: {error}")


def _layers_rule(config: JsonFields) -> Rule | None:
    """The rule of ``layers_to_transform``; None: there is none. It means nothing beside a regular expression."""
    value = config.content.get("layers_to_transform")
    if value is None or value == []:
        return None
    numbers = value if isinstance(value, list) else [value]
    if any(type(each) is not int or not 0 <= each < MAX_LAYERS for each in numbers):
        config.refuse("layers_to_transform", "is not a layer or a list of layers, expected whole numbers from 0 on")
    given = config.content.get("layers_pattern")
    names = ([given] if given else []) if isinstance(given, str | None) else config.texts("layers_pattern") or ()
    sources = [rf".*\.{name}\.(?P<layer>\d+)\." for name in names] or [r".*\.[^.]*\.(?P<layer>\d+)\."]
    patterns = [_compiled(config, "layers_pattern", source) for source in sources]
    wanted = frozenset(numbers)

    def chooses(module: str) -> bool:
        match = next((found for pattern in patterns if (found := pattern.match(module))), None)
        return match is not None and int(match["layer"]) in wanted

    return chooses
