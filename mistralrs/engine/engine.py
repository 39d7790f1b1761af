"""The engine: one thread that owns the model and advances many sequences, a step at a time."""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Row
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, TypeVar

from mistralrs.engine.admission import check_config, check_queue, check_request, fit_prompt
from mistralrs.engine.answer_events import StepOutput
from mistralrs.engine.batch import Batch, CancelFlag
from mistralrs.engine.between_steps import BetweenSteps
from mistralrs.engine.config import EngineConfig, Request
from mistralrs.engine.delivery import Delivery
from mistralrs.engine.draft_gain import DraftGain
from mistralrs.engine.draft_model import DraftModel, ModelToDraft
from mistralrs.engine.drafter import Drafter
from mistralrs.engine.events import Event, Handle, Stream
from mistralrs.engine.failures import describe_error, request_failure
from mistralrs.engine.grammar_compiler import GrammarCompiler
from mistralrs.engine.kv.kv_connector import DiskKvConnector
from mistralrs.engine.kv.kv_disk_tier import KvDiskTier
from mistralrs.engine.model_executor import ModelExecutor as ModelExecutor
from mistralrs.engine.prefill_budget import PrefillBudget
from mistralrs.engine.process_bound import ProcessBound
from mistralrs.engine.request_hooks import NamedHooks
from mistralrs.engine.request_state import RequestState
from mistralrs.engine.sampling.sampler_choice import SamplerChoice
from mistralrs.engine.scheduler import Chunk, Plan, Scheduler
from mistralrs.engine.sequence import Sequence
from mistralrs.engine.sequence_constraint import SequenceConstraint
from mistralrs.engine.stats import EngineStats
from mistralrs.engine.step_masks import StepMasks
from mistralrs.errors import EngineError, MistralrsError, RequestError
from mistralrs.ops.buffer import Buffer

if TYPE_CHECKING:
    from mistralrs.engine.sampling.sampling_input import PreparedSampling, SampledToken, SamplingInput
    from mistralrs.ops.row_sampler import RowSampler
    from mistralrs.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

