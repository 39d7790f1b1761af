"""A server in a process of its own, with an engine that obeys the prompt.

Run with a pickled ServedModel, the keywords of the settings as JSON, and the behaviour of loading.
"""

from __future__ import annotations

import asyncio
import json
import pickle
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast

from mistralrs.api.served_model import ServedModel
from mistralrs.engine.config import Request
from mistralrs.engine.events import Delta, Event, Finished, Usage
from mistralrs.errors import LoadError, MistralrsError
from mistralrs.server.run import serve_engine
from mistralrs.server.settings import ServerSettings
from tests.server.fake import FakeEngine, broken, endless, hello, silent, usage


def slow(request: Request) -> Iterable[Event | float]:
    """Takes a second."""
    yield Delta("begun", (1,), ())
    yield 1.0
    yield Finished("stop", usage(request))


def held(request: Request) -> Iterable[Event | float]:
    """Goes on when there is a file ``go on`` beside the pickled model."""
    yield Delta("begun", (1,), ())
    while not Path(sys.argv[1]).with_name("go on").exists():
        yield 0.01
    yield Finished("stop", usage(request))


def flood(request: Request) -> Iterable[Event | float]:
    """Makes more text than any buffer takes."""
    while True:
        yield Delta("x" * 10_000, (1,), ())
        yield 0.0001


def blocked(request: Request) -> Iterable[Event | float]:
    """Blocks the event loop."""
    yield Delta("begun", (1,), ())
    yield 0.2
    time.sleep(30)


def defective(request: Request) -> Iterable[Event | float]:
    """Raises an error that no engine raises."""
    yield Delta("begun", (1,), ())
    yield Finished("stop", cast(Usage, None))


Obeying = Callable[[FakeEngine], Callable[[Request], Iterable[Event | float]]]
"""Makes the script of an engine that obeys its prompts."""

WORDS = {
    "endless": endless,
    "silent": silent,
    "broken": broken,
    "slow": slow,
    "held": held,
    "flood": flood,
    "blocked": blocked,
    "defective": defective,
}


def by_word(engine: FakeEngine) -> Callable[[Request], Iterable[Event | float]]:
    def script(request: Request) -> Iterable[Event | float]:
        text = engine.model.tokenizer.decode(request.prompt)
        if "die" in text:
            asyncio.get_running_loop().call_soon(engine.die)
            return silent(request)
        return next((script for word, script in WORDS.items() if word in text), hello)(request)

    return script


async def start(model: ServedModel, how: str, *, obeying: Obeying) -> FakeEngine:
    if how == "fail":
        raise LoadError("the file is broken", hint="take another")
    if how == "never":
        await asyncio.sleep(60)
    engine = FakeEngine(model)
    engine.script = obeying(engine)
    return engine


def main(obeying: Obeying = by_word) -> int:
    model = pickle.loads(Path(sys.argv[1]).read_bytes())
    settings = json.loads(sys.argv[2])
    for name in ("log", "tls_cert", "tls_key"):
        if name in settings:
            settings[name] = Path(settings[name])
    for name in ("api_keys", "cors_origins"):
        if name in settings:
            settings[name] = tuple(settings[name])
    try:
        return serve_engine(
            lambda: start(model, sys.argv[3], obeying=obeying), ServerSettings(**{"port": 0, **settings})
        )
    except MistralrsError as error:
        print("error:", error.message, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
