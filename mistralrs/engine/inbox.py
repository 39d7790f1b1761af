"""Calls that other threads have the engine's thread make."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from queue import Empty, SimpleQueue


class Inbox:
    """Calls in the order in which they came. Any thread may put one; the engine's thread makes them.

    They are made between two steps, and also right behind a step's forward pass: a call must not depend on the placed
    model (``BetweenSteps`` has those).
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.wait_flag = ctypes.c_int32(0)
        """Nonzero: a call waits. Kernels read it between steps in a row."""

    def put(self, call: Callable[[], None]) -> None:
        """Adds a call and wakes the engine's thread if it waits."""
        self._calls.put(call)
        self.wait_flag.value = 1

    def run(self) -> None:
        """Makes the calls that are there."""
        self.wait_flag.value = 0
        while not self._calls.empty():
            self._calls.get()()

    def wait(self, timeout_s: float | None) -> None:
        """Makes the next call, once it is there. Gives up after ``timeout_s`` seconds; None: never."""
        try:
            call = self._calls.get(timeout=timeout_s)
        except Empty:
            return
        call()