MAX_WAIT_S = 60.0
"""Seconds after which the engine looks at its deadlines while it waits for grammars, at the latest."""
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
        self._executor = executor
        self._sampler_choice = SamplerChoice(row_sampler, torch_threads)
        self._tokenizer = tokenizer
        self.config = config
        # a padded embedding has ids without a token, some tokenizers tokens without an embedding: none is sampled
        self.vocab_size = min(executor.vocab_size, tokenizer.vocab_size)
        self._eos_ids = frozenset(token for token in tokenizer.eos_ids if token < self.vocab_size)
        self.after_step = _do_nothing
        self._kv_connector = None if disk_tier is None else DiskKvConnector(disk_tier, executor)
        self._draft_model = None if draft_model is None else DraftModel(draft_model, sampling_input=self._draft_input)
        gain = DraftGain() if config.weighs_drafts and config.max_draft else None
        self._drafter = Drafter(gain=gain, model=self._draft_model, token_bytes=tokenizer.token_bytes)
        self._scheduler = Scheduler(config, self._kv_connector, drafter=self._drafter)
        self._grammars = GrammarCompiler(tokenizer, self.vocab_size)
        self._compiling: dict[int, RequestState] = {}  # requests that wait for their grammars
        self._step_masks = StepMasks(self._grammars.mask_words)
        self._prefill_budget = PrefillBudget()
        self._cancel_flag, self._closing = CancelFlag(), False
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()  # calls to be made by the engine's thread
        self._between_steps = BetweenSteps()
        self._ids = itertools.count()
        self._requests: dict[int, RequestState] = {}
        self._step_streams: list[Handle] = []
        self._next_deadline = math.inf  # the earliest of the open requests', or earlier
        self._num_steps = self._num_prompt_tokens = self._num_completion_tokens = self._num_forced_tokens = 0
        self._submit_lock = threading.Lock()  # so that no request is added after the thread has ended the others
        self._fault: EngineError | None = None
        self._delivery = Delivery(lambda: self.after_step(), self._end_with, beside_steps=delivers_beside)
        self._thread = threading.Thread(target=self._run, name="mistralrs-engine", daemon=True)
        self._thread.start()

    @property
    def max_len(self) -> int:
        """Tokens that one sequence can have, prompt and answer together."""
        return self._scheduler.max_len

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
        if request.wants_scalings and self._executor.scalings is None:
            raise RequestError("the model mixes no adapters by token: it has no scalings", param="scalings")
        if request.hook_names is not None:
            request = replace(request, hooks=self.named_hooks.find(request.hook_names), hook_names=None)
        prompt = fit_prompt(request, self.max_len, self.vocab_size, spell=self._tokenizer.token_text)
        with self._submit_lock:
            if self._fault is not None:
                raise EngineError(self._fault.message, hint=self._fault.hint)
            check_queue(len(self._requests), self.config)
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
            self._requests[number] = request_state
            self._inbox.put(partial(self._add, request_state, request))
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
        failed.set_exception(EngineError(self._fault.message, hint=self._fault.hint))
        return failed

    def stats(self) -> EngineStats:
        """A snapshot of the engine's statistics. Any thread may take it."""
        self._require_process()
        scheduler = self._scheduler
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting) + len(self._compiling),
            num_blocks=scheduler.blocks.num_blocks,
            free_blocks=scheduler.blocks.num_free,
            cached_blocks=scheduler.blocks.num_cached,
            prompt_tokens=self._num_prompt_tokens,
            cached_tokens=scheduler.num_cached_tokens,
            completion_tokens=self._num_completion_tokens,
            drafted_tokens=scheduler.num_drafted,
            accepted_tokens=scheduler.num_accepted,
            steps=self._num_steps,
            preemptions=scheduler.num_preemptions,
            forced_tokens=self._num_forced_tokens,
        )

    def close(self) -> None:
        """Stops the thread within a step; open streams end with reason "cancelled". Idempotent."""
        if self._is_forked:
            return
        self._closing = True
        self._inbox.put(lambda: None)
        self._cancel_flag.set()
        self._thread.join()
        self._delivery.join()

    # The engine's thread alone calls the methods below, except for _cancel and _end_with.

    def _run(self) -> None:
        fault: EngineError | None = None
        try:
            if self._executor.scalings is not None:  # it mixes adapters with torch
                self._sampler_choice.prepare_torch()
            self._sampler = self._sampler_choice.sampler(self.vocab_size)
            if self._draft_model is not None:
                size = min(self.vocab_size, self._draft_model.vocab_size)
                self._draft_model.sampler = self._sampler_choice.sampler(size)
            while self._receive():
                if self._scheduler.has_work:
                    self._step()
                self._delivery.flush()
        except Exception as error:
            logger.exception("the engine's thread died")
            fault = EngineError(f"the engine died: {describe_error(error)}", hint="load the model again")
        self._grammars.close()
        self._step_masks.close()
        if self._kv_connector is not None:
            self._kv_connector.close()
        with self._submit_lock:
            self._fault = fault or EngineError("the engine is closed", hint="load the model again")
        self._between_steps.fail(self._fault)
        now = time.perf_counter()
        for request_state in self._requests.values():
            if fault is None:
                request_state.finish("cancelled", now)
            else:
                request_state.fail(fault, now)
        self._requests.clear()
        self._delivery.close()

    def _receive(self) -> bool:
        """Makes the calls in the inbox and those between two steps, waiting for one if there is no other work. Returns
        False if the engine is to end."""
        if not (self._scheduler.has_work or self._between_steps.has_work or self._closing):
            self._run_next()
        self._run_inbox()
        if not self._closing:
            self._between_steps.run()
        self._expire()
        return not self._closing

    def _run_next(self) -> None:
        """Waits for a call in the inbox and makes it; waits no longer than a grammar's request may."""
        timeout = max(self._next_deadline - time.perf_counter(), 0.0)
        try:
            call = self._inbox.get(timeout=min(timeout, MAX_WAIT_S) if self._compiling else None)
        except Empty:
            return
        call()

    def _run_inbox(self) -> None:
        while not self._inbox.empty():
            self._inbox.get()()

    def _expire(self) -> None:
        """Fails requests that are past their deadline."""
        now = time.perf_counter()
        if now < self._next_deadline:
            return
        self._next_deadline = math.inf
        # Requests in the inbox are not among these: their deadlines are checked when they are added.
        queued = (*self._scheduler.running, *self._scheduler.waiting)
        for request_state in (*self._compiling.values(), *(self._requests[sequence.id] for sequence in queued)):
            if request_state.deadline <= now:
                self._fail(request_state, EngineError("the request took longer than it may", code="deadline_exceeded"))
            else:
                self._next_deadline = min(self._next_deadline, request_state.deadline)

    def _step(self) -> None:
        started = time.perf_counter()
        self._num_steps += 1
        plan = self._scheduler.plan(self._prefill_budget.limit(self.config.max_batch_tokens))
        try:
            prepared = self._prepare_sampling(plan)
        except Exception as error:
            logger.exception("sampling failed")
            self._fail_batch(plan, error)
            return
        self._step_masks.start(plan)
        logits = self._forward(plan, prepared)
        masks, errors = self._step_masks.finish()
        for number in errors.keys() & self._requests.keys():
            self._fail(self._requests[number], errors[number])
        if logits is not None:
            sampled = self._sample(plan, logits, masks, prepared)
            now = time.perf_counter()
            outputs = self._advance(sampled, now)
            self._collect_scalings(plan, outputs)
            self._scheduler.commit(plan, {number: output.tokens for number, output in outputs.items()})
            self._publish(plan, outputs, now)
            seconds = time.perf_counter() - started
            self._drafter.on_step(plan.chunks, sum(len(output.sampled) for output in outputs.values()), seconds)
            self._report(plan, seconds)

    def _prepare_sampling(self, plan: Plan) -> PreparedSampling | None:
        """The sampling of a step, to be done in the call of its forward pass; None: it follows the pass."""
        logits = self._executor.logits_buffer
        if logits is None:
            return None
        for chunk in plan.chunks:
            if chunk.scored or self._requests[chunk.sequence.id].samples_late:
                return None
        return self._sampler.prepare(logits, self._sampling_inputs([c for c in plan.chunks if c.samples], {}))

    def _sampling_inputs(self, chunks: Row[Chunk], masks: Mapping[int, Row[memoryview]]) -> list[SamplingInput]:
        """The inputs of chunks that sample, one after another."""
        return [
            sampling_input
            for chunk in chunks
            for sampling_input in self._requests[chunk.sequence.id].sampling_inputs(
                chunk.draft_tokens, masks.get(chunk.sequence.id, ())
            )
        ]

    def _forward(self, plan: Plan, prepared: PreparedSampling | None) -> Buffer | None:
        """The logits of a step, or None if it failed or was cancelled: it is then not committed."""
        self._cancel_flag.clear()
        self._step_streams = [self._requests[chunk.sequence.id].stream for chunk in plan.chunks]
        if self._is_abandoned():  # checked after clearing the flag: a later cancel sets it
            return None
        started = time.perf_counter()
        try:
            batch = Batch.from_plan(plan, block_size=self.config.block_size)
            logits = self._executor.forward(batch, self._cancel_flag, None if prepared is None else prepared.rows)
        except Exception as error:
            logger.exception("a forward pass failed")
            self._fail_batch(plan, error)
            return None
        self._run_inbox()
        if self._cancel_flag.is_set():
            return None
        prefill = sum(chunk.num_committed for chunk in plan.chunks if chunk.num_committed > 1)
        self._prefill_budget.measure(prefill, time.perf_counter() - started)
        return logits

    def _draft_input(self, sequence: Sequence, tokens: list[int]) -> SamplingInput:
        """The input for a draft model's sampling of the token after ``tokens``."""
        return self._requests[sequence.id].draft_input(tokens)

    def _sample(
        self,
        plan: Plan,
        logits: Buffer,
        masks: Mapping[int, Row[memoryview]],
        prepared: PreparedSampling | None,
    ) -> list[tuple[Chunk, list[SampledToken | EngineError]]]:
        """What was sampled for each sequence: after its known tokens, and after each draft token.

        Cancelled requests are left out.
        """
        try:
            if prepared is None:
                drawing, logits_rows = self._collect_prompt_outputs(plan, logits)
                inputs = self._sampling_inputs(drawing, masks)
                results = iter(self._sampler.sample(logits, inputs, rows=logits_rows))
            else:
                drawing = [chunk for chunk in plan.chunks if chunk.samples]
                results = iter(prepared.results())
        except Exception as error:
            logger.exception("sampling failed")
            self._fail_batch(plan, error)
            return []
        sampled = [(chunk, list(itertools.islice(results, len(chunk.draft_tokens) + 1))) for chunk in drawing]
        return [(chunk, rows) for chunk, rows in sampled if chunk.sequence.id in self._requests]

    def _advance(
        self, sampled: Row[tuple[Chunk, list[SampledToken | EngineError]]], now: float
    ) -> dict[int, StepOutput]:
        """The outputs of a step by sequence. A request that cannot go on fails alone."""
        outputs: dict[int, StepOutput] = {}
        for chunk, rows in sampled:
            request_state = self._requests[chunk.sequence.id]
            try:
                if isinstance(rows[0], EngineError):
                    raise request_state.explain(rows[0])
                outputs[chunk.sequence.id] = request_state.on_tokens(rows, chunk.draft_tokens, now)
            except MistralrsError as error:
                self._fail(request_state, error)
            except Exception as error:
                logger.exception("a request could not take its tokens")
                self._fail(request_state, EngineError(f"the answer cannot go on: {describe_error(error)}"))
        return outputs

    def _collect_prompt_outputs(self, plan: Plan, logits: Buffer) -> tuple[list[Chunk], list[int]]:
        """Passes prompt logits to their requests. Returns the chunks to sample for, and their rows of ``logits``."""
        drawing: list[Chunk] = []
        rows: list[int] = []
        row = token = 0
        for chunk in plan.chunks:
            request_state = self._requests.get(chunk.sequence.id)
            if request_state is not None and request_state.wants_prompt_outputs:
                self._pass_prompt_logits(request_state, chunk, logits.rows(row, row + len(chunk.scored)), token)
            row += len(chunk.scored)
            if chunk.samples:
                end = row + 1 + len(chunk.draft_tokens)
                if request_state is not None and chunk.sequence.id in self._requests:
                    drawing.append(chunk)
                    rows.extend(range(row, end))
                row = end
            token += chunk.count
        return drawing, rows

    def _pass_prompt_logits(self, request_state: RequestState, chunk: Chunk, logits: Buffer, first: int) -> None:
        """Passes logits and hidden states to a request. ``first``: index of the chunk's first token in the batch."""
        if request_state.pools:
            self._sampler_choice.prepare_torch()
        try:
            request_state.on_prompt_logits(
                chunk.start,
                chunk.count,
                logits,
                sampler=self._sampler,
                hidden=lambda start, stop: self._executor.hidden(first + start, first + stop),
            )
        except EngineError as error:
            self._fail(request_state, error)

    def _collect_scalings(self, plan: Plan, outputs: dict[int, StepOutput]) -> None:
        """Passes the scalings of computed tokens to the requests that ask for them; not those of rejected drafts."""
        scalings, first = self._executor.scalings, 0
        if scalings is None:
            return
        for chunk in plan.chunks:
            request_state = self._requests.get(chunk.sequence.id)
            if request_state is not None and request_state.scalings is not None:
                output = outputs.get(chunk.sequence.id)
                count = chunk.num_committed + (chunk.num_accepted(output.tokens) if output is not None else 0)
                request_state.scalings.add(chunk.start, scalings(first, first + count))
            first += chunk.count

    def _publish(self, plan: Plan, outputs: dict[int, StepOutput], now: float) -> None:
        """Delivers what came of a step that was committed."""
        for chunk in plan.chunks:
            sequence = chunk.sequence
            if sequence.id in outputs:
                self._deliver_output(sequence, outputs[sequence.id], now)
            elif (
                sequence.prompt_end is not None and sequence.finish_reason is not None and sequence.id in self._requests
            ):
                self._num_prompt_tokens += sequence.num_prompt
                self._requests.pop(sequence.id).finish(sequence.finish_reason, now)

    def _deliver_output(self, sequence: Sequence, output: StepOutput, now: float) -> None:
        request_state = self._requests[sequence.id]
        num_tokens = len(output.sampled)
        if len(sequence.tokens) == sequence.num_prompt + num_tokens:
            self._num_prompt_tokens += sequence.num_prompt
        self._num_completion_tokens += num_tokens
        self._num_forced_tokens += output.num_forced
        request_state.publish(output, now)
        if output.reason is not None:
            # Blocks are freed before the caller receives the end.
            self._scheduler.remove(sequence, retain=True)
            del self._requests[sequence.id]
            request_state.finish(output.reason, now)

    def _report(self, plan: Plan, seconds: float) -> None:
        if logger.isEnabledFor(logging.DEBUG):
            lengths: tuple[list[int], list[int]] = ([], [])
            for chunk in plan.chunks:
                lengths[chunk.start >= chunk.sequence.num_prompt].append(chunk.start + chunk.num_committed)
            logger.debug("Prompt%s Completion%s - %dms", *lengths, round(seconds * 1000))

    def _add(self, request_state: RequestState, request: Request) -> None:
        self._next_deadline = min(self._next_deadline, request_state.deadline)
        if request.grammar is None:
            self._schedule(request_state)
            return
        number = request_state.sequence.id
        self._compiling[number] = request_state
        self._grammars.compile(request, lambda result: self._inbox.put(partial(self._on_compiled, number, result)))

    def _on_compiled(self, number: int, result: SequenceConstraint | MistralrsError) -> None:
        request_state = self._compiling.pop(number, None)
        if request_state is None:  # it was cancelled, or its time was up
            return
        if isinstance(result, MistralrsError):
            self._fail(request_state, result)
        else:
            request_state.sequence.constraint = result
            self._schedule(request_state)

    def _schedule(self, request_state: RequestState) -> None:
        self._scheduler.add(request_state.sequence)
        if request_state.sequence.finish_reason is not None:  # no token is to be generated
            del self._requests[request_state.sequence.id]
            request_state.finish(request_state.sequence.finish_reason, time.perf_counter())

    def _fail_batch(self, plan: Plan, error: Exception) -> None:
        fault = request_failure(error)
        for chunk in plan.chunks:
            request_state = self._requests.get(chunk.sequence.id)
            if request_state is not None:
                self._fail(request_state, fault)

    def _fail(self, request_state: RequestState, error: MistralrsError) -> None:
        self._scheduler.remove(request_state.sequence, retain=False)
        self._compiling.pop(request_state.sequence.id, None)
        del self._requests[request_state.sequence.id]
        request_state.fail(error, time.perf_counter())

    def _drop(self, number: int) -> None:
        request_state = self._requests.pop(number, None)
        self._compiling.pop(number, None)
        if request_state is not None:
            self._scheduler.remove(request_state.sequence, retain=True)
            request_state.finish("cancelled", time.perf_counter())

    def _cancel(self, number: int) -> None:
        """Called by any thread, after the stream was marked as cancelled."""
        if self._is_forked:
            return
        self._inbox.put(partial(self._drop, number))
        if self._is_abandoned():
            self._cancel_flag.set()

    def _end_with(self, error: Exception) -> None:
        """Called by the thread that delivers: the engine dies of its error."""
        self._inbox.put(partial(_raise, error))

    def _is_abandoned(self) -> bool:
        """Whether the step under way has no request left that is not cancelled."""
        return self._closing or all(stream.cancelled for stream in self._step_streams)


def _do_nothing() -> None:
    pass


def _raise(error: Exception) -> None:
    raise error
