"""The engine: one thread that owns the model and advances many sequences, a step at a time.

Knows no files, no templates and no terminal. torch and the sampler are imported by the thread, so that their import
overlaps with whatever the caller still has to do.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Protocol

from mistralrs.engine.admission import check, check_config, fit_prompt
from mistralrs.engine.batch import Abort, Batch
from mistralrs.engine.config import EngineConfig, Request
from mistralrs.engine.events import Stream
from mistralrs.engine.job import Job
from mistralrs.engine.scheduler import Plan, Scheduler
from mistralrs.engine.sequence import Sequence
from mistralrs.errors import EngineError, MistralrsError
from mistralrs.text.stream import TextStream

if TYPE_CHECKING:
    import torch

    from mistralrs.engine.sampling import Draw, Sampler
    from mistralrs.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


class Runner(Protocol):
    """What the engine needs of a model. Called by the engine's thread alone."""

    @property
    def vocab_size(self) -> int: ...

    def forward(self, batch: Batch, abort: Abort) -> torch.Tensor:
        """float32 logits (len(batch.logit_rows), vocab_size), valid until the next call.

        Once ``abort`` is set it returns soon, with anything; the step is then dropped.
        """


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The engine at a glance; counts of tokens are since it started."""

    running: int
    waiting: int
    num_blocks: int
    free_blocks: int
    """Blocks that nobody holds, cached ones included."""
    cached_blocks: int
    """Blocks whose content a new prompt could reuse."""
    prompt_tokens: int
    """Of prompts whose first token has been drawn."""
    cached_tokens: int
    """Prompt tokens that prefix hits saved."""
    completion_tokens: int


class PrefillPace:
    """How many prefill tokens a step may hold so that streams beside it wait about a quarter of a second."""

    SECONDS = 0.25
    LEAST = 16
    """Smaller chunks cost a whole pass over the weights for next to nothing."""
    WEIGHT = 0.3
    """Of the newest measurement in the exponential average."""

    def __init__(self) -> None:
        self._rate: float | None = None  # tokens a second

    def limit(self, max_batch_tokens: int) -> int:
        """Tokens that the measured rate allows; all of them before the first measurement."""
        if self._rate is None:
            return max_batch_tokens
        return max(min(int(self._rate * self.SECONDS), max_batch_tokens), self.LEAST)

    def measure(self, tokens: int, seconds: float) -> None:
        """Takes note of a step that computed so many prefill tokens; a handful tells nothing."""
        if tokens < self.LEAST:
            return
        rate = tokens / max(seconds, 1e-6)
        self._rate = rate if self._rate is None else self._rate + self.WEIGHT * (rate - self._rate)


class Engine:
    """Serves requests until closed. ``submit``, ``stats`` and ``close`` may be called from any thread.

    A failing forward pass ends the requests of its batch, an unusable row its own request; the engine goes on. Should
    its thread die of something unforeseen, every open stream ends with Failed and ``submit`` raises EngineError.
    """

    def __init__(self, runner: Runner, tokenizer: Tokenizer, config: EngineConfig) -> None:
        """Raises UsageError for limits that cannot work. The thread starts at once and owns ``runner``."""
        check_config(config)
        self._runner = runner
        self._tokenizer = tokenizer
        self._config = config
        # A padded vocabulary has ids without a token: they are never drawn.
        self._vocab_size = min(runner.vocab_size, tokenizer.vocab_size)
        self._scheduler = Scheduler(config, tokenizer.eos_ids)
        self._pace = PrefillPace()
        self._abort = Abort()
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()  # calls to be made by the engine's thread
        self._ids = itertools.count()
        self._jobs: dict[int, Job] = {}
        self._step_streams: list[Stream] = []
        self._num_prompt_tokens = 0
        self._num_completion_tokens = 0
        self._closing = False
        self._gate = threading.Lock()  # for submit and the thread's end only: no request may slip in behind the end
        self._fault: EngineError | None = None
        self._thread = threading.Thread(target=self._run, name="mistralrs-engine", daemon=True)
        self._thread.start()

    @property
    def max_len(self) -> int:
        """Tokens that one sequence can have, prompt and answer together."""
        return self._scheduler.max_len

    def submit(self, request: Request) -> Stream:
        """Queues a request. Raises RequestError or ContextLengthError for it, EngineError if the engine has ended."""
        sampling = request.sampling
        check(sampling, self._vocab_size)
        prompt = fit_prompt(request, self.max_len, self._vocab_size)
        room = self.max_len - len(prompt)
        max_len = len(prompt) + (room if sampling.max_tokens is None else min(room, sampling.max_tokens))
        text = TextStream(self._tokenizer, stop=sampling.stop, trim_space=request.trim_space)
        with self._gate:
            if self._fault is not None:
                raise EngineError(self._fault.message, hint=self._fault.hint)
            number = next(self._ids)
            stream = Stream(partial(self._cancel, number))
            sequence = Sequence(number, prompt, sampling, max_len)
            job = Job(sequence, stream, tokenizer=self._tokenizer, text=text, submitted=time.perf_counter())
            self._jobs[number] = job
            self._inbox.put(partial(self._add, job))
        return stream

    def stats(self) -> EngineStats:
        """A snapshot; its numbers may be a step apart."""
        scheduler = self._scheduler
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            num_blocks=scheduler.pool.num_blocks,
            free_blocks=scheduler.pool.num_free,
            cached_blocks=scheduler.pool.num_cached,
            prompt_tokens=self._num_prompt_tokens,
            cached_tokens=scheduler.num_cached_tokens,
            completion_tokens=self._num_completion_tokens,
        )

    def close(self) -> None:
        """Stops the thread, within a step; open streams end with reason "cancelled". Idempotent."""
        self._closing = True
        self._inbox.put(lambda: None)
        self._abort.set()
        self._thread.join()

    # From here on: the engine's thread, but for _cancel.

    def _run(self) -> None:
        fault = EngineError("the engine is closed", hint="load the model again")
        try:
            from mistralrs.engine.sampling import Sampler

            self._sampler: Sampler = Sampler(self._vocab_size)
            while self._receive():
                if self._scheduler.has_work:
                    self._step()
        except Exception as error:
            logger.exception("the engine's thread died")
            fault = EngineError(f"the engine died: {_words(error)}", hint="load the model again")
        with self._gate:
            self._fault = fault
        now = time.perf_counter()
        for job in self._jobs.values():
            if self._closing:
                job.finish("cancelled", now)
            else:
                job.fail(fault, now)
        self._jobs.clear()

    def _receive(self) -> bool:
        """Answers what has come in, waiting for it if there is nothing else to do. False: the engine is to end."""
        if not self._scheduler.has_work and not self._closing:
            self._inbox.get()()
        self._answer()
        return not self._closing

    def _answer(self) -> None:
        while not self._inbox.empty():
            self._inbox.get()()

    def _step(self) -> None:
        started = time.perf_counter()
        plan = self._scheduler.plan(self._pace.limit(self._config.max_batch_tokens))
        logits = self._forward(plan)
        if logits is not None:
            drawn = self._draw(plan, logits)
            self._scheduler.commit(plan, {number: draw.token for number, draw in drawn.items()})
            self._publish(drawn)
            self._report(plan, time.perf_counter() - started)

    def _forward(self, plan: Plan) -> torch.Tensor | None:
        """The logits of a step, or None if it failed or nobody wants it any more: it then commits nothing."""
        self._abort.clear()
        self._step_streams = [self._jobs[chunk.sequence.id].stream for chunk in plan.chunks]
        if self._is_pointless():  # looked at after the flag was cleared: a cancel from now on sets it
            return None
        started = time.perf_counter()
        try:
            logits = self._runner.forward(Batch.from_plan(plan, block_size=self._config.block_size), self._abort)
        except Exception as error:
            logger.exception("a forward pass failed")
            fault = error if isinstance(error, MistralrsError) else EngineError(f"the model failed: {_words(error)}")
            for chunk in plan.chunks:
                self._fail(self._jobs[chunk.sequence.id], fault)
            return None
        self._answer()
        if self._abort.is_set():
            return None
        prefill = sum(chunk.count for chunk in plan.chunks if chunk.count > 1)
        self._pace.measure(prefill, time.perf_counter() - started)
        return logits

    def _draw(self, plan: Plan, logits: torch.Tensor) -> dict[int, Draw]:
        """Draws by sequence. A row that cannot be drawn fails its own request; cancelled ones are left out."""
        from mistralrs.engine.sampling import Row

        sequences = [chunk.sequence for chunk in plan.chunks if chunk.samples]
        rows = [Row(sequence.sampling, sequence.tokens) for sequence in sequences]
        drawn: dict[int, Draw] = {}
        for sequence, result in zip(sequences, self._sampler.sample(logits, rows), strict=True):
            job = self._jobs.get(sequence.id)
            if job is None:
                continue
            if isinstance(result, EngineError):
                self._fail(job, result)
            else:
                drawn[sequence.id] = result
        return drawn

    def _publish(self, drawn: dict[int, Draw]) -> None:
        now = time.perf_counter()
        for number, draw in drawn.items():
            job = self._jobs[number]
            self._num_completion_tokens += 1
            if len(job.sequence.tokens) == job.sequence.num_prompt + 1:
                self._num_prompt_tokens += job.sequence.num_prompt
            delta, reason = job.hear(draw, now)
            if delta.text or delta.tokens:
                job.stream.put(delta)
            if reason is not None:
                # Blocks are free before the caller hears of the end.
                self._scheduler.remove(job.sequence, keep=True)
                del self._jobs[number]
                job.finish(reason, now)

    def _report(self, plan: Plan, seconds: float) -> None:
        if logger.isEnabledFor(logging.DEBUG):
            lengths: tuple[list[int], list[int]] = ([], [])
            for chunk in plan.chunks:
                lengths[chunk.start >= chunk.sequence.num_prompt].append(chunk.start + chunk.count)
            logger.debug("Prompt%s Completion%s - %dms", *lengths, round(seconds * 1000))

    def _add(self, job: Job) -> None:
        self._scheduler.add(job.sequence)
        if job.sequence.finish_reason is not None:  # the prompt fills the context
            del self._jobs[job.sequence.id]
            job.finish(job.sequence.finish_reason, time.perf_counter())

    def _fail(self, job: Job, error: MistralrsError) -> None:
        self._scheduler.remove(job.sequence, keep=False)
        del self._jobs[job.sequence.id]
        job.fail(error, time.perf_counter())

    def _drop(self, number: int) -> None:
        job = self._jobs.pop(number, None)
        if job is not None:
            self._scheduler.remove(job.sequence, keep=True)
            job.finish("cancelled", time.perf_counter())

    def _cancel(self, number: int) -> None:
        """Called by any thread, after the stream was marked as cancelled."""
        self._inbox.put(partial(self._drop, number))
        if self._is_pointless():
            self._abort.set()

    def _is_pointless(self) -> bool:
        """Nobody waits for the step under way."""
        return self._closing or all(stream.cancelled for stream in self._step_streams)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
