"""Answers of many prompts under way at once, taken in the order of the prompts, with a bounded look-ahead."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue

from mistralrs.errors import MistralrsError
from mistralrs_cli.model import AnswerStream
from mistralrs_cli.prompt_batch.prompt_lines import PromptLine

Asked = tuple[PromptLine, AnswerStream | MistralrsError]
"""A prompt, and its answer or the error of asking."""


class AnswerWindow:
    """Reads prompts and asks them in a thread of its own, so that a slow input holds no answer back.

    At most ``size`` prompts are read and not yet ``done``.
    """

    def __init__(self, prompts: Iterator[PromptLine], ask: Callable[[str], AnswerStream], *, size: int) -> None:
        """``ask`` raises ``MistralrsError`` for a prompt that cannot be answered."""
        self._prompts = prompts
        self._ask = ask
        self._free = threading.Semaphore(size)
        self._asked: SimpleQueue[Asked | BaseException | None] = SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="batch-prompts", daemon=True)

    def __iter__(self) -> Iterator[Asked]:
        """Yields prompts in their order as they are asked. Raises the error of reading them, after those before it."""
        self._thread.start()
        while (asked := self._asked.get()) is not None:
            if isinstance(asked, BaseException):
                raise asked
            yield asked

    def done(self) -> None:
        """Makes room for another prompt."""
        self._free.release()

    def close(self) -> None:
        """Asks no further prompt."""
        self._closed = True
        self._free.release()

    def _run(self) -> None:
        end: BaseException | None = None
        try:
            while self._take():
                pass
        except BaseException as error:  # it belongs to the thread that iterates
            end = error
        self._asked.put(end)

    def _take(self) -> bool:
        self._free.acquire()
        prompt = None if self._closed else next(self._prompts, None)
        if prompt is None or self._closed:
            return False
        answer: AnswerStream | MistralrsError
        if prompt.error is not None:
            answer = prompt.error
        else:
            try:
                answer = self._ask(prompt.prompt)
            except MistralrsError as error:
                answer = error
        self._asked.put((prompt, answer))
        return True
