"""Finds the adapters that a selector's fields and the options before it name, for every kind of caller.

Only a local ordering file is read; the configs in a repository of adapters are read when it is loaded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mistralrs.api.loaded_adapters.adapter_options import AdapterOptions, AdapterSource, check_adapter_name
from mistralrs.api.options.declarations import DEFAULTS, Options
from mistralrs.api.selectors.adapter_words import parse_weights
from mistralrs.errors import LoadError, UsageError
from mistralrs.user_dirs import expand_user

if TYPE_CHECKING:
    from mistralrs.adapters.orderings.ordering import Ordering
    from mistralrs.api.selectors.model_choice import ErrorFormatter, ModelChoice

_HUB_PLACE = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?P<inner>(/[\w.-]+)*)(?P<revision>@.+)?")
_SOURCE_HINT = "a source is a folder, a GGUF file, or a hub repository as OWNER/NAME[/FOLDER]"


def find_adapters(
    choice: ModelChoice | None,
    formatter: ErrorFormatter,
    *,
    options: Options = DEFAULTS,
    more_may_come: bool = False,
) -> AdapterOptions:
    """Returns the adapters of a model. ``choice``: None is the default model; ``options``: those before the selector;
    ``more_may_come``: the caller may load others later, beside those that clients may load.

    Raises ``UsageError`` for options that do not fit together and names that no adapter has, ``LoadError`` for a
    source that is not there, and for an ordering that cannot be read or is for another base.
    """
    if options.adapter_root is not None and not options.allow_adapter_changes:
        root, allow = formatter.name("adapter_root"), formatter.name("allow_adapter_changes")
        raise UsageError(f"{root} needs {allow}", hint="add it, or leave the folder out")
    if xlora_of(choice) is not None:
        assert choice is not None
        return _xlora(choice, formatter, options)
    row = () if choice is None else _row_sources(choice, formatter)
    named = _named_sources((*options.lora, *(() if choice is None else choice.lora)), formatter)
    _check_names((*row, *named), formatter)
    active = _active(row, named, formatter, options)
    _check_changes(formatter, options)
    if not (row or named or options.allow_adapter_changes or more_may_come):
        _check_nothing_to_do(formatter, options)
    _check_room((*row, *named), active, formatter, options)
    return AdapterOptions(
        adapters=(*row, *named),
        active=active,
        merge=False if options.merge is None and more_may_come else options.merge,
        max_adapters=options.max_adapters,
        max_rank=options.max_adapter_rank,
        max_bytes=options.max_adapter_bytes,
        root=options.adapter_root,
        ordering=_ordering_path(choice),
    )


def named_adapters(words: Iterable[str], formatter: ErrorFormatter) -> tuple[AdapterSource, ...]:
    """Returns the adapters of ``NAME=SOURCE`` or ``SOURCE``. Raises ``UsageError`` for a word that is neither and for
    names that cannot be, ``LoadError`` for a path where nothing is."""
    sources = tuple(_named_source(word, formatter) for word in words)
    _check_names(sources, formatter)
    return sources


def xlora_of(choice: ModelChoice | None) -> str | None:
    """Returns the place of X-LoRA's adapters; None: the choice is one without X-LoRA."""
    if choice is None:
        return None
    if choice.selector.adapter == "x-lora":
        return choice.xlora_model_id or choice.selector.adapter_repo or ""
    return choice.xlora


def ordering_of(choice: ModelChoice, formatter: ErrorFormatter) -> Ordering | None:
    """Returns the ordering that the choice names; None: it names none.

    Raises ``LoadError`` if it cannot be read, or if it is for another hub repository than that which the choice names
    as its base or as its tokenizer.
    """
    path = _ordering_path(choice)
    if path is None:
        return None
    from mistralrs.adapters.orderings.ordering import (  # costs time that other starts spare
        check_base,
        is_hub_id,
        read_ordering,
    )

    ordering = read_ordering(path)
    for field in ("model_id", "tok_model_id"):
        base = getattr(choice, field)
        ids = (base, ordering.base_model_id)
        if all(id is not None and is_hub_id(id) for id in ids):
            check_base({formatter.name(field): base, ordering.source: ordering.base_model_id})
    return ordering


