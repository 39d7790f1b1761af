"""What a request may want of its prompt beside a continuation, gathered chunk by chunk: how likely its tokens were, and
one vector for all of it.

Chunked is whole, bit for bit: rows are taken one after another. Knows no model and no text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from mistralrs.engine.sampling.sampling_input import SampledToken, unusable_logits, with_logprobs
from mistralrs.errors import EngineError

if TYPE_CHECKING:
    import torch


class PromptLogprobsCollector:
    """Log-probabilities of the tokens of a prompt, the first excepted."""

    def __init__(self, prompt: Sequence[int], count: int) -> None:
        """``count``: the best so many at each place are kept beside the token's own."""
        self._following = prompt[1:]
        self._count = count
        self.sampled_tokens: list[SampledToken] = []
        """Those known so far; the first is the second token's."""

    @property
    def complete(self) -> bool:
        return len(self.sampled_tokens) == len(self._following)

    def add(self, logits: torch.Tensor) -> None:
        """Takes float32 logits (places, vocabulary) of the next places. Raises EngineError if some are not finite."""
        for row in logits:
            draw = with_logprobs(self._following[len(self.sampled_tokens)], row, self._count)
            if draw.logprob is None or not math.isfinite(draw.logprob):
                raise unusable_logits(row.amax().item())
            self.sampled_tokens.append(draw)


class Pooler:
    """The hidden states of a prompt, pooled: the last token's, or the mean of all."""

    def __init__(self, kind: Literal["mean", "last"], num_prompt: int) -> None:
        self._kind = kind
        self._num_prompt = num_prompt
        self._total: torch.Tensor | None = None

    def add(self, start: int, count: int, hidden: Callable[[int, int], torch.Tensor]) -> None:
        """Takes what it needs of the prompt's tokens ``start`` to ``start + count``.

        ``hidden(i, j)``: float32 hidden states (j - i, size) of the tokens i to j of these. Chunks come in order; one
        that starts at 0 starts again.
        """
        if self._kind == "last":
            if start + count == self._num_prompt:
                self._total = hidden(count - 1, count)[0].double()
            return
        rows = hidden(0, count).double()
        if start == 0:
            self._total = rows.new_zeros(rows.shape[1])
        assert self._total is not None, "a chunk of the prompt is missing"
        for row in rows:
            self._total += row

    def embedding(self) -> tuple[float, ...]:
        """The pooled vector (size,) with an L2 norm of 1. Raises EngineError if it has no direction."""
        assert self._total is not None, "no chunk of the prompt has come"
        length = self._total.norm().item()  # of a sum or of a mean: the direction is the same
        if not 0 < length < math.inf:
            raise EngineError("the hidden states are not finite numbers", hint="is the model file damaged?")
        values: list[float] = (self._total / length).tolist()
        return tuple(values)
