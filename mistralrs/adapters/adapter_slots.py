"""The adapters that a model knows by name, and which of them are in its slots."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Lock

from mistralrs.adapters.lora.lora import LoraAdapter
from mistralrs.engine.config import RequestAdapter
from mistralrs.errors import LoadError, RequestError

FLOAT32_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterLimits:
    """Bounds on the adapters of a model."""

    max_adapters: int
    """Slots of the model: adapters that can act at once."""
    max_rank: int | None = None
    """The largest rank that an adapter may have; None: any."""
    max_bytes: int | None = None
    """Bytes that the matrices of one adapter may have in its file; None: any number."""

    def check(self, adapter: LoraAdapter) -> None:
        """Raises ``LoadError`` for an adapter beyond the limits of a single one."""
        name, size = adapter.name, _num_bytes(adapter)
        if self.max_rank is not None and adapter.rank > self.max_rank:
            message = f"adapter {name} has rank {adapter.rank}; at most {self.max_rank} is allowed"
            raise LoadError(message, hint="raise --max-adapter-rank")
        if self.max_bytes is not None and size > self.max_bytes:
            message = f"adapter {name} has {size} bytes; at most {self.max_bytes} are allowed"
            raise LoadError(message, hint="raise --max-adapter-bytes")


@dataclass(frozen=True, slots=True)
class AdapterStatus:
    """An adapter that requests can name."""

    name: str
    source: str
    digest: bytes
    rank: int
    slot: int | None
    """Its slot; None: it is in none and is placed again when a request names it."""
    num_open: int
    """Open requests that use it."""


@dataclass(frozen=True, slots=True, eq=False)
class AcquiredAdapters:
    """The adapters of one request, which stay in their slots until they are released."""

    adapters: tuple[RequestAdapter, ...]
    generation: int
    """The generation of names that the request's names were looked up in."""


@dataclass(slots=True, eq=False)
class _Known:
    name: str
    source: str
    digest: bytes
    rank: int
    invocation_tokens: tuple[int, ...]
    acts_alone: str | None
    is_named: bool = False
    """False: no request can name it (any more)."""
    slot: int | None = None
    placed: Future[None] = field(default_factory=Future)
    """Is done once it is in its slot."""
    num_open: int = 0
    """Open requests that use it, and calls that are placing it."""

    @classmethod
    def of(cls, adapter: LoraAdapter) -> _Known:
        return cls(
            name=adapter.name,
            source=adapter.source,
            digest=adapter.digest,
            rank=adapter.rank,
            invocation_tokens=adapter.invocation_tokens,
            acts_alone=adapter.acts_alone,
        )


