"""Samples tokens with a backend's ``RowSampler``; imports no torch.

``sampler`` is its reference: the same parameters, logits and numbers give the same token there, but for the rounding of
exponentials.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from ctypes import addressof, c_char, c_int32
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from typing import Any

from mistralrs.engine.config import SAMPLERS, SamplingParams
from mistralrs.engine.sampling.sampler_plan import sampler_plan
from mistralrs.engine.sampling.sampling_input import (
    PreparedSampling,
    SampledToken,
    SamplingInput,
    TokenSampler,
    uniform,
    unusable_logits,
)
from mistralrs.errors import EngineError
from mistralrs.ops.buffer import Buffer
from mistralrs.ops.row_sampler import RowSampler, SamplingRows

MAX_TEMPLATES = 256
"""Requests whose parameters are kept as rows."""
DRAWS = 32
"""Positions for which random numbers are made at once."""
MAX_DRAWS = 1024
"""Runs of positions whose numbers are kept; each sequence of a batch needs one."""
_COPIED = (
    *("temperature", "typical_p", "top_p", "min_p", "xtc_probability", "xtc_threshold"),
    *("frequency_penalty", "presence_penalty", "repetition_penalty"),
)
"""Parameters that a row has under the same name."""


@dataclass(frozen=True, slots=True)
class _Template:
    """The part of a row that a request's parameters decide."""

    row: Any
    stages: frozenset[str]
    repeat_last_n: int
    num_logprobs: int | None
    kept: tuple[array[Any], ...]
    """Memory that the row points to."""


