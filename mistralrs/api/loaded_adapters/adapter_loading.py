"""Loads a model's adapters with it: finds them first, reads them once the model's shape is known, then merges or places
them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from mistralrs.api.loaded_adapters.adapter_options import (
    ASSUMED_RANK,
    SPARE_SLOTS,
    AdapterOptions,
    check_adapter_name,
)
from mistralrs.api.loaded_adapters.known_adapters import KnownAdapters, ScalingAxes, known_adapter
from mistralrs.api.loaded_adapters.model_adapters import ModelAdapters
from mistralrs.errors import RequestError, UsageError
from mistralrs.progress import Progress

if TYPE_CHECKING:
    from mistralrs.adapters.adapter_placement import AdapterPlacement
    from mistralrs.adapters.adapter_source import FoundAdapter
    from mistralrs.adapters.lora.lora import LoraAdapter
    from mistralrs.adapters.lora.lora_merge import LoraMerge
    from mistralrs.adapters.xlora.xlora import XLora
    from mistralrs.engine.engine import Engine
    from mistralrs.engine.model_executor import ModelExecutor
    from mistralrs.loading.pipeline import Model
    from mistralrs.models.spec import DecoderSpec
    from mistralrs.ops.backend import Backend


class AdapterLoading:
    """The adapters of a model while it is loaded."""

    def __init__(
        self,
        options: AdapterOptions,
        found: Sequence[FoundAdapter],
        *,
        is_quantized: bool,
        base: str | None,
        token: Callable[[], str | None],
        progress: Progress | None,
    ) -> None:
        """Called only by ``find``."""
        self._options = options
        self._found = tuple(found)
        self._token = token
        self._base = base
        self._progress = progress
        self._is_quantized = is_quantized
        self.merges = _merges(options, found, is_quantized=is_quantized)
        """Whether they are merged into the weights."""
        self._adapters: list[LoraAdapter] = []
        self._xlora: XLora | None = None
        self._memory = 0
        """The bytes that are left to them, once ``memory`` was asked."""

    @classmethod
    def find(
        cls,
        options: AdapterOptions,
        model: Path,
        *,
        isq: str | None,
        gqa: int,
        base: str | None = None,
        token: Callable[[], str | None],
        progress: Progress | None = None,
    ) -> Self:
        """Finds the adapters' files, fetched if need be, and decides whether they are merged.

        ``model``: the files of the base, which is quantized to ``isq`` while it is loaded. ``base``: its hub id, if it
        has one, which is compared with those that the adapters name. Raises ``UsageError`` for
        options that contradict each other, ``LoadError`` for what is missing.
        """
        _check(options)
        if not options.adapters:  # what reads them imports numpy, which would wait for torch while the model is packed
            return cls(options, (), is_quantized=False, base=base, token=token, progress=progress)
        from mistralrs.adapters.adapter_source import find_adapter
        from mistralrs.loading.stored_types import stored_as_floats

        found = [find_adapter(each.source, each.subfolder, token=token, progress=progress) for each in options.adapters]
        is_quantized = isq is not None or not stored_as_floats(model, gqa=gqa)
        return cls(options, found, is_quantized=is_quantized, base=base, token=token, progress=progress)

    @property
    def is_mixture(self) -> bool:
        """Whether X-LoRA mixes the adapters for each token."""
        return self._options.xlora is not None

    @property
    def slots(self) -> int:
        """Slots that requests can fill."""
        options = self._options
        if self.merges or self.is_mixture:
            return 0
        if options.max_adapters is not None:
            return options.max_adapters
        return max(len(options.adapters), 0 if options.root is None else SPARE_SLOTS)

    def read(self, architecture: str, spec: DecoderSpec) -> LoraMerge | None:
        """Reads the adapters for a model of this shape; the ``merge`` of a ``LoadPlan``. Raises ``LoadError``."""
        from mistralrs.adapters.adapter_source import AdapterReader
        from mistralrs.adapters.lora.lora_merge import LoraMerge, WeightedAdapter

        reader = AdapterReader(architecture, spec, token=self._token)
        named = zip(self._options.adapters, self._found, strict=True)
        self._adapters = [reader.read(each.name, found) for each, found in named]
        self._check_limits(self._adapters)
        if not self.merges:
            return None
        weights = dict(self._options.active)
        return LoraMerge([WeightedAdapter(one, weights[one.name]) for one in self._adapters], spec=spec)

    def read_mixture(self, architecture: str, spec: DecoderSpec) -> XLora:
        """Reads the X-LoRA for a model of this shape; the ``mixture`` of a ``LoadPlan``. Raises ``LoadError``."""
        from mistralrs.adapters.xlora.xlora import load_xlora

        assert self._options.xlora is not None
        self._xlora = load_xlora(
            self._options.xlora,
            architecture,
            spec,
            order=self._options.ordering,
            base=self._base,
            token=self._token(),
            progress=self._progress,
        )
        self._check_limits(self._xlora.adapters)
        return self._xlora

    def _check_limits(self, adapters: Sequence[LoraAdapter]) -> None:
        from mistralrs.adapters.adapter_slots import AdapterLimits

        limits = AdapterLimits(
            max_adapters=len(adapters), max_rank=self._options.max_rank, max_bytes=self._options.max_bytes
        )
        for adapter in adapters:
            limits.check(adapter)

    def memory(self, spec: DecoderSpec, backend: Backend, *, is_exact: bool) -> int:
        """Returns the bytes that the slots may take, after ``read`` or ``read_mixture``: those of the largest adapters
        that were read, and where others may come, in each slot as many as the limits allow. ``is_exact``: as for
        ``executor``."""
        self._memory = self._planned_memory(spec, backend, is_exact=is_exact)
        return self._memory

    def _planned_memory(self, spec: DecoderSpec, backend: Backend, *, is_exact: bool) -> int:
        if not (self.slots or self.is_mixture):
            return 0
        from mistralrs.adapters.adapter_memory import adapter_bytes, largest_adapter_bytes

        half, options = not is_exact, self._options
        adapters = self._adapters if self._xlora is None else self._xlora.adapters
        sizes = sorted((adapter_bytes(each, backend, in_half_precision=half) for each in adapters), reverse=True)
        if options.root is None:
            return sum(sizes if self.is_mixture else sizes[: self.slots])
        limits = [] if options.max_bytes is None else [options.max_bytes]
        if options.max_rank is not None:
            limits.append(largest_adapter_bytes(spec, options.max_rank, backend, in_half_precision=half))
        if not limits:  # few adapters act on experts, and room for such ones could be more than there is
            assumed = largest_adapter_bytes(spec, ASSUMED_RANK, backend, in_half_precision=half, experts=False)
            limits.append(assumed)
        known = [*sizes, *[0] * self.slots][: self.slots]
        return sum(max(size, min(limits)) for size in known)

    def executor(self, model: Model, backend: Backend, *, is_exact: bool) -> ModelExecutor:
        """Returns what runs the model for the engine. ``is_exact``: adapters stay in float32 where they are."""
        from mistralrs.engine.model_runner import ModelRunner

        if self._xlora is None:
            return ModelRunner(model.decoder, vocab_size=model.spec.vocab_size)
        from mistralrs.adapters.xlora.xlora_executor import XLoraExecutor

        return XLoraExecutor(
            model.decoder,
            self._xlora,
            backend,
            vocab_size=model.spec.vocab_size,
            in_half_precision=not is_exact,
            non_granular_index=self._options.non_granular_index,
        )

    def finish(self, model: Model, engine: Engine, placement: AdapterPlacement | None, *, name: str) -> ModelAdapters:
        """Places the adapters that were read, unless they are merged. ``name``: that of the model.

        Raises ``LoadError`` and ``UsageError``.
        """
        if self._xlora is not None:
            mixture = f"X-LoRA of {self._xlora.num_adapters} adapters from {self._options.xlora}"
            axes = ScalingAxes(tuple(adapter.name for adapter in self._xlora.adapters), self._xlora.layers)
            return ModelAdapters(engine, fixed=KnownAdapters(mixture=mixture, scaling_axes=axes, memory=self._memory))
        adapters, self._adapters = self._adapters, []
        if self.merges:
            merged = KnownAdapters(
                tuple(map(known_adapter, adapters)),
                active=dict(self._options.active),
                merged=dict(self._options.active),
                requantized=self._is_quantized,
            )
            return ModelAdapters(engine, fixed=merged)
        if placement is None:
            return ModelAdapters(engine, options=self._options, model_name=name)
        from mistralrs.adapters.adapter_source import AdapterReader

        reader = AdapterReader(model.architecture, model.spec, token=self._token)
        known = ModelAdapters(
            engine,
            reader=reader,
            placement=placement,
            options=self._options,
            model_name=name,
            memory=self._memory,
        )
        for adapter in adapters:
            known.add(adapter)
        try:
            known.activate(dict(self._options.active))
        except RequestError as error:
            raise UsageError(error.message, hint=error.hint) from error
        return known


def _check(options: AdapterOptions) -> None:
    if options.xlora is not None:
        _check_mixture(options)
    elif options.non_granular_index is not None:
        raise UsageError("a token from which on scalings are kept means nothing without X-LoRA", hint="leave it out")
    names = [each.name for each in options.adapters]
    for name in names:
        check_adapter_name(name)
        if names.count(name) > 1:
            raise UsageError(f"two adapters are called {name}", hint="give each its own name")
    active = [name for name, _ in options.active]
    for name in active:
        if name not in names:
            known = f"there are {', '.join(names)}" if names else "none is loaded"
            raise UsageError(f"there is no adapter {name} to act", hint=known)
        if active.count(name) > 1:
            raise UsageError(f"adapter {name} is named twice", hint="give it one weight")
    if options.max_adapters is not None and options.max_adapters < max(1, len(active)) and names:
        raise UsageError(f"{options.max_adapters} adapters cannot hold those that act", hint="raise --max-adapters")
    if options.root is not None and not options.root.is_dir():
        raise UsageError(f"{options.root} is not a folder", hint="name the folder that has the adapters")
    if options.merge:
        _check_merge(options, names, active)


def _check_mixture(options: AdapterOptions) -> None:
    others = {
        "adapters beside it": options.adapters,
        "merging": options.merge,
        "a number of adapters": options.max_adapters,
        "adapters that are loaded while serving": options.root,
    }
    given = [name for name, value in others.items() if value]
    if given:
        raise UsageError(f"X-LoRA has its own adapters: it excludes {', '.join(given)}", hint="leave out one of them")


def _check_merge(options: AdapterOptions, names: Sequence[str], active: Sequence[str]) -> None:
    hint = "leave them out, or do not merge"
    if not names:
        raise UsageError("there is no adapter to merge", hint="name one with --lora NAME=SOURCE")
    others = [name for name in names if name not in active]
    if others:
        raise UsageError(f"only adapters that act are merged, and {', '.join(others)} would have no effect", hint=hint)
    if options.root is not None:
        raise UsageError("a model with merged adapters can load no others while serving", hint=hint)


def _merges(options: AdapterOptions, found: Sequence[FoundAdapter], *, is_quantized: bool) -> bool:
    if options.merge is not None:
        return options.merge
    are_fixed = bool(found) and len(options.active) == len(found) and options.root is None
    return are_fixed and not is_quantized and not any(each.is_alora for each in found)
