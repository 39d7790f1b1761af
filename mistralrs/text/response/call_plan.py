"""Places of a tool call's name and arguments in a region's JSON, worked out from the region's ``transform``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mistralrs.text.response.region_values import PLACEHOLDER

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CallPlan:
    """Paths are from the object of one call; the empty one is that object itself."""

    name: str | None = None
    """The name, if it is always the same."""
    name_group: str | None = None
    """The group of the region's opening pattern that has the name."""
    name_paths: frozenset[Path] = frozenset()
    arguments_paths: frozenset[Path] = frozenset({("arguments",)})
    needs_arguments: bool = True
    """Whether a call without arguments is malformed; otherwise it has none."""
    in_array: bool | None = None
    """Whether the calls are in an array; None: both are read."""


def call_plan(transform: object, *, each: bool, opening: frozenset[str], closing: frozenset[str]) -> CallPlan | None:
    """The plan, or None if the parts of a call are known only when the region is complete.

    ``each``: the transform is for every member of an array. ``opening`` and ``closing`` are the names of groups.
    """
    if transform is None:
        names, arguments = ({(key,), ("function", key)} for key in ("name", "arguments"))
        return CallPlan(name_paths=frozenset(names), arguments_paths=frozenset(arguments), needs_arguments=False)
    function = transform.get("function", transform) if isinstance(transform, Mapping) else transform
    if isinstance(function, str):
        path = _path(function, each=each, groups=opening | closing)
        if path is None:
            return None
        return CallPlan(
            name_paths=frozenset({(*path, "name")}),
            arguments_paths=frozenset({(*path, "arguments")}),
            needs_arguments=False,
            in_array=each,
        )
    if not isinstance(function, Mapping):
        return None
    return _from_parts(function.get("name"), function.get("arguments"), each=each, opening=opening, closing=closing)


def _from_parts(
    name: object, arguments: object, *, each: bool, opening: frozenset[str], closing: frozenset[str]
) -> CallPlan | None:
    path = _path(arguments, each=each, groups=opening | closing)
    if path is None or not isinstance(name, str):
        return None
    paths = frozenset({path})
    placeholder = PLACEHOLDER.fullmatch(name)
    if placeholder is None:
        return CallPlan(name=name, arguments_paths=paths, in_array=each)
    if placeholder[1] in opening - closing and not each and placeholder[1] != "content":
        return CallPlan(name_group=placeholder[1], arguments_paths=paths, in_array=each)
    name_path = _path(name, each=each, groups=opening | closing)
    if name_path is None or name_path == path[: len(name_path)] or path == name_path[: len(path)]:
        return None
    return CallPlan(name_paths=frozenset({name_path}), arguments_paths=paths, in_array=each)


def _path(placeholder: object, *, each: bool, groups: frozenset[str]) -> Path | None:
    """The path that a placeholder names in the body, or in each member of it; None if it is none."""
    match = PLACEHOLDER.fullmatch(placeholder) if isinstance(placeholder, str) else None
    if match is None:
        return None
    root, *keys = match[1].split(".")
    if each:
        return None if root in groups else (root, *keys)
    return tuple(keys) if root == "content" else None