class NativeSampler:
    """Samples a token for each row of a batch of logits. Used by one thread."""

    def __init__(self, vocab_size: int, row_sampler: RowSampler, hooks_sampler: Callable[[], TokenSampler]) -> None:
        """``hooks_sampler``: returns the sampler of rows that have hooks, which need NumPy anyhow."""
        self._hooks_sampler = hooks_sampler
        self._vocab_size = vocab_size
        self._row_sampler = row_sampler
        self._template_of_equal = lru_cache(maxsize=MAX_TEMPLATES)(self._new_template)
        self._templates: dict[int, tuple[SamplingParams, _Template]] = {}  # by the parameters' identity

    def sample(
        self, logits: Buffer, inputs: Sequence[SamplingInput], *, rows: Sequence[int] | None = None
    ) -> list[SampledToken | EngineError]:
        """One token for each input, as ``TokenSampler.sample`` says."""
        places = list(range(logits.shape[0])) if rows is None else rows
        if any(item.hooks for item in inputs):
            return self._sample_apart(logits, inputs, places)
        if not inputs:  # a step of prefill chunks that do not reach their ends
            return []
        prepared = self._prepared(logits, inputs, places)
        self._row_sampler.run(prepared.rows)
        return prepared.results()[0]

    def prepare(
        self,
        logits: Buffer,
        inputs: Sequence[SamplingInput],
        *,
        num_steps: int = 1,
        num_parts: int = 1,
        wait_flag: c_int32 | None = None,
    ) -> PreparedSampling | None:
        """As ``TokenSampler.prepare`` says: rows with hooks have to be sampled after the pass."""
        if not inputs or any(item.hooks for item in inputs):
            return None
        rows_of_part = len(inputs) // num_parts
        prepared = self._prepared(logits, inputs, [place % rows_of_part for place in range(len(inputs))], num_steps)
        if num_steps > 1:
            prepared.continue_rows(num_steps, wait_flag)
        elif num_parts > 1:
            prepared.divide_rows(num_parts, wait_flag)
        return prepared

    def _prepared(
        self, logits: Buffer, inputs: Sequence[SamplingInput], places: Sequence[int], num_steps: int = 1
    ) -> _Prepared:
        """Complete rows for these inputs, at least one, and copies of their templates for further steps. ``places``:
        the rows of their logits."""
        templates = [self._template(item.params) for item in inputs] * num_steps
        cells = self._row_sampler.rows([template.row for template in templates])
        start, width = logits.address, 4 * logits.shape[1]
        outputs = [
            self._complete(cells[index], item, templates[index], start + width * place)
            for index, (place, item) in enumerate(zip(places, inputs, strict=True))
        ]
        return _Prepared(self._row_sampler.to_sample(len(inputs)), cells, templates, outputs, inputs)

    def _template(self, params: SamplingParams) -> _Template:
        """The template of a request's parameters, which are the same object in all its steps: as keys, all their fields
        would be hashed in each of them."""
        known = self._templates.get(id(params))
        if known is None:
            if len(self._templates) >= MAX_TEMPLATES:
                self._templates.clear()
            known = self._templates[id(params)] = params, self._template_of_equal(params)
        return known[1]

    def _sample_apart(
        self, logits: Buffer, inputs: Sequence[SamplingInput], places: Sequence[int]
    ) -> list[SampledToken | EngineError]:
        """The same where some inputs have hooks."""
        results: dict[int, SampledToken | EngineError] = {}
        for has_hooks, sampler in ((True, self._hooks_sampler()), (False, self)):
            indices = [index for index, item in enumerate(inputs) if bool(item.hooks) is has_hooks]
            own = [inputs[index] for index in indices]
            sampled = sampler.sample(logits, own, rows=[places[index] for index in indices]) if own else []
            results.update(zip(indices, sampled, strict=True))
        return [results[index] for index in range(len(inputs))]

    def score(self, logits: Buffer, tokens: Sequence[int], count: int) -> list[SampledToken | EngineError]:
        """``tokens`` with log-probabilities, as ``TokenSampler.score`` says."""
        template = self._template(SamplingParams(logprobs=count))
        cells = self._row_sampler.rows([template.row] * len(tokens))
        kept = []
        for index, token in enumerate(tokens):
            cells[index].token = token
            cells[index].logits = logits.address + 4 * logits.shape[1] * index
            kept.append(_Outputs(cells[index], template.num_logprobs))
        if tokens:
            self._row_sampler.run(self._row_sampler.to_sample(len(tokens)))
        return [_sampled(cells[index], template.num_logprobs, outputs) for index, outputs in enumerate(kept)]

    def _new_template(self, params: SamplingParams) -> _Template:
        plan = sampler_plan(params)
        params = plan.effective_params or params
        row = self._row_sampler.new_row()
        row.vocab_size = self._vocab_size
        row.token = -1
        for name in _COPIED:
            setattr(row, name, getattr(params, name))
        row.top_k = min(params.top_k, self._vocab_size)
        num_logprobs = None if params.logprobs is None else min(params.logprobs, self._vocab_size)
        row.num_top = -1 if num_logprobs is None else num_logprobs
        row.num_stages, row.num_processors = len(plan.stages), plan.num_processors
        for place, stage in enumerate(plan.stages):
            row.stages[place] = SAMPLERS.index(stage)
        tokens, values = array("i", [token for token, _ in params.logit_bias]), array("f")
        values.extend(value for _, value in params.logit_bias)
        row.num_bias, row.bias_tokens, row.bias_values = len(tokens), _address(tokens), _address(values)
        return _Template(row, frozenset(plan.stages), params.repeat_last_n, num_logprobs, (tokens, values))

    def _complete(self, row: Any, item: SamplingInput, template: _Template, logits: int) -> _Outputs:
        """Fills what is new in this step into ``row``. Returns what must outlive the run."""
        outputs = _Outputs(row, template.num_logprobs)
        tokens, stages, position = item.tokens, template.stages, len(item.tokens)
        row.logits = logits
        _set_draws(row, template, item.params.seed, position)
        if "penalties" in stages:
            history = array("i", tokens[max(position - template.repeat_last_n, 0) :])
            row.num_history, row.history = len(history), outputs.keep(history)
        if "dry" in stages:
            assert item.dry is not None, "the request asks for DRY and has no penalties"
            penalties = item.dry.penalties(tokens)
            row.num_dry = len(penalties)
            row.dry_tokens = outputs.keep(array("i", penalties))
            row.dry_penalties = outputs.keep(array("f", penalties.values()))
        if item.banned:
            row.num_banned, row.banned = len(item.banned), outputs.keep(array("i", item.banned))
        if item.mask is not None:
            if item.mask.nbytes * 8 < self._vocab_size:
                raise ValueError(f"a mask of {item.mask.nbytes} bytes for {self._vocab_size} tokens")
            row.mask = addressof(c_char.from_buffer(item.mask))
        return outputs


