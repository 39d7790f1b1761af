"""An engine's process like the real one, with a model whose failures a prompt can choose."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from types import TracebackType

from mistralrs.api.engine_client import engine_server
from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.loaded_adapters.model_adapters import ModelAdapters
from mistralrs.api.served_model import ModelInfo, ServedModel
from mistralrs.engine.batch import Batch, CancelFlag
from mistralrs.engine.config import EngineConfig
from mistralrs.engine.engine import Engine
from mistralrs.ops.kv_groups import KvGroup
from mistralrs.progress import Progress
from mistralrs.text.chat_template import ChatTemplate
from tests.engine.fakes import VOCAB, FakeRunner, FakeTokenizer

CONFIG = EngineConfig(
    kv_groups=(KvGroup(200),), max_model_len=400, max_seqs=3, max_queue=2, max_batch_tokens=32, block_size=4
)
INFO = ModelInfo("fake", "fake", "F32", CONFIG.max_model_len, "cpu", 1, 0, 0, 0, 0.0, ())

# A prompt that begins with one of these makes the model fail in this way.
FAILS = VOCAB - 1
LACKS_MEMORY = VOCAB - 2
KILLS_THE_THREAD = VOCAB - 3
CRASHES = VOCAB - 4
HANGS = VOCAB - 5
"""Blocks in the step until that is cancelled."""
IGNORES_ABORT = VOCAB - 6
PANICS = VOCAB - 7
"""Fails like a library that is written in Rust: with an error that is no Exception."""

HIDDEN_SIZE = 8
STEP_S = 0.005
"""The least seconds of every step."""


class Panic(BaseException):
    """The kind of error that a library written in Rust raises for a defect of its own."""


class FakeModel:
    """The part of LocalModel that the process uses."""

    info = INFO
    tokenizer = FakeTokenizer()
    template = ChatTemplate("{{ messages[0].content }}", bos="", eos="<end>")

    def __init__(self) -> None:
        runner = FakeRunner(block_size=CONFIG.block_size)
        runner.before = self._befall
        self.engine = Engine(runner, self.tokenizer, CONFIG)  # type: ignore[arg-type]
        self.adapters = ModelAdapters(self.engine)
        lengths = (self.engine.max_len, self.engine.vocab_size, HIDDEN_SIZE)
        self.served = ServedModel(INFO, self.tokenizer, self.template, *lengths)  # type: ignore[arg-type]

    @classmethod
    def load(cls, source: ModelSource, options: LoadOptions, *, progress: Progress) -> FakeModel:
        progress("weights", 1, 2)
        if source.path == Path("takes long"):
            time.sleep(60)
        if source.path == Path("takes too much memory"):
            os.kill(os.getpid(), signal.SIGKILL)
        if source.path == Path("has a bug"):
            raise ZeroDivisionError("by zero")
        if source.path == Path("panics"):
            raise Panic("unwrap on None")
        return cls()

    def __enter__(self) -> FakeModel:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.engine.close()

    def _befall(self, batch: Batch, abort: CancelFlag) -> None:
        tokens = {token for token, position in zip(batch.tokens, batch.positions, strict=True) if position == 0}
        if FAILS in tokens:
            raise ValueError("out of luck")
        if LACKS_MEMORY in tokens:
            raise MemoryError
        if KILLS_THE_THREAD in tokens:
            self.engine._core.scheduler.commit = None  # type: ignore[method-assign,assignment]
        if PANICS in tokens:
            raise Panic("unwrap on None")
        if CRASHES in tokens:
            os.kill(os.getpid(), signal.SIGSEGV)
        if IGNORES_ABORT in tokens:
            time.sleep(60)
        while HANGS in tokens and not abort.is_set():
            time.sleep(0.001)
        time.sleep(STEP_S)


if __name__ == "__main__":
    engine_server.LocalModel = FakeModel  # type: ignore[attr-defined,assignment]
    sys.exit(engine_server.main())
