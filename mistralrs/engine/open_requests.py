"""The open requests of an engine, from their submission to their end."""

from __future__ import annotations

import logging
import math
import time
from functools import partial

from mistralrs.engine.config import Request
from mistralrs.engine.events import FinishReason
from mistralrs.engine.failures import describe_error
from mistralrs.engine.grammar_compiler import GrammarCompiler
from mistralrs.engine.inbox import Inbox
from mistralrs.engine.request_state import RequestState
from mistralrs.engine.scheduler import Scheduler
from mistralrs.engine.sequence_constraint import SequenceConstraint
from mistralrs.errors import DeadlineError, EngineError, MistralrsError

logger = logging.getLogger(__name__)

MAX_WAIT_S = 60.0
"""Seconds after which deadlines are looked at while requests wait for their grammars, at the latest."""


class OpenRequests:
    """The states of the requests that have not ended, by their numbers. A request with a grammar is scheduled once that
    is compiled.

    The engine's thread alone uses it, except for ``register``, ``num_compiling`` and the length.
    """

    def __init__(self, scheduler: Scheduler, grammars: GrammarCompiler, inbox: Inbox) -> None:
        """``inbox``: takes the calls for compiled grammars."""
        self._scheduler = scheduler
        self._grammars = grammars
        self._inbox = inbox
        self._states: dict[int, RequestState] = {}
        self._compiling: dict[int, RequestState] = {}  # those that wait for their grammars
        self._next_deadline = math.inf  # the earliest of all, or earlier

    def __len__(self) -> int:
        return len(self._states)

    def __contains__(self, number: int) -> bool:
        return number in self._states

    def __getitem__(self, number: int) -> RequestState:
        return self._states[number]

    def get(self, number: int) -> RequestState | None:
        """The state of a request; None: it has ended."""
        return self._states.get(number)

    @property
    def num_compiling(self) -> int:
        """Requests that wait for their grammars."""
        return len(self._compiling)

    @property
    def seconds_to_wait(self) -> float | None:
        """Seconds after which ``expire`` is due while no request is scheduled; None: no deadline can pass."""
        if not self._compiling:
            return None
        return min(max(self._next_deadline - time.perf_counter(), 0.0), MAX_WAIT_S)

    def register(self, request_state: RequestState) -> None:
        """Counts a request among the open ones; ``add`` is to follow."""
        self._states[request_state.sequence.id] = request_state

    def add(self, request_state: RequestState, request: Request) -> None:
        """Schedules a registered request, or has its grammar compiled first."""
        self._next_deadline = min(self._next_deadline, request_state.deadline)
        if request.grammar is None:
            self._schedule(request_state)
            return
        number = request_state.sequence.id
        self._compiling[number] = request_state
        try:
            self._grammars.compile(request, lambda result: self._inbox.put(partial(self._on_compiled, number, result)))
        except Exception as error:  # the system may refuse a thread
            logger.exception("a grammar could not be compiled")
            self.fail(request_state, EngineError(f"the grammar could not be compiled: {describe_error(error)}"))

    def finish(self, number: int, reason: FinishReason, now: float) -> None:
        """Ends a request whose sequence has left the scheduler."""
        self._states.pop(number).finish(reason, now)

    def fail(self, request_state: RequestState, error: MistralrsError) -> None:
        """Ends a request with an error."""
        self._scheduler.remove(request_state.sequence, retain=False)
        self._compiling.pop(request_state.sequence.id, None)
        del self._states[request_state.sequence.id]
        request_state.fail(error, time.perf_counter())

    def cancel(self, number: int) -> None:
        """Ends a request if it is still open."""
        request_state = self._states.pop(number, None)
        self._compiling.pop(number, None)
        if request_state is not None:
            self._scheduler.remove(request_state.sequence, retain=True)
            request_state.finish("cancelled", time.perf_counter())

    def expire(self) -> None:
        """Fails requests that are past their deadline."""
        now = time.perf_counter()
        if now < self._next_deadline:
            return
        self._next_deadline = math.inf
        # Requests in the inbox are not among these: their deadlines are checked when they are added.
        queued = (*self._scheduler.running, *self._scheduler.waiting)
        for request_state in (*self._compiling.values(), *(self._states[sequence.id] for sequence in queued)):
            if request_state.deadline <= now:
                self.fail(request_state, DeadlineError())
            else:
                self._next_deadline = min(self._next_deadline, request_state.deadline)

    def end_all(self, fault: EngineError | None) -> None:
        """Ends all requests at the engine's end: with ``fault``, or with reason "cancelled" if it is None."""
        now = time.perf_counter()
        for request_state in self._states.values():
            if fault is None:
                request_state.finish("cancelled", now)
            else:
                request_state.fail(fault, now)
        self._states.clear()

    def _on_compiled(self, number: int, result: SequenceConstraint | MistralrsError) -> None:
        request_state = self._compiling.pop(number, None)
        if request_state is None:  # it was cancelled, or its time was up
            return
        if isinstance(result, MistralrsError):
            self.fail(request_state, result)
        else:
            request_state.sequence.constraint = result
            self._schedule(request_state)

    def _schedule(self, request_state: RequestState) -> None:
        sequence = request_state.sequence
        self._scheduler.add(sequence)
        if sequence.finish_reason is not None:  # no token is to be generated
            self.finish(sequence.id, sequence.finish_reason, time.perf_counter())