class AdapterSlots:
    """Places adapters in slots for the requests that name them. Any thread may call it.

    A slot that an open request uses is never written. When another slot is needed, the adapter that was used the
    longest time ago leaves its slot; it stays known and is read from its source again. An adapter that is unloaded, or
    replaced by another of its name, keeps its slot until the last request that uses it has ended.
    """

    def __init__(
        self,
        limits: AdapterLimits,
        *,
        place: Callable[[int, LoraAdapter], Future[None]],
        clear: Callable[[int], Future[None]],
        read: Callable[[str, str], LoraAdapter],
    ) -> None:
        """``place(slot, adapter)`` writes an adapter into an empty slot, ``clear(slot)`` empties it, both between two
        steps and in the order of the calls, which do not wait. ``read(name, source)`` reads an adapter again."""
        self.limits = limits
        self._place_in_slot = place
        self._clear_slot = clear
        self._read = read
        self._lock = Lock()
        self._named: dict[str, _Known] = {}
        self._resident: dict[_Known, None] = {}  # those with a slot, least recently used first
        self._free = deque(range(limits.max_adapters))
        self._cleared: list[Future[None]] = [_done() for _ in range(limits.max_adapters)]
        self._open: dict[AcquiredAdapters, list[_Known]] = {}
        self._generation = 0

    @property
    def generation(self) -> int:
        """Grows whenever a name comes to mean another adapter, or none."""
        with self._lock:
            return self._generation

    def adapters(self) -> list[AdapterStatus]:
        """The adapters that requests can name, in the order in which their names were first loaded."""
        with self._lock:
            return [
                AdapterStatus(known.name, known.source, known.digest, known.rank, known.slot, known.num_open)
                for known in self._named.values()
            ]

    def load(self, adapter: LoraAdapter) -> None:
        """Lets requests name an adapter, which replaces another of its name, and places it if a slot is to be had.

        Waits for the placing, so the engine's thread must not call it. Raises LoadError for an adapter beyond the
        limits; it and an error of the placing leave the names as they were.
        """
        if self.limits.max_adapters < 1:
            raise LoadError(f"adapter {adapter.name}: the model has no adapter slots", hint="raise --max-adapters")
        self.limits.check(adapter)
        known = _Known.of(adapter)
        with self._lock:
            current = self._named.get(adapter.name)
            if current is not None and current.digest == adapter.digest:
                current.source = adapter.source
                return
            known.num_open = 1  # so that no other takes its slot meanwhile
            places = self._has_room([known])
            if places:
                self._assign_slot(known)
        try:
            if places:
                self._place(known, adapter)
                known.placed.result()
            with self._lock:
                self._rename(adapter.name, known)
        finally:
            with self._lock:
                self._close([known])

    def unload(self, name: str) -> None:
        """Lets no new request name an adapter. Its slot is emptied once no open request uses it.

        Raises RequestError for an unknown name.
        """
        with self._lock:
            self._find(name, param="lora_name")
            self._rename(name, None)

    def acquire(self, weights: Mapping[str, float]) -> AcquiredAdapters:
        """The adapters with these names, with a weight each, held in slots until ``release``. One with weight 0 does
        not act and takes no slot.

        Waits for adapters to be placed, so the engine's thread must not call it. Raises RequestError for unknown
        names, for weights and mixes that cannot be, and when open requests use all slots; LoadError for an adapter
        that has to be read again and cannot be.
        """
        with self._lock:
            acting = {self._find(name): weight for name, weight in weights.items()}
            acting = {known: weight for known, weight in acting.items() if weight != 0}
            _check_mix(acting)
            generation = self._generation
            assigned = self._hold(list(acting))
            placed = [known.placed for known in acting]
        try:
            for known in assigned:
                self._place(known, None)
            for future in placed:
                future.result()
        except BaseException:
            with self._lock:
                self._close(acting)
            raise
        with self._lock:
            acquired = AcquiredAdapters(tuple(_used(known, weight) for known, weight in acting.items()), generation)
            self._open[acquired] = list(acting)
        return acquired

    def release(self, acquired: AcquiredAdapters) -> None:
        """Lets go of a request's adapters once its stream has ended. Waits for nothing. Idempotent."""
        with self._lock:
            self._close(self._open.pop(acquired, ()))

    def _place(self, known: _Known, adapter: LoraAdapter | None) -> None:
        """Places an adapter in the slot that it was assigned and ends ``placed``, with an error if that fails.

        ``adapter`` None: it is read again.
        """
        slot, placed = known.slot, known.placed
        assert slot is not None, "no slot was assigned"
        try:
            if self._cleared[slot].exception() is not None:  # it may hold parts of another adapter
                self._cleared[slot] = self._clear_slot(slot)
            self._cleared[slot].result()
            self._place_in_slot(slot, adapter or self._read_again(known)).result()
        except BaseException as error:
            with self._lock:
                self._vacate(known)
            placed.set_exception(error)
        else:
            placed.set_result(None)

    def _read_again(self, known: _Known) -> LoraAdapter:
        adapter = self._read(known.name, known.source)
        if adapter.digest != known.digest:
            message = f"adapter {known.name}: {known.source} has changed since it was loaded"
            raise LoadError(message)
        return adapter

    # The lock is held in the methods below.

    def _find(self, name: str, *, param: str = "adapters") -> _Known:
        known = self._named.get(name)
        if known is None:
            hint = f"known are {', '.join(self._named)}" if self._named else "no adapter is loaded"
            raise RequestError(f"there is no adapter {name[:64]!r}", hint=hint, code="adapter_not_found", param=param)
        return known

    def _rename(self, name: str, known: _Known | None) -> None:
        """Gives a name to another adapter, or to none; the one that had it leaves its slot when it is not in use."""
        previous = self._named.get(name)
        if known is None:
            del self._named[name]
        else:
            self._named[name] = known
            known.is_named = True
        self._generation += 1
        if previous is not None:
            previous.is_named = False
            self._vacate_unnamed(previous)

    def _has_room(self, wanted: Collection[_Known]) -> bool:
        """Whether those of ``wanted`` without a slot could all have one."""
        idle = sum(known.num_open == 0 and known not in wanted for known in self._resident)
        return sum(known.slot is None for known in wanted) <= len(self._free) + idle

    def _hold(self, acting: list[_Known]) -> list[_Known]:
        """Counts one more user of each adapter. Returns those that got a slot now and have to be placed in it."""
        if len(acting) > self.limits.max_adapters:
            message = f"adapters names {len(acting)}; at most {self.limits.max_adapters} can act at once"
            raise RequestError(message, hint="raise --max-adapters", param="adapters")
        if not self._has_room(acting):
            raise RequestError(
                f"open requests use all {self.limits.max_adapters} adapter slots",
                hint="try again later, or raise --max-adapters",
                code="adapter_slots_full",
                param="adapters",
            )
        for known in acting:
            known.num_open += 1
        assigned = [known for known in acting if known.slot is None]
        for known in acting:
            if known.slot is None:
                self._assign_slot(known)
            self._touch(known)
        return assigned

    def _assign_slot(self, known: _Known) -> None:
        """Gives an adapter a free slot, or that of the least recently used adapter that is not in use."""
        if not self._free:
            self._vacate(next(other for other in self._resident if other.num_open == 0))
        known.slot = self._free.popleft()
        known.placed = Future()
        self._resident[known] = None

    def _touch(self, known: _Known) -> None:
        if known in self._resident:
            del self._resident[known]
            self._resident[known] = None

    def _close(self, users_of: Collection[_Known]) -> None:
        """Counts one user less of each adapter."""
        for known in users_of:
            known.num_open -= 1
            self._touch(known)
            self._vacate_unnamed(known)

    def _vacate_unnamed(self, known: _Known) -> None:
        if known.slot is not None and known.num_open == 0 and not known.is_named:
            self._vacate(known)

    def _vacate(self, known: _Known) -> None:
        """Takes an adapter's slot and has it emptied."""
        assert known.slot is not None, "it has no slot"
        self._cleared[known.slot] = self._clear_slot(known.slot)
        self._free.append(known.slot)
        known.slot = None
        del self._resident[known]


def _check_mix(acting: Mapping[_Known, float]) -> None:
    for known, weight in acting.items():
        if not math.isfinite(weight):
            message = f"adapter {known.name} has weight {weight}; it must be a finite number"
            raise RequestError(message, param="adapters")
        if known.acts_alone is not None and (len(acting) > 1 or weight != 1):
            message = f"adapter {known.name} has {known.acts_alone}: it can be neither mixed nor weighted"
            raise RequestError(message, hint="ask for it alone, with weight 1", param="adapters")


def _used(known: _Known, weight: float) -> RequestAdapter:
    assert known.slot is not None, "it left its slot while it was held"
    return RequestAdapter(known.slot, known.digest, weight, known.invocation_tokens)


def _num_bytes(adapter: LoraAdapter) -> int:
    deltas = adapter.deltas.values()
    vectors = [vector for delta in deltas for vector in (delta.bias, delta.magnitude) if vector is not None]
    matrices = [matrix.data.nbytes for delta in deltas for matrix in (delta.a, delta.b)]
    return sum(matrices) + FLOAT32_BYTES * sum(map(len, vectors))


def _done() -> Future[None]:
    future: Future[None] = Future()
    future.set_result(None)
    return future
