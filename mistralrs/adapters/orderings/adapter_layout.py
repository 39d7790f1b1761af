"""The adapters in a folder or hub repository, as far as their configs say: names in order, and where they act.

Three layouts are known: a folder for each adapter beside `xlora_config.json`; such folders alone, whose order somebody
has to give; and peft's X-LoRA, with the folders `0`, `1`, ... beside an `adapter_config.json` of type XLORA. Of
weights only the names are read, where they are at hand.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mistralrs.adapters.json_fields import JsonFields
from mistralrs.adapters.lora.lora_config import LoraConfig, read_lora_config
from mistralrs.adapters.lora.peft_tensors import layout_in, name_in
from mistralrs.adapters.lora.target_modules import Pattern, Rule, is_excluded, targets_module
from mistralrs.adapters.orderings.layer_axis import EMBED_TOKENS, LM_HEAD, layer_axis
from mistralrs.adapters.orderings.ordering import (
    Ordering,
    check_adapters,
    check_base,
    check_layers,
    check_names,
    read_ordering,
)
from mistralrs.adapters.xlora.xlora_config import CONFIG_NAMES, XLoraConfig, is_peft_xlora, read_xlora_config
from mistralrs.errors import LoadError, UsageError
from mistralrs.loading.hub_files import companion
from mistralrs.models.multimodal import LAYOUTS
from mistralrs.progress import Progress

_CONFIG = "adapter_config.json"
_LANGUAGE_MODEL = re.compile(r"(?:language|text)_model")
_HINT = "an adapter's folder has an adapter_config.json, as peft writes it"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterLayout:
    """The configs of several adapters."""

    place: str
    """The folder or hub repository."""
    adapters: tuple[str, ...]
    """Names of the adapters' folders, in the order of training."""
    rules: Mapping[str, Rule]
    """The modules on which each adapter acts."""
    bases: Mapping[str, str | None]
    """The base model that each config names, by the config's path."""
    xlora: XLoraConfig | None
    """None: the adapters are used as LoRA adapters."""


def read_layout(
    place: str,
    names: Sequence[str] | None = None,
    *,
    as_lora: bool = False,
    token: str | None = None,
    progress: Progress | None = None,
) -> AdapterLayout:
    """The adapters in ``place``, a local folder or a hub repository.

    ``names``: the adapters and their order, as an ordering has them; None takes those of X-LoRA's config. ``as_lora``:
    they are used without X-LoRA's classifier, and ``names`` may leave out some. Raises ``LoadError`` if a config is
    missing, cannot be read or is not valid, and if no order follows from the configs.
    """

    def find(name: str) -> Path | None:
        return companion(place, name, token=token, progress=progress)

    xlora = _xlora_config(find(_CONFIG), find(CONFIG_NAMES["package"]))
    if names is None:
        if xlora is None:
            raise LoadError(
                f"{place}: the order of its adapters is not known, as it has no {CONFIG_NAMES['package']}",
                hint="name the adapters in the order of training: with an ordering file (-o), or with --names",
            )
        names = xlora.adapters
    elif xlora is not None and not as_lora and len(names) != len(xlora.adapters):
        count = f"names {len(xlora.adapters)} adapters, {len(names)} were given"
        raise LoadError(f"{xlora.path}: key adapters: {count}", hint="X-LoRA needs all adapters of its training")
    bases: dict[str, str | None] = {} if xlora is None else {str(xlora.path): xlora.base_model_id}
    rules: dict[str, Rule] = {}
    for name in names:
        path = find(f"{name}/{_CONFIG}")
        if path is None:
            raise LoadError(f"{place} has no {name}/{_CONFIG}", hint=f"each adapter has a folder of its name; {_HINT}")
        config = read_lora_config(path)
        rules[name] = _rule(config, layout_in(path.parent))
        bases[str(path)] = config.base_model
    return AdapterLayout(place=place, adapters=tuple(names), rules=rules, bases=bases, xlora=None if as_lora else xlora)


def _rule(config: LoraConfig, layout: tuple[str, str] | None) -> Rule:
    """Returns the modules that an adapter acts on, of those on the layer axis.

    ``layout``: that of its weights' names, by which its patterns name the modules too. None: its weights are not at
    hand; if its patterns name the language model of a multimodal model, they may do so as any such model does.
    """
    if layout is not None:
        layouts: Sequence[tuple[str, str]] = (layout,)
    elif _names_language_model(config):
        layouts = LAYOUTS[:-1]
    else:
        layouts = LAYOUTS[-1:]

    def acts_on(module: str) -> bool:
        names = [name_in(each, module) for each in layouts]
        if any(is_excluded(config, name) for name in names):
            return False
        linear = module not in (EMBED_TOKENS, LM_HEAD)
        return any(targets_module(config, name, linear=linear) for name in names)

    return acts_on


