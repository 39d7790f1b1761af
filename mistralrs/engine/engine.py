"""The engine as its callers see it, and the thread that runs its core."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from mistralrs.engine.admission import check_config, check_queue, check_request, fit_prompt
from mistralrs.engine.between_steps import BetweenSteps
from mistralrs.engine.config import EngineConfig, Request
from mistralrs.engine.delivery import Delivery
from mistralrs.engine.draft_model import ModelToDraft
from mistralrs.engine.engine_core import EngineCore
from mistralrs.engine.events import Event, Handle, Stream
from mistralrs.engine.failures import describe_error
from mistralrs.engine.inbox import Inbox
from mistralrs.engine.kv.kv_disk_tier import KvDiskTier
from mistralrs.engine.model_executor import ModelExecutor
from mistralrs.engine.process_bound import ProcessBound
from mistralrs.engine.request_hooks import NamedHooks
from mistralrs.engine.request_state import RequestState
from mistralrs.engine.sampling.sampler_choice import SamplerChoice
from mistralrs.engine.sequence import Sequence
from mistralrs.engine.stats import EngineStats
from mistralrs.errors import EngineDeadError, EngineError, RequestError

if TYPE_CHECKING:
    from mistralrs.ops.row_sampler import RowSampler
    from mistralrs.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

HandleT = TypeVar("HandleT", bound=Handle)
T = TypeVar("T")


class Engine(ProcessBound):
    """Serves requests until closed. Any thread may call ``submit``, ``between_steps``, ``stats`` and ``close``.

    A forward pass that fails ends the requests of its batch, logits that are not finite end their own request, and the
    engine goes on. If its thread dies of an unexpected error, every open stream ends with Failed, and ``submit`` raises
    EngineError.

    In a fork of its process, which does not have its thread, ``close`` does nothing and all else raises EngineError.
    """

    after_step: Callable[[], None]
    """Called when all events of a step, or of the time between two steps, are delivered, and once more when the engine
    has ended, by the thread that delivers them. A caller that sends the events of a step together sets it before the
    first request."""
    named_hooks: NamedHooks = NamedHooks()
    """The hooks that requests may name. A caller that has some sets it before the first request."""

    def __init__(
        self,
        executor: ModelExecutor,
        tokenizer: Tokenizer,
        config: EngineConfig,
        *,
        draft_model: ModelToDraft | None = None,
        disk_tier: KvDiskTier | None = None,
        row_sampler: RowSampler | None = None,
        torch_threads: int = 1,
        delivers_beside: bool = False,
    ) -> None:
        """Starts the thread, which owns ``executor`` from now on. Raises UsageError for limits that cannot work.

        ``draft_model``: proposes draft tokens too. ``disk_tier``: stores KV beyond the life of the engine, which closes
        it. ``row_sampler``: samples tokens; None: torch does. ``torch_threads``: for torch's operations in the engine's
        thread alone. ``delivers_beside``: a thread of its own delivers events; it needs a processor of its own, too.
        """
        super().__init__()
        check_config(config)
        self.config = config
        self._tokenizer = tokenizer
        self._inbox = Inbox()
        self._core = EngineCore(
            executor,
            tokenizer,
            config,
            sampler_choice=SamplerChoice(row_sampler, torch_threads),
            inbox=self._inbox,
            draft_model=draft_model,
            disk_tier=disk_tier,
        )
        self.vocab_size = self._core.vocab_size
        self._eos_ids = frozenset(token for token in tokenizer.eos_ids if token < self.vocab_size)
        self.after_step = _do_nothing
        self._between_steps = BetweenSteps()
        self._ids = itertools.count()
        self._submit_lock = threading.Lock()  # so that no request is added after the thread has ended the others
        self._fault: EngineError | None = None
        self._delivery = Delivery(lambda: self.after_step(), self._end_with, beside_steps=delivers_beside)
        self._thread = threading.Thread(target=self._run, name="mistralrs-engine", daemon=True)
        self._thread.start()

    @property
    def max_len(self) -> int:
        """Tokens that one sequence can have, prompt and answer together."""
        return self._core.scheduler.max_len

    @property
    def fault(self) -> EngineError | None:
        """The reason why the engine serves no more requests: it died or was closed. None while it serves."""
        return self._forked_error() if self._is_forked else self._fault

    def submit(self, request: Request) -> Stream:
        """Queues a request and returns the stream of its events.

        Raises RequestError or ContextLengthError if the request is invalid or asks for scalings that the executor does
        not have, QueueFullError if too many wait, EngineError if the engine has ended.
        """
        return self._enqueue(request, Stream)

    def submit_to(self, deliver: Callable[[Event], None], request: Request) -> Handle:
        """Like ``submit``, but a thread of the engine passes the events to ``deliver``, which must not block."""
        return self._enqueue(request, partial(Handle, put=deliver))

    def _enqueue(self, request: Request, handle: Callable[[Callable[[], None]], HandleT]) -> HandleT:
        self._require_process()
        check_request(request, self.vocab_size, max_adapters=self.config.max_adapters)
        if request.wants_scalings and not self._core.has_scalings:
            raise RequestError("the model mixes no adapters by token: it has no scalings", param="scalings")
        if request.hook_names is not None:
            request = replace(request, hooks=self.named_hooks.find(request.hook_names), hook_names=None)
        prompt = fit_prompt(request, self.max_len, self.vocab_size, spell=self._tokenizer.token_text)
        with self._submit_lock:
            if self._fault is not None:
                raise EngineDeadError(self._fault.message, hint=self._fault.hint)
            check_queue(len(self._core.requests), self.config)
            number = next(self._ids)
            stream = handle(partial(self._cancel, number))
            sequence = Sequence.of(number, request, prompt, limit=self.max_len, eos_ids=self._eos_ids)
            stream.prompt_progress = sequence.prompt_progress
            request_state = RequestState(
                sequence,
                stream,
                request=request,
                tokenizer=self._tokenizer,
                submitted=time.perf_counter(),
                deliver=self._delivery.add,
            )
            self._core.requests.register(request_state)
            self._inbox.put(partial(self._core.requests.add, request_state, request))
        return stream

    def between_steps(self, call: Callable[[], T]) -> Future[T]:
        """Has the engine's thread make a call while no step is under way. Returns its result to come: the engine's
        thread must not wait for it.

        Calls are made in their order, and before the first step of a request that is submitted later. The result is
        the error that the call raised, or EngineError if the engine ends before it.
        """
        self._require_process()
        with self._submit_lock:
            if self._fault is None:
                future = self._between_steps.add(call)
                self._inbox.put(_do_nothing)
                return future
        failed: Future[T] = Future()
        failed.set_exception(EngineDeadError(self._fault.message, hint=self._fault.hint))
        return failed

    def stats(self) -> EngineStats:
        """A snapshot of the engine's statistics. Any thread may take it."""
        self._require_process()
        return self._core.stats()

    def close(self) -> None:
        """Stops the thread within a step; open streams end with reason "cancelled". Idempotent."""
        if self._is_forked:
            return
        self._core.stop()
        self._inbox.put(_do_nothing)
        self._thread.join()
        self._delivery.join()

    # The engine's thread alone calls _run and _receive.

    def _run(self) -> None:
        fault: EngineError | None = None
        try:
            self._core.start()
            while self._receive():
                if self._core.scheduler.has_work:
                    self._core.step()
                self._delivery.flush()
        except Exception as error:
            logger.exception("the engine's thread died")
            fault = EngineDeadError(f"the engine died: {describe_error(error)}", hint="load the model again")
        self._core.close()
        with self._submit_lock:
            self._fault = fault or EngineDeadError("the engine is closed", hint="load the model again")
        self._between_steps.fail(self._fault)
        self._core.requests.end_all(fault)
        self._delivery.close()

    def _receive(self) -> bool:
        """Makes the calls in the inbox and those between two steps, waiting for one if there is no other work. Returns
        False if the engine is to end."""
        core = self._core
        if not (core.scheduler.has_work or self._between_steps.has_work or core.stopping):
            self._inbox.wait(core.requests.seconds_to_wait)
        self._inbox.run()
        if not core.stopping:
            self._between_steps.run()
        core.requests.expire()
        return not core.stopping

    def _cancel(self, number: int) -> None:
        """Called by any thread, after the stream was marked as cancelled."""
        if self._is_forked:
            return
        self._inbox.put(partial(self._core.requests.cancel, number))
        self._core.stop_abandoned_step()

    def _end_with(self, error: Exception) -> None:
        """Called by the thread that delivers: the engine dies of its error."""
        self._inbox.put(partial(_raise, error))


def _do_nothing() -> None:
    pass


def _raise(error: Exception) -> None:
    raise error
