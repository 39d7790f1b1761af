"""Finds the adapters of a repository by its configs, when it is loaded, and compares the bases that they name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from mistralrs.api.load_options import ModelSource
from mistralrs.api.loaded_adapters.adapter_options import AdapterOptions, AdapterSource
from mistralrs.errors import UsageError
from mistralrs.progress import Progress


def base_name(source: ModelSource, tok_model_id: str | None) -> str | None:
    """Returns the hub id or path of a base as adapters name theirs; None: it is not known.

    One quantized file has the name of the repository that its tokenizer is taken from: it was made of that.
    """
    if tok_model_id is not None:
        return tok_model_id
    if source.filename is not None or (source.path is not None and source.path.is_file()):
        return None
    return source.repo or str(source.path)


def resolve_adapters(
    options: AdapterOptions,
    *,
    base: str | None,
    token: Callable[[], str | None],
    progress: Progress | None = None,
) -> AdapterOptions:
    """Returns the options with the adapters that stand in their repositories, each with the weight of its repository.

    ``base``: the hub id or path of the base, as far as it is known; ``token`` yields that of the hub. Raises
    ``LoadError`` for a repository that is no adapter and says of none in which order they stand, and where an ordering,
    its adapters and ``base`` name different hub repositories as the base; ``UsageError`` for names of adapters that
    nothing has, or that two have.
    """
    if options.ordering is not None and options.adapters:
        from mistralrs.adapters.orderings.ordering import read_ordering

        ordering = read_ordering(options.ordering)
        [place] = {source.source for source in options.adapters if source.name in ordering.adapters}
        _check_base(place, ordering.adapters, {"the model": base, ordering.source: ordering.base_model_id}, token())
    if not any(source.is_repository for source in options.adapters):
        return options
    active = dict(options.active)
    found: list[AdapterSource] = []
    for source in options.adapters:
        inner = _inside(source, base, token(), progress) if source.is_repository else (source,)
        found += inner
        if source.is_repository and source.name in active:
            weight = active.pop(source.name)
            active |= {each.name: weight for each in inner}
    names = [source.name for source in found]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two adapters are called {name}", hint="give the other one another name")
    for name in active:
        if name not in names:
            raise UsageError(f"there is no adapter {name}", hint=f"there are {', '.join(names)}")
    return replace(options, adapters=tuple(found), active=tuple(active.items()))


def _inside(
    source: AdapterSource, base: str | None, token: str | None, progress: Progress | None
) -> tuple[AdapterSource, ...]:
    from mistralrs.adapters.orderings.adapter_layout import adapters_in

    names = adapters_in(source.source, token=token, progress=progress)
    if names is None:
        return (replace(source, is_repository=False),)
    _check_base(source.source, names, {"the model": base}, token)
    return tuple(AdapterSource(name, source.source, name) for name in names)


def _check_base(place: str, names: tuple[str, ...], named: Mapping[str, str | None], token: str | None) -> None:
    from mistralrs.adapters.orderings.adapter_layout import read_layout
    from mistralrs.adapters.orderings.ordering import check_base

    layout = read_layout(place, names, as_lora=True, token=token)
    check_base({**named, **layout.bases})