def _names_language_model(config: LoraConfig) -> bool:
    found = (config.target_modules, config.exclude_modules)
    texts = [text for each in found for text in ([each.text] if isinstance(each, Pattern) else each or ())]
    return any(_LANGUAGE_MODEL.search(text) for text in texts)


def adapters_in(place: str, *, token: str | None = None, progress: Progress | None = None) -> tuple[str, ...] | None:
    """The names of the adapters in ``place``, a local folder or a hub repository, as X-LoRA's config has them. None:
    it is itself an adapter, and not several.

    Raises ``LoadError`` if it has neither an adapter's config nor X-LoRA's.
    """

    def find(name: str) -> Path | None:
        return companion(place, name, token=token, progress=progress)

    if Path(place).is_file():
        return None
    root = find(_CONFIG)
    xlora = _xlora_config(root, find(CONFIG_NAMES["package"]))
    if xlora is not None:
        return xlora.adapters
    if root is None:
        raise LoadError(
            f"{place} has no {_CONFIG}, and the order of its adapters is not known without a {CONFIG_NAMES['package']}",
            hint=f"name the adapters with an ordering file (-o); {_HINT}",
        )
    return None


def _xlora_config(root: Path | None, package: Path | None) -> XLoraConfig | None:
    """X-LoRA's config; ``root``: the `adapter_config.json` beside the adapters' folders."""
    if root is not None and is_peft_xlora(JsonFields.read(root, hint=_HINT)):
        if package is not None:
            raise LoadError(f"{root} and {package} are both a config of X-LoRA", hint="remove one of them")
        return read_xlora_config(root)
    return None if package is None else read_xlora_config(package)


def derive_ordering(layout: AdapterLayout, modules: Sequence[str], *, base: str | None = None) -> Ordering:
    """The ordering that follows from the configs of the adapters and of the model.

    ``modules``: those of the model, from ``layer_axis.adaptable_modules``. ``base``: the base model's hub id or path.
    Raises ``LoadError`` if the adapters act on none of the modules, or were made for another base.
    """
    try:
        check_names(layout.adapters)
    except UsageError as error:
        raise LoadError(f"{layout.place} {error.message}", hint=_HINT) from error
    axis = layer_axis(modules, layout.rules.values())
    if not axis:
        raise LoadError(f"{layout.place}: its adapters act on no module of this model", hint="is it for another model?")
    found = check_base({"the model": base, **layout.bases})
    return Ordering(source=layout.place, adapters=layout.adapters, layers=axis, base_model_id=found or base)


def complete_ordering(
    ordering: Ordering, layout: AdapterLayout, modules: Sequence[str], *, base: str | None = None
) -> Ordering:
    """An ordering file's ordering, checked against adapters and model, with the layers and the base that it leaves out.

    ``layout`` holds the ordering's adapters. Raises ``LoadError`` if they do not fit together.
    """
    derived = derive_ordering(layout, modules, base=base)
    check_base({"the model": base, ordering.source: ordering.base_model_id, **layout.bases})
    check_adapters(ordering, layout.adapters, classes=None if layout.xlora is None else layout.xlora.adapters)
    return Ordering(
        source=ordering.source,
        adapters=ordering.adapters,
        # LoRA adapters do not use places, and an ordering may name more of them than are used
        layers=check_layers(ordering, derived.layers or (), may_have_more=layout.xlora is None),
        base_model_id=ordering.base_model_id or derived.base_model_id,
    )


def resolve_ordering(
    order: Path | None,
    place: str,
    modules: Sequence[str],
    *,
    base: str | None = None,
    as_lora: bool = False,
    token: str | None = None,
    progress: Progress | None = None,
) -> tuple[Ordering, AdapterLayout]:
    """The complete ordering of the adapters in ``place``, and their configs.

    ``order``: an ordering file, as for ``ordering.find_ordering``; None derives the ordering from the configs. The
    other arguments are those of ``read_layout`` and ``derive_ordering``. Raises ``LoadError`` as these and
    ``complete_ordering`` do.
    """
    given = None if order is None else read_ordering(order)
    names = None if given is None else given.adapters
    layout = read_layout(place, names, as_lora=as_lora, token=token, progress=progress)
    if given is None:
        return derive_ordering(layout, modules, base=base), layout
    return complete_ordering(given, layout, modules, base=base), layout
