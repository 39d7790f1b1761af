"""The adapters of one loaded model: which there are, which act by default, and the requests on which they act."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mistralrs.adapters.adapter_slots import AcquiredAdapters, AdapterLimits, AdapterSlots, AdapterStatus
from mistralrs.api.loaded_adapters.adapter_options import NO_ADAPTERS, AdapterOptions, check_adapter_name
from mistralrs.api.loaded_adapters.known_adapters import KnownAdapter, KnownAdapters, known_adapter
from mistralrs.engine.events import AdaptersChosen, End, Event, Handle, Stream
from mistralrs.errors import EngineError, LoadError, RequestError, UsageError

if TYPE_CHECKING:
    from mistralrs.adapters.adapter_placement import AdapterPlacement
    from mistralrs.adapters.adapter_source import AdapterReader, FoundAdapter
    from mistralrs.adapters.lora.lora import LoraAdapter
    from mistralrs.engine.config import Request
    from mistralrs.engine.engine import Engine

Deliver = Callable[[Event], None]


class ModelAdapters:
    """Loads, unloads and chooses adapters. Any thread but the engine's may call it.

    In the engine a request has the slots of its adapters. They are looked up when the request is submitted, and let go
    when its stream has ended, in whichever way.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        reader: AdapterReader | None = None,
        placement: AdapterPlacement | None = None,
        options: AdapterOptions = NO_ADAPTERS,
        fixed: KnownAdapters | None = None,
        model_name: str | None = None,
        memory: int = 0,
    ) -> None:
        """``reader`` and ``placement`` are needed where the engine has slots. ``fixed``: the adapters that are part of
        the model, merged or mixed. ``model_name``: a name that no adapter may have. ``memory``: bytes that the KV cache
        leaves to them."""
        self._engine = engine
        self._reader = reader
        self._placement = placement
        self._options = options
        self._fixed = fixed
        self._model_name = model_name
        self._memory = memory
        self._placing = threading.Lock()
        self._changing = threading.Lock()
        self._active: Mapping[str, float] = {}  # is replaced, never changed
        self._facts: dict[bytes, KnownAdapter] = {}
        limits = AdapterLimits(
            max_adapters=engine.config.max_adapters, max_rank=options.max_rank, max_bytes=options.max_bytes
        )
        self._slots = AdapterSlots(limits, place=self._place, clear=self._clear, read=self._read_again)

    # Which there are

    def known(self) -> KnownAdapters:
        """Returns the facts of this moment."""
        if self._fixed is not None:
            return self._fixed
        found = self._slots.adapters()
        return KnownAdapters(
            tuple(replace(self._facts[one.digest], name=one.name, source=one.source) for one in found),
            active=self._active,
            max_adapters=self._slots.limits.max_adapters,
            generation=self._slots.generation,
            memory=self._memory,
        )

    def statuses(self) -> list[AdapterStatus]:
        """Returns each adapter's slot and open requests at this moment."""
        return self._slots.adapters()

    def load(self, name: str, found: FoundAdapter, *, load_inplace: bool = False) -> None:
        """Lets requests name the adapter that was found. Other requests are served meanwhile.

        ``load_inplace``: it may replace another of its name; requests under way keep the one that they began with.
        Raises ``UsageError`` for a name that cannot be or is taken, ``LoadError`` for an adapter that is damaged, not
        supported or not for this model. Nothing has changed then.
        """
        self._check_name(name)
        self._refuse_fixed()
        with self._changing:
            if not load_inplace and self.known().find(name) is not None:
                hint = "unload it first, or replace it with load_inplace"
                raise UsageError(f"an adapter {name} is loaded already", hint=hint)
            self._add(self._require_reader().read(name, found))

    def add(self, adapter: LoraAdapter) -> None:
        """Lets requests name an adapter that was read for this model. Raises as ``load`` does."""
        self._check_name(adapter.name)
        with self._changing:
            self._add(adapter)

    def load_source(self, name: str, source: str, *, subfolder: str | None = None, load_inplace: bool = False) -> None:
        """Loads the adapter that ``source`` names, as ``find_adapter`` has it. Raises as ``load`` and it do."""
        self._check_name(name)
        self._refuse_fixed()
        self.load(name, self._require_reader().find(source, subfolder), load_inplace=load_inplace)

    def load_allowed(self, name: str, source: str, *, load_inplace: bool = False) -> None:
        """Loads as ``load_source`` does for somebody who may load only what the options allow: adapters below their
        ``root``, a path relative to it included, and the hub repositories that they name.

        Raises ``RequestError`` in place of all errors of ``load_source``.
        """
        try:
            self._check_name(name)
            self._refuse_fixed()
            self.load(name, self._find_allowed(source), load_inplace=load_inplace)
        except UsageError as error:
            raise RequestError(error.message, hint=error.hint, param="lora_name") from error
        except LoadError as error:
            raise RequestError(
                error.message, hint=error.hint, code="adapter_not_loadable", param="lora_path"
            ) from error

    def unload(self, name: str) -> None:
        """Lets no new request name an adapter, which leaves the default as well. Raises ``RequestError``."""
        with self._changing:
            if self._fixed is None:
                self._slots.unload(name)
                self._active = {other: weight for other, weight in self._active.items() if other != name}
                return
        self._fixed.check({name: 0.0}, "lora_name")
        raise RequestError(f"adapter {name} is merged into the model's weights", param="lora_name")

    def activate(self, weights: Mapping[str, float]) -> None:
        """Makes these adapters act on later requests that choose none. Raises ``RequestError``."""
        with self._changing:
            self.known().check(weights)
            self._active = {name: weight for name, weight in weights.items() if weight != 0}

    # The requests on which they act

    def acts(self, weights: Mapping[str, float] | None) -> bool:
        """Whether adapters are to be looked up for a request with these; None: those that act by default."""
        return self._fixed is None and bool(self._active if weights is None else weights)

    def submit(self, request: Request, weights: Mapping[str, float] | None = None) -> Stream:
        """Submits a request on which adapters act, with a weight each, to the engine, and returns its stream. None:
        those that act by default. Raises as ``submit_to`` does."""
        handles: list[Handle] = []
        stream = Stream(lambda: handles[0].cancel())
        handles.append(self.submit_to(stream.put, request, weights))
        stream.prompt_progress = handles[0].prompt_progress
        return stream

    def submit_to(self, deliver: Deliver, request: Request, weights: Mapping[str, float] | None = None) -> Handle:
        """Like ``submit``, but passes the events to ``deliver``, which must not block. Where adapters act, the first is
        ``AdaptersChosen``, from the calling thread; all others come from one of the engine's.

        May wait until an adapter is read and placed. Raises what ``Engine.submit`` raises, ``RequestError`` for
        adapters that cannot act, and ``EngineError`` for one that has to be read again and cannot be.
        """
        acquired = self.acquire(weights)
        if acquired is not None:
            deliver(chosen_event(acquired))
        return self.submit_acquired(deliver, request, acquired)

    def acquire(self, weights: Mapping[str, float] | None) -> AcquiredAdapters | None:
        """Returns the adapters for a request, which stay in their slots until they are released; None: none acts.

        May wait, and raises, as ``submit_to`` does.
        """
        if not self.acts(weights):
            if weights is not None and self._fixed is not None:
                self._fixed.check(weights)
            return None
        try:
            acquired = self._slots.acquire(self._active if weights is None else weights)
        except LoadError as error:
            remedy = "put its files back, or load it again with load_inplace"
            hint = f"{error.hint}; {remedy}" if error.hint else remedy
            raise EngineError(error.message, hint=hint, code="adapter_unavailable") from error
        if acquired.adapters:
            return acquired
        self._slots.release(acquired)
        return None

    def release(self, acquired: AcquiredAdapters | None) -> None:
        """Lets go of adapters whose request is not submitted. Waits for nothing."""
        if acquired is not None:
            self._slots.release(acquired)

    def submit_acquired(self, deliver: Deliver, request: Request, acquired: AcquiredAdapters | None) -> Handle:
        """Submits a request as ``Engine.submit_to`` does, and releases its adapters when its stream has ended, or when
        this raises. Does not wait."""
        if acquired is None:
            return self._engine.submit_to(deliver, request)

        def until_end(event: Event) -> None:
            deliver(event)
            if isinstance(event, End):
                self._slots.release(acquired)

        try:
            return self._engine.submit_to(until_end, replace(request, adapters=acquired.adapters))
        except BaseException:
            self._slots.release(acquired)
            raise

    # Slots

    def _add(self, adapter: LoraAdapter) -> None:
        # placing checks this as well, but not every adapter is placed at once
        self._require_placement().check(adapter)
        self._facts[adapter.digest] = known_adapter(adapter)
        self._slots.load(adapter)

    def _place(self, slot: int, adapter: LoraAdapter) -> Future[None]:
        placement = self._require_placement()
        with self._placing:
            deltas = placement.prepare(adapter)
        return self._engine.between_steps(lambda: placement.write(slot, deltas))

    def _clear(self, slot: int) -> Future[None]:
        placement = self._require_placement()
        return self._engine.between_steps(lambda: placement.clear(slot))

    def _read_again(self, name: str, source: str) -> LoraAdapter:
        return self._require_reader().read_source(name, source)

    def _require_placement(self) -> AdapterPlacement:
        assert self._placement is not None, "the engine has no slots"
        return self._placement

    def _require_reader(self) -> AdapterReader:
        if self._reader is None:
            raise LoadError(
                "the model has no adapter slots", hint="load it with --max-adapters (max_adapters) 1 or more"
            )
        return self._reader

    # Checks

    def _check_name(self, name: str) -> None:
        check_adapter_name(name)
        if name == self._model_name:
            raise UsageError(f"an adapter cannot be called {name}, as the model is", hint="give it another name")

    def _refuse_fixed(self) -> None:
        if self._fixed is not None:
            if self._fixed.mixture is not None:
                raise LoadError("the model is an X-LoRA, which mixes its own adapters: no other can act")
            raise LoadError("adapters are merged into the model's weights: no other can act", hint="do not merge them")

    def _find_allowed(self, source: str) -> FoundAdapter:
        """The adapter at a place that may be named while serving. Raises ``RequestError`` for others."""
        from mistralrs.adapters.adapter_source import check_inside, hub_place, require_inside

        reader, root = self._require_reader(), self._options.root
        place = hub_place(source)
        if place is not None and place in {hub_place(each.source, each.subfolder) for each in self._options.adapters}:
            return reader.find(place)
        if root is None:
            raise RequestError(
                "the server has no folder of adapters to load from",
                hint="start it with --adapter-root FOLDER",
                code="adapter_path_forbidden",
                param="lora_path",
            )
        found = reader.find(str(require_inside(root / Path(source), root)))
        check_inside(found, root)
        return found


def chosen_event(acquired: AcquiredAdapters) -> AdaptersChosen:
    """Returns the first event of a request with these adapters."""
    return AdaptersChosen(
        acquired.generation, tuple(sorted((adapter.digest, adapter.weight) for adapter in acquired.adapters))
    )
