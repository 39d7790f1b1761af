"""Reads an X-LoRA: adapters in the order of their training, the classifier that weighs them, and where they act."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

from mistralrs.adapters.lora.lora import DIGEST_BYTES, LoraAdapter
from mistralrs.adapters.lora.lora_config import CONFIG_NAME
from mistralrs.adapters.lora.lora_merge import shown
from mistralrs.adapters.lora.module_names import ModuleNames, module_names
from mistralrs.adapters.lora.peft_files import read_peft
from mistralrs.adapters.lora.peft_tensors import WEIGHTS_NAME
from mistralrs.adapters.orderings.adapter_layout import AdapterLayout, resolve_ordering
from mistralrs.adapters.orderings.layer_axis import adaptable_modules
from mistralrs.adapters.orderings.ordering import Ordering
from mistralrs.adapters.xlora.xlora_classifier import XLoraClassifier, read_classifier
from mistralrs.adapters.xlora.xlora_config import CLASSIFIER_NAMES, CONFIG_NAMES, XLoraConfig
from mistralrs.errors import FormatError, LoadError
from mistralrs.loading.hub_files import companion
from mistralrs.models.parts import WeightKey
from mistralrs.models.spec import DecoderSpec
from mistralrs.progress import Progress

_READ = 1 << 20
"""Bytes that are hashed at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class XLora:
    """An X-LoRA that was read and fits a model; a ``models.parts.AdapterMixture``."""

    source: str
    """The folder or hub repository."""
    adapters: tuple[LoraAdapter, ...]
    """In the order of training: an adapter's place is its class and its slot."""
    classifier: XLoraClassifier
    layers: tuple[str, ...]
    """Paths of the modules on the classifier's layer axis."""
    scaling_layers: Mapping[WeightKey, int]
    """Each part's place on the classifier's layer axis."""
    digest: bytes
    """Hash (16 bytes) of all that decides its results: adapters, classifier, settings and places, without names."""

    @property
    def num_adapters(self) -> int:
        return len(self.adapters)

    @property
    def num_layers(self) -> int:
        return self.classifier.num_layers


def load_xlora(
    place: str,
    architecture: str,
    spec: DecoderSpec,
    *,
    order: Path | None = None,
    base: str | None = None,
    token: str | None = None,
    progress: Progress | None = None,
) -> XLora:
    """Returns the X-LoRA in ``place``, a local folder or a hub repository, for a model of this architecture and spec.

    ``order``: an ordering file, as for ``ordering.find_ordering``; None derives order and layers from the configs.
    ``base``: the base model's hub id or path, which is compared with those that the files name.
    Raises ``LoadError`` and ``FormatError``, which name the file, the key and what was expected there, if a file is
    missing or damaged, or if model, ordering, adapters and classifier do not fit together.
    """
    experts = spec.moe.experts if spec.moe else 0
    modules = adaptable_modules(architecture, layers=len(spec.layers), experts=experts)
    ordering, layout = resolve_ordering(order, place, modules, base=base, token=token, progress=progress)
    if layout.xlora is None:
        raise LoadError(
            f"{place} has no {CONFIG_NAMES['package']}, and is no X-LoRA",
            hint="its adapters can be used as LoRA adapters: --lora, or a lora subcommand",
        )
    config = layout.xlora
    if config.hidden_size != spec.hidden_size:
        reason = f"is {config.hidden_size}, expected {spec.hidden_size}, the model's width"
        raise FormatError(str(config.path), "key hidden_size", reason, hint="the X-LoRA is for another model")
    path = companion(place, CLASSIFIER_NAMES[config.layout], token=token, progress=progress)
    if path is None:
        raise LoadError(
            f"{place} has no {CLASSIFIER_NAMES[config.layout]}, the classifier of {config.path}",
            hint="fetch it as well; without it the adapters can be used as LoRA adapters",
        )
    assert ordering.layers is not None
    classifier = read_classifier(path, config, num_layers=len(ordering.layers))
    names = module_names(architecture, spec)
    scaling_layers = _scaling_layers(ordering, names)
    adapters = tuple(_adapters(ordering, layout, names, token=token, progress=progress))
    for adapter in adapters:
        _check_places(adapter, scaling_layers, ordering)
    return XLora(
        source=place,
        adapters=adapters,
        classifier=classifier,
        layers=ordering.layers,
        scaling_layers=scaling_layers,
        digest=_digest(adapters, config, path, scaling_layers),
    )


def _scaling_layers(ordering: Ordering, names: ModuleNames) -> dict[WeightKey, int]:
    """The place of every part; the parts of one module share it."""
    places: dict[WeightKey, int] = {}
    for place, path in enumerate(ordering.layers or ()):
        module = names.modules.get(path)
        if module is None:
            raise LoadError(
                f"{ordering.source}: key layers: the model has no module {path}", hint="is it for another model?"
            )
        places |= {part.key: place for part in module.parts}
    return places


def _adapters(
    ordering: Ordering, layout: AdapterLayout, names: ModuleNames, *, token: str | None, progress: Progress | None
) -> Iterator[LoraAdapter]:
    """The adapters in the order of training. Raises ``LoadError`` for one that cannot be part of a mixture."""
    for name in ordering.adapters:
        folder = None
        for file in (CONFIG_NAME, WEIGHTS_NAME):
            path = companion(layout.place, f"{name}/{file}", token=token, progress=progress)
            if path is None:
                raise LoadError(f"{layout.place} has no {name}/{file}", hint="X-LoRA needs all of them")
            folder = path.parent
        assert folder is not None
        adapter = read_peft(folder, names, name=name)
        field = adapter.merge_only or adapter.acts_alone
        if adapter.invocation_tokens:
            field = "alora_invocation_tokens"
        if field is not None:
            raise LoadError(
                f"{adapter.source}: {field}: such an adapter cannot be part of a mixture",
                hint="X-LoRA mixes plain LoRA adapters",
            )
        yield adapter


def _check_places(adapter: LoraAdapter, places: Mapping[WeightKey, int], ordering: Ordering) -> None:
    for key in adapter.deltas:
        if key not in places:
            raise LoadError(
                f"{adapter.source}: it acts on {shown(key)}, which has no place on the layer axis of {ordering.source}",
                hint="X-LoRA's classifier knows the modules of target_modules alone",
            )


def _digest(
    adapters: tuple[LoraAdapter, ...], config: XLoraConfig, classifier: Path, places: Mapping[WeightKey, int]
) -> bytes:
    digest = blake2b(digest_size=DIGEST_BYTES, person=b"xlora")
    nameless = replace(config, path=Path(), adapters=(), base_model_id=None)
    digest.update(repr((nameless, sorted(places.items(), key=repr))).encode())
    for adapter in adapters:
        digest.update(adapter.digest)
    with classifier.open("rb") as file:
        while data := file.read(_READ):
            digest.update(data)
    return digest.digest()