@dataclass(slots=True)
class _Prepared:
    """A ``PreparedSampling``."""

    rows: SamplingRows
    cells: Sequence[Any]
    """The rows of all steps, to be read; they have ``templates`` and ``outputs``."""
    templates: Sequence[_Template]
    outputs: list[_Outputs]
    inputs: Sequence[SamplingInput]
    """The rows point to their masks."""
    wait_flag: c_int32 | None = None
    """The rows point to it."""

    def continue_rows(self, num_steps: int, wait_flag: c_int32 | None) -> None:
        """Completes the rows of the steps behind the first one."""
        count = len(self.inputs)
        for place in range(count, count * num_steps):
            self.outputs.append(_Outputs(self.cells[place], self.templates[place].num_logprobs))
        for index, item in enumerate(self.inputs):
            rows = [self.cells[place] for place in range(index, count * num_steps, count)]
            _continue(rows, item, self.templates[index], self.outputs[index])
        self._make_steps(num_steps, count, wait_flag)

    def divide_rows(self, num_parts: int, wait_flag: c_int32 | None) -> None:
        """Has the rows, which are complete and of one sequence, sampled in steps of equal parts."""
        _set_ends([self.cells[place] for place in range(len(self.inputs))], self.inputs[0], self.outputs[0])
        self._make_steps(num_parts, len(self.inputs) // num_parts, wait_flag)

    def _make_steps(self, num_steps: int, num_rows: int, wait_flag: c_int32 | None) -> None:
        self.wait_flag = wait_flag
        flag = 0 if wait_flag is None else addressof(wait_flag)
        self.rows = self.rows._replace(num_rows=num_rows, num_steps=num_steps, wait_flag=flag)

    def results(self) -> list[list[SampledToken | EngineError]]:
        count = self.rows.num_rows
        steps = [self._results(range(first, first + count)) for first in range(0, len(self.outputs), count)]
        has_error = [any(isinstance(row, EngineError) for row in rows) for rows in steps]
        return steps[:1] if has_error[0] else steps[: [*has_error, True].index(True)]

    def _results(self, places: range) -> list[SampledToken | EngineError]:
        """Those of the rows of a step."""
        return [
            _sampled(self.cells[place], self.templates[place].num_logprobs, self.outputs[place]) for place in places
        ]


class _Outputs:
    """The memory of one row's run: arrays that it reads, and those that take its log-probabilities."""

    def __init__(self, row: Any, num_logprobs: int | None) -> None:
        self._arrays: list[array[Any]] = []
        if num_logprobs:
            self.tokens, self.logprobs = array("i", bytes(4 * num_logprobs)), array("d", bytes(8 * num_logprobs))
            row.top_tokens, row.top_logprobs = self.keep(self.tokens), self.keep(self.logprobs)

    def keep(self, values: array[Any]) -> int | None:
        """The address of ``values``, which live as long as this object; None if they are empty."""
        self._arrays.append(values)
        return _address(values)


def _continue(rows: Sequence[Any], item: SamplingInput, template: _Template, outputs: _Outputs) -> None:
    """Completes the rows of an input's steps in a row, of which the first was complete. The history of each has the
    tokens of those before it, which the library appends. ``outputs``: keep what all of them read."""
    position, last_n = len(item.tokens), template.repeat_last_n
    known = item.tokens[max(position - last_n, 0) :] if "penalties" in template.stages else []
    history = array("i", [*known, *[0] * len(rows)])
    start = outputs.keep(history) or 0
    _set_ends(rows, item, outputs)
    for place, row in enumerate(rows):
        if place:
            row.logits = rows[0].logits
            _set_draws(row, template, item.params.seed, position + place)
        if "penalties" in template.stages:
            length = len(known) + place
            row.num_history = min(length, last_n)
            row.history = start + history.itemsize * (length - row.num_history)
            row.appended = start + history.itemsize * length


def _set_ends(rows: Sequence[Any], item: SamplingInput, outputs: _Outputs) -> None:
    """Lets no step follow one that ends the sequence of an input. ``outputs``: keep what all of its rows read."""
    ends = array("i", item.ends)
    address = outputs.keep(ends)
    for row in rows:
        row.ends, row.num_ends = address, len(ends)


def _set_draws(row: Any, template: _Template, seed: int, position: int) -> None:
    """Gives a row the random numbers of a position."""
    row.draw = _draws(seed, position // DRAWS)[position % DRAWS]
    if "xtc" in template.stages:
        row.xtc_draw = uniform(seed, position, "xtc")


def _sampled(row: Any, num_logprobs: int | None, outputs: _Outputs) -> SampledToken | EngineError:
    if not isfinite(row.top) or row.token < 0:
        return unusable_logits(row.top)
    if num_logprobs is None:
        return SampledToken(row.token)
    if not isfinite(row.logprob):
        return unusable_logits(row.top)
    top = zip(outputs.tokens, outputs.logprobs, strict=True) if num_logprobs else ()
    return SampledToken(row.token, row.logprob, tuple((token, value) for token, value in top if token >= 0))


@lru_cache(maxsize=MAX_DRAWS)
def _draws(seed: int, run: int) -> tuple[float, ...]:
    """``uniform`` for the positions of a run. For one position alone, most of the time would go into fetching its code
    from memory."""
    return tuple([uniform(seed, position) for position in range(run * DRAWS, (run + 1) * DRAWS)])


def _address(values: array[Any]) -> int | None:
    return values.buffer_info()[0] if values else None
