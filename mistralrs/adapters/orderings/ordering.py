"""Ordering files: which adapters there are, in the order of training, and each module's place on the layer axis.

A file is ``{"order": [NAME, ...], "layers": {MODULE: PLACE, ...}, "base_model_id": ID}``, as mistral.rs has it.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mistralrs.adapters.json_fields import JsonFields
from mistralrs.errors import LoadError, UsageError
from mistralrs.loading.cursor import shown

MAX_ADAPTERS = 1024
"""Adapters of one ordering, at most."""
_MAX_NAME = 255
"""Characters of an adapter's name, at most: it is the name of a folder."""
_LATER = {
    "preload_adapters": "adapters to have beside those of the ordering are given as --lora NAME=SOURCE: remove this key"
}
"""Keys that later releases of mistral.rs know, and what does the same here."""
_HINT = "mistralrs ordering create makes a valid file from a model and its adapters"
_PACKAGE = Path(__file__).parents[2]
_SHIPPED = "orderings"
_PLACES = (_PACKAGE / _SHIPPED, _PACKAGE.parent / _SHIPPED)
"""The wheel's copy of `orderings/`, and that of a checkout."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordering:
    """Adapters in training order, and the layer axis. An adapter's place is its class of X-LoRA's classifier."""

    source: str
    """Where it came from, for errors: the path of its file, or the adapters that it was derived from."""
    adapters: tuple[str, ...]
    layers: tuple[str, ...] | None = None
    """Full names of modules; a module's index is its place. None: the file leaves them to the adapters' configs."""
    base_model_id: str | None = None


def find_ordering(path: Path) -> Path:
    """``path``; if nothing is there and it is ``orderings/NAME.json``, the file of this name that ships with the
    project."""
    if not path.exists() and path.parent == Path(_SHIPPED):
        return next((file for place in _PLACES if (file := place / path.name).is_file()), path)
    return path


def read_ordering(path: Path) -> Ordering:
    """The ordering in a file; ``path`` as for ``find_ordering``.

    Raises ``LoadError`` if it cannot be read, and ``FormatError`` with file, key and what was expected for a key that
    is missing, not known or of another kind, an adapter that is named twice or cannot be the name of a folder, and
    places that are not each of 0, 1, 2, ... once.
    """
    fields = JsonFields.read(find_ordering(path), hint=_HINT)
    for key, hint in _LATER.items():
        if key in fields.content:
            fields.refuse(key, "is not supported in an ordering", hint=hint)
    fields.refuse_unknown({"order", "layers", "base_model_id"})
    adapters = fields.texts("order")
    if not adapters:
        fields.refuse("order", "is missing or empty, expected the adapters' names in the order of training")
    try:
        check_names(adapters)
    except UsageError as error:
        fields.refuse("order", error.message)
    return Ordering(
        source=str(fields.path),
        adapters=adapters,
        layers=_layers(fields),
        base_model_id=fields.text("base_model_id"),
    )


def _layers(fields: JsonFields) -> tuple[str, ...] | None:
    layers = fields.content.get("layers")
    if layers is None:
        return None
    if not isinstance(layers, dict) or not layers:
        fields.refuse("layers", f"is {shown(layers)}, expected an object of modules and their places")
    names: dict[int, str] = {}
    for name, place in layers.items():
        if type(place) is not int or not 0 <= place < len(layers):
            expected = f"expected a whole number from 0 to {len(layers) - 1}, as there are {len(layers)} modules"
            fields.refuse(f"layers, {shown(name)}", f"is {shown(place)}, {expected}")
        if place in names:
            fields.refuse(f"layers, {shown(name)}", f"is {place}, expected a place that {names[place]} does not have")
        names[place] = name
    return tuple(names[place] for place in range(len(names)))


def check_names(names: Sequence[str]) -> None:
    """Raises ``UsageError`` for names that occur twice, are too many, or cannot be those of folders."""
    if len(names) > MAX_ADAPTERS:
        raise UsageError(f"has {len(names)} adapters, expected at most {MAX_ADAPTERS}")
    seen: set[str] = set()
    for name in names:
        if not 1 <= len(name) <= _MAX_NAME or name in (".", "..") or re.search(r"[/\\\x00-\x1f]", name):
            raise UsageError(f"has the adapter {shown(name)}, expected the name of a folder")
        if name in seen:
            raise UsageError(f"has the adapter {shown(name)} twice, expected each name once")
        seen.add(name)


def rename_adapters(ordering: Ordering, names: Sequence[str]) -> Ordering:
    """The ordering with other names for its adapters, in its order. Raises ``UsageError`` for names that do not fit."""
    if len(names) != len(ordering.adapters):
        raise UsageError(
            f"{len(names)} names were given, expected {len(ordering.adapters)}, as {ordering.source} has so many",
            hint=f"its adapters are {', '.join(ordering.adapters)}",
        )
    try:
        check_names(names)
    except UsageError as error:
        raise UsageError(f"the list of new names {error.message}", hint="an adapter is called as its folder") from error
    return replace(ordering, adapters=tuple(names))


def ordering_json(ordering: Ordering) -> str:
    """The text of an ordering file."""
    content: dict[str, object] = {"order": list(ordering.adapters)}
    if ordering.layers is not None:
        content["layers"] = {name: place for place, name in enumerate(ordering.layers)}
    if ordering.base_model_id is not None:
        content["base_model_id"] = ordering.base_model_id
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def write_ordering(ordering: Ordering, path: Path, *, replace_existing: bool) -> None:
    """Writes an ordering file, whole or not at all.

    Raises ``UsageError`` if something is at ``path`` and ``replace_existing`` is false, ``LoadError`` if the file
    cannot be written.
    """
    if os.path.lexists(path) and not replace_existing:
        raise UsageError(f"{path} is there already", hint="give another name, or add --force to replace it")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        try:
            with partial.open("x", encoding="utf-8") as file:
                file.write(ordering_json(ordering))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise LoadError(f"{path} cannot be written: {error.strerror}", hint="give the path of a new file") from error


def check_layers(ordering: Ordering, axis: Sequence[str], *, may_have_more: bool = False) -> tuple[str, ...]:
    """The layer axis to use: that of the ordering, or ``axis`` where it has none.

    ``axis``: the modules on which the adapters act, from the configs. Raises ``LoadError`` if the ordering lacks one of
    them or has others, unless it ``may_have_more``; their order is the ordering's own.
    """
    if not axis:
        raise LoadError(f"{ordering.source}: its adapters act on no module of this model", hint=_OTHER_MODEL)
    if ordering.layers is None:
        return tuple(axis)
    missing = set(axis) - set(ordering.layers)
    extra = set() if may_have_more else set(ordering.layers) - set(axis)
    counts = f"it has {len(ordering.layers)} modules, the adapters act on {len(axis)} of this model"
    for reason, names in (("lacks", missing), ("has, though no adapter acts on it,", extra)):
        if names:
            order = axis if names is missing else ordering.layers
            first = next(name for name in order if name in names)
            raise LoadError(f"{ordering.source}: key layers: {reason} {shown(first)}: {counts}", hint=_OTHER_MODEL)
    return ordering.layers


_OTHER_MODEL = f"is it for another model, or for other adapters? {_HINT}"


def check_adapters(ordering: Ordering, present: Iterable[str], *, classes: Sequence[str] | None = None) -> None:
    """Raises ``LoadError`` if an adapter of the ordering is not ``present``.

    ``classes``: the adapters that X-LoRA's config names. The ordering must have as many; where it has the same in
    another order, its own counts, with a warning.
    """
    there = list(present)
    absent = [name for name in ordering.adapters if name not in set(there)]
    if absent:
        hint = f"there are {', '.join(there) or 'none'}; mistralrs ordering rename gives adapters other names"
        raise LoadError(f"{ordering.source}: key order: there is no adapter {shown(absent[0])}", hint=hint)
    if classes is None:
        return
    if len(classes) != len(ordering.adapters):
        count = f"has {len(ordering.adapters)} adapters, expected {len(classes)}, with which the classifier was trained"
        raise LoadError(f"{ordering.source}: key order: {count}", hint="name all of them, in the order of training")
    if set(classes) == set(ordering.adapters) and tuple(classes) != ordering.adapters:
        said = ", ".join(classes)
        logger.warning("%s: its order of adapters is taken; that of X-LoRA's config is %s", ordering.source, said)


def check_base(named: Mapping[str, str | None]) -> str | None:
    """The hub id of the base model that files and options name; None if none of them does.

    ``named``: the id by who names it. Raises ``LoadError`` if two of them name different hub repositories. A local path
    that is not the same text is a warning: it cannot be compared. Revisions after an @ do not count.
    """
    given = {who: id for who, id in named.items() if id is not None}
    hub = {who: id for who, id in given.items() if is_hub_id(id)}
    if len({_plain_id(id) for id in hub.values()}) > 1:
        said = ", ".join(f"{who} says {shown(id)}" for who, id in hub.items())
        raise LoadError(f"the base models differ: {said}", hint="take the base that the adapters were made for")
    if len(set(given.values())) > 1 and len(hub) < len(given):
        said = ", ".join(f"{who} says {shown(id)}" for who, id in given.items())
        logger.warning("whether the base models are the same is not known: %s", said)
    return next(iter(hub.values()), None)


def is_hub_id(word: str) -> bool:
    """Whether it is the name of a hub repository and not that of a folder here."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*(@.+)?", word) is not None and not Path(word).exists()


def _plain_id(id: str) -> str:
    return id.partition("@")[0].casefold()
