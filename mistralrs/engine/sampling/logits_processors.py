"""Processors that change scores before tokens are chosen: penalties, DRY, bias and masks.

The result of a row depends on that row alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import torch

from mistralrs.engine.request_hooks import hook_error
from mistralrs.engine.sampling.sampling_input import SamplingInput


def apply_penalties(scores: torch.Tensor, inputs: Iterable[tuple[int, SamplingInput]]) -> None:
    """Applies repetition penalties (divides positive scores, multiplies others), then frequency and presence penalties.

    ``scores`` (rows, width) change in place, in the rows whose indices ``inputs`` names.
    """
    places: list[int] = []
    columns: list[tuple[float, float, float]] = []  # for each place: repetition, count * frequency, presence
    for index, sampling_input in inputs:
        p = sampling_input.params
        for token, count in Counter(sampling_input.tokens[-p.repeat_last_n :]).items():
            places.append(index * scores.shape[1] + token)
            columns.append((p.repetition_penalty, count * p.frequency_penalty, p.presence_penalty))
    if places:
        flat, where = scores.view(-1), torch.tensor(places)
        repetition, frequency, presence = torch.tensor(columns, dtype=torch.float32).unbind(1)
        values = flat[where]
        values = torch.where(values > 0, values / repetition, values * repetition)
        flat[where] = values - (frequency + presence)


def _apply_penalties_to_one(scores: torch.Tensor, sampling_input: SamplingInput) -> None:
    apply_penalties(scores.unsqueeze(0), [(0, sampling_input)])


def _apply_dry(scores: torch.Tensor, sampling_input: SamplingInput) -> None:
    """Subtracts the DRY penalties."""
    assert sampling_input.dry is not None, "the request asks for DRY and has no penalties"
    penalties = sampling_input.dry.penalties(sampling_input.tokens)
    if penalties:
        scores[list(penalties)] -= torch.tensor(list(penalties.values()), dtype=torch.float32)


LOGITS_PROCESSORS: Mapping[str, Callable[[torch.Tensor, SamplingInput], None]] = {
    "penalties": _apply_penalties_to_one,
    "dry": _apply_dry,
}
"""Stages that change the scores (vocab_size,) of one row in place, by its tokens."""


def apply_mask(scores: torch.Tensor, sampling_input: SamplingInput) -> torch.Tensor:
    """Adds the bias to ``scores`` (vocab_size,), calls hooks, and then excludes masked and banned tokens, in place.

    Returns the scores with bias alone, from which log-probabilities are computed. Raises EngineError if a hook fails.
    """
    if sampling_input.params.logit_bias:
        ids, values = zip(*sampling_input.params.logit_bias, strict=True)
        scores.index_add_(0, torch.tensor(ids), torch.tensor(values, dtype=torch.float32))
    if sampling_input.mask is None and not sampling_input.banned and not sampling_input.hooks:
        return scores
    before = scores.clone() if sampling_input.params.logprobs is not None else scores
    if sampling_input.hooks:
        _call_hooks(scores, sampling_input)
    if sampling_input.mask is not None:
        scores.masked_fill_(~_allowed(sampling_input.mask, scores.shape[0]), -math.inf)
    if sampling_input.banned:
        scores[list(sampling_input.banned)] = -math.inf
    return before


def _call_hooks(scores: torch.Tensor, sampling_input: SamplingInput) -> None:
    """Lets hooks change a copy of ``scores``, since one may keep its row, and takes the result."""
    row, tokens = scores.numpy().copy(), tuple(sampling_input.tokens)
    for hook in sampling_input.hooks:
        try:
            hook(tokens, row)
            top = row.max()
            if not math.isfinite(top):
                raise ValueError(f"the largest of its logits is {top}")
        except BaseException as error:  # SystemExit too: it would end the engine's thread
            raise hook_error("the logits processor", hook, error=error) from error
    scores.copy_(torch.from_numpy(row))


def _allowed(mask: memoryview, vocab_size: int) -> torch.Tensor:
    """bool (vocab_size,) of a bitmask."""
    bits = torch.frombuffer(mask, dtype=torch.int32).unsqueeze(1) >> torch.arange(32, dtype=torch.int32)  # (words, 32)
    return bits.bitwise_and_(1).flatten()[:vocab_size].bool()
