"""The core of the engine: its open requests, and the steps that advance them."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Mapping
from collections.abc import Sequence as Row
from typing import TYPE_CHECKING

from mistralrs.engine.answer_events import StepOutput
from mistralrs.engine.batch import Batch, CancelFlag
from mistralrs.engine.config import EngineConfig
from mistralrs.engine.draft_gain import DraftGain
from mistralrs.engine.draft_model import DraftModel, ModelToDraft
from mistralrs.engine.drafter import Drafter
from mistralrs.engine.events import Handle
from mistralrs.engine.failures import describe_error, request_failure
from mistralrs.engine.grammar_compiler import GrammarCompiler
from mistralrs.engine.inbox import Inbox
from mistralrs.engine.kv.kv_connector import DiskKvConnector
from mistralrs.engine.kv.kv_disk_tier import KvDiskTier
from mistralrs.engine.model_executor import ModelExecutor
from mistralrs.engine.multi_step import MultiStep
from mistralrs.engine.open_requests import OpenRequests
from mistralrs.engine.prefill_budget import PrefillBudget
from mistralrs.engine.request_state import RequestState
from mistralrs.engine.sampling.sampler_choice import SamplerChoice
from mistralrs.engine.scheduler import Chunk, Plan, Scheduler
from mistralrs.engine.sequence import Sequence
from mistralrs.engine.stats import EngineStats
from mistralrs.engine.step_masks import StepMasks
from mistralrs.errors import EngineError, MistralrsError
from mistralrs.ops.buffer import Buffer

if TYPE_CHECKING:
    from mistralrs.engine.sampling.sampling_input import PreparedSampling, SampledToken, SamplingInput
    from mistralrs.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


class EngineCore:
    """Plans, computes, samples and commits, a step at a time. The engine's thread alone uses it, except where
    a comment says otherwise.

    A forward pass that fails ends the requests of
    its batch; logits that are not finite end their own request.
    """

    def __init__(
        self,
        executor: ModelExecutor,
        tokenizer: Tokenizer,
        config: EngineConfig,
        *,
        sampler_choice: SamplerChoice,
        inbox: Inbox,
        draft_model: ModelToDraft | None,
        disk_tier: KvDiskTier | None,
    ) -> None:
        """``inbox``: calls that are made behind each forward pass as well, which may cancel the step's requests."""
        self._executor = executor
        self._sampler_choice = sampler_choice
        self._inbox = inbox
        self._config = config
        # a padded embedding has ids without a token, some tokenizers tokens without an embedding: none is sampled
        self.vocab_size = min(executor.vocab_size, tokenizer.vocab_size)
        self._kv_connector = None if disk_tier is None else DiskKvConnector(disk_tier, executor)
        self._draft_model = None if draft_model is None else DraftModel(draft_model, sampling_input=self._draft_input)
        gain = DraftGain() if config.weighs_drafts and config.max_draft else None
        self._drafter = Drafter(gain=gain, model=self._draft_model, token_bytes=tokenizer.token_bytes)
        self.scheduler = Scheduler(config, self._kv_connector, drafter=self._drafter)
        self._grammars = GrammarCompiler(tokenizer, self.vocab_size)
        self._step_masks = StepMasks(self._grammars.mask_words)
        self._prefill_budget = PrefillBudget()
        self._multi_step = MultiStep(has_drafts=config.max_draft > 0)
        # The library samples for the next step, and the executor has nothing to do before it.
        self._makes_multi_steps = (
            sampler_choice.samples_in_pass and executor.logits_buffer is not None and executor.scalings is None
        )
        self.requests = OpenRequests(self.scheduler, self._grammars, inbox)
        self._step_streams: list[Handle] = []
        self._cancel_flag = CancelFlag()
        self.stopping = False
        """Whether ``stop`` was called."""
        self._num_steps = self._num_prompt_tokens = self._num_completion_tokens = self._num_forced_tokens = 0

    # Any thread may use these.

    @property
    def has_scalings(self) -> bool:
        """Whether the executor mixes adapters by token."""
        return self._executor.scalings is not None

    def stats(self) -> EngineStats:
        """A snapshot of the statistics."""
        scheduler = self.scheduler
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting) + self.requests.num_compiling,
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

    def stop(self) -> None:
        """Ends the step under way soon, and lets no further one compute anything."""
        self.stopping = True
        self._cancel_flag.set()

    def stop_abandoned_step(self) -> None:
        """Ends the step under way soon if all of its requests are cancelled."""
        if self._is_abandoned():
            self._cancel_flag.set()

    # The engine's thread alone uses the others.

    def start(self) -> None:
        """Makes the samplers. Comes before all else."""
        if self.has_scalings:  # it mixes adapters with torch
            self._sampler_choice.prepare_torch()
        self._sampler = self._sampler_choice.sampler(self.vocab_size)
        if self._draft_model is not None:
            size = min(self.vocab_size, self._draft_model.vocab_size)
            self._draft_model.sampler = self._sampler_choice.sampler(size)

    def close(self) -> None:
        """Ends the threads that work for the steps, and stores the blocks that are on their way to the disk."""
        self._grammars.close()
        self._step_masks.close()
        if self._kv_connector is not None:
            self._kv_connector.close()

    def step(self) -> None:
        """Plans a step, computes and samples it, commits its tokens and hands out what came of it."""
        started = time.perf_counter()
        self._num_steps += 1
        max_steps = self._multi_step.limit(len(self.scheduler.running)) if self._makes_multi_steps else 1
        prefill_limit = self._prefill_budget.limit(self._config.max_batch_tokens)
        plan = self.scheduler.plan(prefill_limit, max_steps, in_parts=self._makes_multi_steps)
        try:
            prepared = self._prepare_sampling(plan)
            self._step_masks.start(plan)
        except Exception as error:
            logger.exception("sampling failed")
            self._fail_batch(plan, error)
            return
        logits = self._forward(plan, prepared)
        masks, errors = self._step_masks.finish()
        for number in errors:
            if number in self.requests:
                self.requests.fail(self.requests[number], errors[number])
        if logits is not None:
            plan, sampled = self._sample(plan, logits, masks, prepared)
            now = time.perf_counter()
            outputs = self._advance(sampled, now)
            self._collect_scalings(plan, outputs)
            self.scheduler.commit(plan, {number: output.tokens for number, output in outputs.items()})
            self._publish(plan, outputs, now)
            self._num_steps += plan.num_steps - 1
            self._measure(plan, outputs, time.perf_counter() - started)

    def _prepare_sampling(self, plan: Plan) -> PreparedSampling | None:
        """The sampling of a step, to be done in the call of its forward pass; None: it follows the pass."""
        logits = self._executor.logits_buffer
        if logits is None:
            return None
        for chunk in plan.chunks:
            if chunk.scored or self.requests[chunk.sequence.id].samples_late:
                return None
        inputs = self._sampling_inputs([c for c in plan.chunks if c.samples], {})
        return self._sampler.prepare(
            logits, inputs, num_steps=plan.num_steps, num_parts=plan.num_parts, wait_flag=self._inbox.wait_flag
        )

    def _sampling_inputs(self, chunks: Row[Chunk], masks: Mapping[int, Row[memoryview]]) -> list[SamplingInput]:
        """The inputs of chunks that sample, one after another."""
        return [
            sampling_input
            for chunk in chunks
            for sampling_input in self.requests[chunk.sequence.id].sampling_inputs(
                chunk.draft_tokens, masks.get(chunk.sequence.id, ())
            )
        ]

    def _forward(self, plan: Plan, prepared: PreparedSampling | None) -> Buffer | None:
        """The logits of a step, or None if it failed or was cancelled: it is then not committed."""
        self._cancel_flag.clear()
        self._step_streams = [self.requests[chunk.sequence.id].stream for chunk in plan.chunks]
        if self._is_abandoned():  # checked after clearing the flag: a later cancel sets it
            return None
        started = time.perf_counter()
        try:
            batch = Batch.from_plan(plan, block_size=self._config.block_size)
            logits = self._executor.forward(batch, self._cancel_flag, None if prepared is None else prepared.rows)
        except Exception as error:
            logger.exception("a forward pass failed")
            self._fail_batch(plan, error)
            return None
        self._inbox.run()
        if self._cancel_flag.is_set():
            return None
        prefill = sum(chunk.num_committed for chunk in plan.chunks if chunk.num_committed > 1)
        self._prefill_budget.measure(prefill, time.perf_counter() - started)
        return logits

    def _draft_input(self, sequence: Sequence, tokens: list[int]) -> SamplingInput:
        """The input for a draft model's sampling of the token after ``tokens``."""
        return self.requests[sequence.id].draft_input(tokens)

    def _sample(
        self,
        plan: Plan,
        logits: Buffer,
        masks: Mapping[int, Row[memoryview]],
        prepared: PreparedSampling | None,
    ) -> tuple[Plan, list[tuple[Chunk, list[SampledToken | EngineError]]]]:
        """The plan as it was carried out, and the samples of each sequence: after its known tokens, and after each
        later one.

        Cancelled requests are left out.
        """
        try:
            if prepared is None:
                drawing, logits_rows = self._collect_prompt_outputs(plan, logits)
                inputs = self._sampling_inputs(drawing, masks)
                plan = Plan(plan.chunks)
                results = iter(self._sampler.sample(logits, inputs, rows=logits_rows))
            else:
                steps = prepared.results()
                in_parts = plan.num_parts > 1
                plan = _parts_carried_out(plan, steps) if in_parts else _carried_out(plan, steps)
                drawing = [chunk for chunk in plan.chunks if chunk.samples]
                results = itertools.chain.from_iterable(steps if in_parts else zip(*steps, strict=True))
        except Exception as error:
            logger.exception("sampling failed")
            self._fail_batch(plan, error)
            return Plan(plan.chunks), []
        sampled = [(chunk, list(itertools.islice(results, len(chunk.later_tokens) + 1))) for chunk in drawing]
        return plan, [(chunk, rows) for chunk, rows in sampled if chunk.sequence.id in self.requests]

    def _advance(
        self, sampled: Row[tuple[Chunk, list[SampledToken | EngineError]]], now: float
    ) -> dict[int, StepOutput]:
        """The outputs of a step by sequence. A request that cannot go on fails alone."""
        outputs: dict[int, StepOutput] = {}
        for chunk, rows in sampled:
            request_state = self.requests[chunk.sequence.id]
            try:
                if isinstance(rows[0], EngineError):
                    raise request_state.explain(rows[0])
                outputs[chunk.sequence.id] = request_state.on_tokens(rows, chunk.later_tokens, now)
            except MistralrsError as error:
                self.requests.fail(request_state, error)
            except Exception as error:
                logger.exception("a request could not take its tokens")
                self.requests.fail(request_state, EngineError(f"the answer cannot go on: {describe_error(error)}"))
        return outputs

    def _collect_prompt_outputs(self, plan: Plan, logits: Buffer) -> tuple[list[Chunk], list[int]]:
        """Passes prompt logits to their requests. Returns the chunks to sample for, and their rows of ``logits``."""
        drawing: list[Chunk] = []
        rows: list[int] = []
        row = token = 0
        for chunk in plan.chunks:
            request_state = self.requests.get(chunk.sequence.id)
            if request_state is not None and request_state.wants_prompt_outputs:
                self._pass_prompt_logits(request_state, chunk, logits.rows(row, row + len(chunk.scored)), token)
            row += len(chunk.scored)
            if chunk.samples:
                end = row + 1 + len(chunk.draft_tokens)
                if request_state is not None and chunk.sequence.id in self.requests:
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
            self.requests.fail(request_state, error)

    def _collect_scalings(self, plan: Plan, outputs: dict[int, StepOutput]) -> None:
        """Passes the scalings of computed tokens to the requests that ask for them; not those of rejected drafts."""
        scalings, first = self._executor.scalings, 0
        if scalings is None:
            return
        for chunk in plan.chunks:
            request_state = self.requests.get(chunk.sequence.id)
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
                sequence.prompt_end is not None and sequence.finish_reason is not None and sequence.id in self.requests
            ):
                self._num_prompt_tokens += sequence.num_prompt
                self.requests.finish(sequence.id, sequence.finish_reason, now)

    def _deliver_output(self, sequence: Sequence, output: StepOutput, now: float) -> None:
        request_state = self.requests[sequence.id]
        num_tokens = len(output.sampled)
        if len(sequence.tokens) == sequence.num_prompt + num_tokens:
            self._num_prompt_tokens += sequence.num_prompt
        self._num_completion_tokens += num_tokens
        self._num_forced_tokens += output.num_forced
        request_state.publish(output, now)
        if output.reason is not None:
            # Blocks are freed before the caller receives the end.
            self.scheduler.remove(sequence, retain=True)
            self.requests.finish(sequence.id, output.reason, now)

    def _measure(self, plan: Plan, outputs: Mapping[int, StepOutput], seconds: float) -> None:
        """Records the time of the steps of a plan."""
        tokens = sum(len(output.sampled) for output in outputs.values())
        if not all(chunk.samples and chunk.num_committed == 1 for chunk in plan.chunks):
            self._multi_step.on_prefill()
        elif plan.has_drafts:
            self._multi_step.on_drafts(tokens - len(outputs))
        else:
            self._multi_step.on_decode(len(plan.chunks), plan.num_steps, seconds)
        for _ in range(plan.num_steps):
            self._drafter.on_step(plan.chunks, tokens, seconds / plan.num_steps, num_parts=plan.num_parts)
        self._report(plan, seconds)

    def _report(self, plan: Plan, seconds: float) -> None:
        if logger.isEnabledFor(logging.DEBUG):
            lengths: tuple[list[int], list[int]] = ([], [])
            for chunk in plan.chunks:
                lengths[chunk.start >= chunk.sequence.num_prompt].append(chunk.start + chunk.num_committed)
            logger.debug("Prompt%s Completion%s - %dms", *lengths, round(seconds * 1000))

    def _fail_batch(self, plan: Plan, error: Exception) -> None:
        fault = request_failure(error)
        for chunk in plan.chunks:
            request_state = self.requests.get(chunk.sequence.id)
            if request_state is not None:
                self.requests.fail(request_state, fault)

    def _is_abandoned(self) -> bool:
        """Whether the step under way has no request left that is not cancelled."""
        return self.stopping or all(stream.cancelled for stream in self._step_streams)


def _carried_out(plan: Plan, steps: Row[Row[SampledToken | EngineError]]) -> Plan:
    """The plan of the steps that were made, from what they sampled: for each one row for each sequence."""
    if len(steps) == 1:
        return Plan(plan.chunks)
    chunks: list[Chunk] = []
    for chunk, rows in zip(plan.chunks, zip(*steps[:-1], strict=True), strict=True):
        chunks.append(chunk.decoded(tuple(row.token for row in rows if not isinstance(row, EngineError))))
    return Plan(chunks, len(steps))


def _parts_carried_out(plan: Plan, steps: Row[Row[SampledToken | EngineError]]) -> Plan:
    """The plan of one chunk of which these parts were computed."""
    return Plan([plan.chunks[0].first_part(sum(map(len, steps)))], num_parts=len(steps))
