"""What changes scores before anything is chosen by them: penalties, DRY, bias, and what may not come.

A row's result depends on that row alone. Knows no temperature and no draw.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import torch

from mistralrs.engine.sampling.sampling_input import SamplingInput


def apply_penalties(scores: torch.Tensor, rows: Iterable[tuple[int, SamplingInput]]) -> None:
    """Repetition (positive scores divided, others multiplied), then frequency and presence, over the last tokens.

    ``scores`` (rows, width) change in place, in the rows that are numbered in ``rows``.
    """
    places: list[int] = []
    columns: list[tuple[float, float, float]] = []  # of each place: repetition, what a token costs, presence
    for index, row in rows:
        p = row.params
        for token, count in Counter(row.tokens[-p.repeat_last_n :]).items():
            places.append(index * scores.shape[1] + token)
            columns.append((p.repetition_penalty, count * p.frequency_penalty, p.presence_penalty))
    if places:
        flat, where = scores.view(-1), torch.tensor(places)
        repetition, frequency, presence = torch.tensor(columns, dtype=torch.float32).unbind(1)
        values = flat[where]
        values = torch.where(values > 0, values / repetition, values * repetition)
        flat[where] = values - (frequency + presence)


def _apply_penalties_to_one(scores: torch.Tensor, row: SamplingInput) -> None:
    apply_penalties(scores.unsqueeze(0), [(0, row)])


def _apply_dry(scores: torch.Tensor, row: SamplingInput) -> None:
    """DRY."""
    assert row.dry is not None, "the row asks for DRY and has none"
    penalties = row.dry.penalties(row.tokens)
    if penalties:
        scores[list(penalties)] -= torch.tensor(list(penalties.values()), dtype=torch.float32)


LOGITS_PROCESSORS: Mapping[str, Callable[[torch.Tensor, SamplingInput], None]] = {
    "penalties": _apply_penalties_to_one,
    "dry": _apply_dry,
}
"""The stages that change the scores (vocab_size,) of one row in place by what its tokens are."""


def apply_mask(scores: torch.Tensor, row: SamplingInput) -> torch.Tensor:
    """Adds the bias to ``scores`` (vocab_size,) and takes out what may not come, in place.

    Returns the scores from between the two, of which log-probabilities are taken.
    """
    if row.params.logit_bias:
        ids, values = zip(*row.params.logit_bias, strict=True)
        scores.index_add_(0, torch.tensor(ids), torch.tensor(values, dtype=torch.float32))
    if row.mask is None and not row.banned:
        return scores
    before = scores.clone() if row.params.logprobs is not None else scores
    if row.mask is not None:
        scores.masked_fill_(~_allowed(row.mask, scores.shape[0]), -math.inf)
    if row.banned:
        scores[list(row.banned)] = -math.inf
    return before


def _allowed(mask: torch.Tensor, vocab_size: int) -> torch.Tensor:
    if mask.dtype == torch.bool:
        return mask
    bits = mask.unsqueeze(1) >> torch.arange(32, dtype=torch.int32)  # (words, 32)
    return bits.bitwise_and_(1).flatten()[:vocab_size].bool()
