"""A server in a process of its own whose model obeys the last message of a chat.

Run like ``tests.server.fake_server``. The first word of the message is the order: ``say`` repeats the rest, ``count``
counts slowly, ``think`` thinks first, ``limit`` is cut, ``fail`` fails, ``settings`` tells the request's, and anything
else is numbered. A message that is to be continued goes on with " and on".
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterable

from mistralrs.engine.config import Request
from mistralrs.engine.events import AdaptersChosen, Delta, Event, Finished
from tests.server.fake import FakeEngine, broken, usage
from tests.server.fake_server import main

TURN = "assistant\n"
PIECE = 7
MOST = 2000
THOUGHT = "<think>I look at it from both sides.</think>Done."


def pieces(text: str) -> Iterable[Event | float]:
    for start in range(0, len(text), PIECE):
        yield Delta(text[start : start + PIECE], (1,), ())


def counting() -> Iterable[Event | float]:
    for number in range(1, MOST):
        yield Delta(f"{number} ", (1,), ())
        yield 0.02


def obeying(engine: FakeEngine) -> Callable[[Request], Iterable[Event | float]]:
    numbers = itertools.count(1)

    def script(request: Request) -> Iterable[Event | float]:
        adapters = engine.chosen[-1]
        if adapters:
            yield AdaptersChosen(1, ((b"a" * 16, 1.0),))
        prompt = engine.model.tokenizer.decode(request.prompt)
        head, _, written = prompt.rpartition(TURN)
        order, _, rest = head.rpartition("user\n")[2].removesuffix("\n").partition(" ")
        if order == "fail":
            yield from broken(request)
            return
        if written:
            yield from pieces(" and on")
        elif order == "say":
            yield from pieces(rest)
        elif order == "count":
            yield from counting()
        elif order == "think":
            yield from pieces(THOUGHT)
        elif order == "settings":
            sampling = request.sampling
            told = {"temperature": sampling.temperature, "top_p": sampling.top_p, "max_tokens": sampling.max_tokens}
            yield from pieces(f"```\n{json.dumps({**told, 'adapters': adapters, 'prompt': head})}\n```\n")
        else:
            yield from pieces(f"Answer {next(numbers)}")
        yield Finished("length" if order == "limit" else "stop", usage(request))

    return script


if __name__ == "__main__":
    sys.exit(main(obeying))
