"""Detects an engine that runs but is stalled: it is asked for its statistics repeatedly, and its steps are counted.

Questions and answers are counted instead of the time, because the asking process may have been suspended as well.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from mistralrs.errors import EngineError

if TYPE_CHECKING:
    from mistralrs.engine.stats import EngineStats

logger = logging.getLogger(__name__)

HEARTBEAT_S = 1.0
"""Seconds between two questions."""
UNANSWERED = 5
"""Questions in a row without a message from the engine, after which it counts as stalled."""
WITHOUT_STEP = 600
"""Answers in a row that report work and no new step, after which the engine counts as stalled. One step of a large
model on a slow machine takes minutes.
"""


class EngineHeartbeat:
    """The questions asked so far and the answers to them."""

    def __init__(self) -> None:
        self._unanswered = 0
        self._without_step = 0
        self._steps = -1

    def on_ping(self) -> None:
        """Counts a question: it is asked, or an older one still waits."""
        self._unanswered += 1

    def on_message(self) -> None:
        """Resets the count of unanswered questions: some message came from the engine."""
        self._unanswered = 0

    def on_stats(self, stats: EngineStats) -> None:
        """Takes the answer to a question."""
        has_work = stats.running + stats.waiting > 0
        self._without_step = self._without_step + 1 if has_work and stats.steps == self._steps else 0
        self._steps = stats.steps

    async def watch(self, ask: Callable[[], asyncio.Future[EngineStats]], has_ended: Callable[[], bool]) -> None:
        """Asks the engine repeatedly, one question at a time, and logs when it stalls and when it goes on."""
        told = None
        question = ask()
        try:
            while True:
                self.on_ping()
                await asyncio.sleep(HEARTBEAT_S)
                if has_ended():
                    return
                if question.done():
                    self.on_stats(question.result())
                    question = ask()
                stall = self.stall
                if stall is not None and told is None:
                    logger.error("%s", stall.message)
                elif stall is None and told is not None:
                    logger.warning("the engine goes on")
                told = stall
        finally:
            question.cancel()  # the answer is not needed any more

    @property
    def stall(self) -> EngineError | None:
        """Returns the reason why the engine counts as stalled; None while it makes progress."""
        if self._unanswered > UNANSWERED:
            return stalled(f"the engine has not answered for {UNANSWERED * HEARTBEAT_S:g} s")
        if self._without_step >= WITHOUT_STEP:
            return stalled(f"the engine has been in one step for {WITHOUT_STEP * HEARTBEAT_S:g} s")
        return None


def stalled(message: str) -> EngineError:
    """Returns the error of a question to a stalled engine."""
    return EngineError(message, hint="it may go on; if it does not, start it again", code="engine_stalled")


def require_alive(fault: EngineError | None) -> None:
    """Raises a copy of the error that ended an engine; None: it runs, and nothing is raised."""
    if fault is not None:
        raise EngineError(fault.message, hint=fault.hint, code=fault.code)