def adapter_source(word: str, *, name: str | None = None) -> AdapterSource:
    """Returns the adapter that a word names: a path if it exists, else a hub repository or a folder in one.

    ``name``: None is the last part of the word. Raises ``LoadError`` for a path where nothing is.
    """
    place = expand_user(word)
    if os.path.exists(place):
        own = place.resolve()
        return AdapterSource(name or (own.name if own.is_dir() else own.stem), str(place))
    match = None if word.startswith((".", "/", "~")) else _HUB_PLACE.fullmatch(word)
    if match is None or (match["inner"] == "" and place.suffix in (".gguf", ".safetensors", ".bin")):
        raise LoadError(f"the adapter {word} does not exist", hint=_SOURCE_HINT)
    inner = match["inner"].removeprefix("/") or None
    last = (inner or match["repo"]).rpartition("/")[2]
    return AdapterSource(name or last.removesuffix(".gguf"), match["repo"] + (match["revision"] or ""), inner)


def _ordering_path(choice: ModelChoice | None) -> Path | None:
    return None if choice is None or choice.order is None else expand_user(str(choice.order))


def _xlora(choice: ModelChoice, formatter: ErrorFormatter, options: Options) -> AdapterOptions:
    row = choice.selector
    field = "xlora_model_id" if row.adapter == "x-lora" else "xlora"
    place = xlora_of(choice)
    if not place:
        call = formatter.call(row.name, **{field: "OWNER/NAME"})
        raise UsageError(f"{row.name} needs {formatter.given(field, 'REPO')} or a folder", hint=call)
    for other in ("adapter", "merge", "max_adapters", "allow_adapter_changes"):
        if getattr(options, other) not in (None, False):
            raise UsageError(
                f"{formatter.name(other)} is for LoRA: X-LoRA weighs its own adapters for each token",
                hint="leave it out",
            )
    if lora := (*options.lora, *choice.lora):
        raise UsageError(f"{formatter.given('lora', lora[0])} and X-LoRA exclude each other", hint="leave one out")
    source = adapter_source(place)
    if source.subfolder is not None:
        raise LoadError(f"{place} is no hub repository", hint="X-LoRA's config and classifier are at its top")
    ordering_of(choice, formatter)
    return AdapterOptions(
        max_rank=options.max_adapter_rank,
        max_bytes=options.max_adapter_bytes,
        xlora=source.source,
        ordering=_ordering_path(choice),
        non_granular_index=choice.tgt_non_granular_index,
    )


def _row_sources(choice: ModelChoice, formatter: ErrorFormatter) -> tuple[AdapterSource, ...]:
    """Returns the adapters of a selector with LoRA: those of its ordering, or else all that the repository has."""
    row = choice.selector
    if row.adapter is None:
        for field in ("order", "tgt_non_granular_index"):
            if getattr(choice, field) is not None:
                raise UsageError(f"{formatter.name(field)} needs {formatter.name('xlora')}", hint="leave it out")
        return ()
    place = choice.adapters_model_id or row.adapter_repo
    if not place:
        call = formatter.call(row.name, adapters_model_id="OWNER/NAME")
        raise UsageError(f"{row.name} needs {formatter.given('adapters_model_id', 'REPO')} or a folder", hint=call)
    source = adapter_source(place)
    if source.subfolder is not None:
        hint = f"{formatter.name('lora')} names one adapter in a folder of a repository"
        raise LoadError(f"{place} is no hub repository", hint=hint)
    ordering = ordering_of(choice, formatter)
    if ordering is None:
        return (replace(source, is_repository=True),)
    return tuple(AdapterSource(name, source.source, name) for name in ordering.adapters)


def _named_sources(words: Iterable[str], formatter: ErrorFormatter) -> tuple[AdapterSource, ...]:
    return tuple(_named_source(word, formatter) for word in words)


