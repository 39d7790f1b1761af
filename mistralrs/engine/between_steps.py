"""Calls that other threads want made while no step is under way."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Call(Generic[T]):
    call: Callable[[], T]
    future: Future[T]

    def make(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self.call()
        except Exception as error:  # the caller's, who receives it
            self.future.set_exception(error)
        else:
            self.future.set_result(result)

    def fail(self, error: Exception) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class BetweenSteps:
    """Calls in the order in which they came. Any thread may add one; the engine's thread makes them."""

    def __init__(self) -> None:
        self._waiting: SimpleQueue[_Call[Any]] = SimpleQueue()

    @property
    def has_work(self) -> bool:
        """Whether a call waits."""
        return not self._waiting.empty()

    def add(self, call: Callable[[], T]) -> Future[T]:
        """Queues a call and returns its result to come, or the error that it will raise."""
        future: Future[T] = Future()
        self._waiting.put(_Call(call, future))
        return future

    def run(self) -> None:
        """Makes the calls that wait."""
        while not self._waiting.empty():
            self._waiting.get().make()

    def fail(self, error: Exception) -> None:
        """Ends the calls that wait with ``error`` instead of making them."""
        while not self._waiting.empty():
            self._waiting.get().fail(error)