def _named_source(word: str, formatter: ErrorFormatter) -> AdapterSource:
    """Returns the adapter of ``NAME=SOURCE`` or ``SOURCE``; a path that exists is one as it stands."""
    name, equals, source = word.partition("=")
    if not equals or os.path.exists(expand_user(word)):
        name, source = "", word
    elif not name or not source:
        raise UsageError(f"{formatter.given('lora', word)} is not NAME=SOURCE", hint=_SOURCE_HINT)
    if not source:
        raise UsageError(f"{formatter.given('lora', word)} names no adapter", hint=_SOURCE_HINT)
    return adapter_source(source, name=name or None)


def _check_names(sources: Sequence[AdapterSource], formatter: ErrorFormatter) -> None:
    seen: set[str] = set()
    for source in sources:
        check_adapter_name(source.name)
        if source.name in seen:
            hint = f"give one of them another name: {formatter.given('lora', 'NAME=SOURCE')}"
            raise UsageError(f"two adapters are called {source.name}", hint=hint)
        seen.add(source.name)


def _active(
    row: Sequence[AdapterSource], named: Sequence[AdapterSource], formatter: ErrorFormatter, options: Options
) -> tuple[tuple[str, float], ...]:
    """Returns the adapters that act by default, with their weights: those of the selector, or the only one."""
    if options.adapter is None:
        return tuple((source.name, 1.0) for source in (row or (named if len(named) == 1 else ())))
    chosen = parse_weights(options.adapter.split(","), written=formatter.name("adapter"))
    known = [source.name for source in (*row, *named)]
    for name in chosen:
        # the adapters of a repository whose configs are not read yet have unknown names
        if name not in known and not any(source.is_repository for source in row):
            there = f"there are {', '.join(known)}" if known else f"name one with {formatter.name('lora')}"
            raise UsageError(f"{formatter.name('adapter')}: there is no adapter {name}", hint=there)
    return tuple(chosen.items())


def _check_changes(formatter: ErrorFormatter, options: Options) -> None:
    if options.allow_adapter_changes and options.adapter_root is None:
        root, allow = formatter.name("adapter_root"), formatter.name("allow_adapter_changes")
        raise UsageError(f"{allow} needs {root}", hint="name the folder that clients may load adapters from")
    if options.adapter_root is not None and not Path(options.adapter_root).is_dir():
        written = formatter.given("adapter_root", options.adapter_root)
        raise LoadError(f"{written} is no folder", hint="make it first")
    if options.allow_adapter_changes and options.merge:
        raise UsageError(
            f"{formatter.name('merge')} and {formatter.name('allow_adapter_changes')} exclude each other",
            hint="adapters that come later would act on the merged weights: leave one of them out",
        )


def _check_nothing_to_do(formatter: ErrorFormatter, options: Options) -> None:
    for name in ("merge", "max_adapters", "max_adapter_rank", "max_adapter_bytes"):
        if getattr(options, name) is not None:
            hint = f"name one with {formatter.name('lora')}"
            raise UsageError(f"{formatter.name(name)}: there is no adapter", hint=hint)


def _check_room(
    sources: Sequence[AdapterSource],
    active: Sequence[tuple[str, float]],
    formatter: ErrorFormatter,
    options: Options,
) -> None:
    """Raises ``UsageError`` where more adapters act than may, and for merging where others could act later."""
    if options.max_adapters is not None and len(active) > options.max_adapters:
        limit = formatter.given("max_adapters", options.max_adapters)
        raise UsageError(f"{limit}: {len(active)} adapters act at once", hint="allow as many, or choose fewer")
    if not options.merge:
        return
    names = [name for name, _ in active]
    if not names:
        raise UsageError(f"{formatter.name('merge')}: no adapter acts", hint=f"choose with {formatter.name('adapter')}")
    idle = [source.name for source in sources if source.name not in names and not source.is_repository]
    if idle:
        raise UsageError(
            f"{formatter.name('merge')}: {idle[0]} does not act, and could later act on the merged weights alone",
            hint=f"leave it out, or let it act with {formatter.name('adapter')}",
        )
