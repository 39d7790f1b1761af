"""Outputs beside the text, collected chunk by chunk: a prompt's log-probabilities, its embedding, a request's scalings.

The results do not depend on the chunks, bit for bit, because tokens are processed one after another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from mistralrs.engine.config import Request
from mistralrs.engine.events import Embedding, Scalings
from mistralrs.engine.sampling.buffer_tensor import float_rows
from mistralrs.engine.sampling.sampling_input import SampledToken, TokenSampler
from mistralrs.errors import EngineError
from mistralrs.ops.buffer import Buffer

if TYPE_CHECKING:
    import torch


MAX_SCALINGS = 1 << 20
"""Scalings of one request, at most: tokens times layers times adapters."""


class PromptLogprobsCollector:
    """Collects the log-probabilities of a prompt's tokens, except for the first token."""

    def __init__(self, prompt: Sequence[int], count: int) -> None:
        """``count``: most likely tokens to keep at each position, beside the prompt's own."""
        self._following = prompt[1:]
        self._count = count
        self.sampled_tokens: list[SampledToken] = []
        """Results so far, from the prompt's second token on."""

    @property
    def complete(self) -> bool:
        return len(self.sampled_tokens) == len(self._following)

    def add(self, logits: Buffer, sampler: TokenSampler) -> None:
        """Adds float32 logits (positions, vocab_size or more) of the next positions.

        Raises EngineError if some are not finite.
        """
        known = len(self.sampled_tokens)
        for scored in sampler.score(logits, self._following[known : known + logits.shape[0]], self._count):
            if isinstance(scored, EngineError):
                raise scored
            self.sampled_tokens.append(scored)


class Pooler:
    """Pools the hidden states of a prompt: takes the last token's, or the mean of all. May keep them as well."""

    def __init__(self, kind: Literal["mean", "last"], num_prompt: int, *, keeps: bool = False) -> None:
        """``keeps``: the embedding has the hidden states of all tokens."""
        self._kind = kind
        self._num_prompt = num_prompt
        self._keeps = keeps
        self._kept: list[bytes] = []
        self._total: torch.Tensor | None = None

    @classmethod
    def of(cls, request: Request, num_prompt: int) -> Pooler:
        """The pooler of a request whose prompt has ``num_prompt`` tokens."""
        assert request.pooling is not None
        return cls(request.pooling, num_prompt, keeps=request.hidden_states)

    def add(self, start: int, count: int, hidden: Callable[[int, int], Buffer]) -> None:
        """Adds the prompt's tokens ``start`` to ``start + count``.

        ``hidden(i, j)``: float32 hidden states (j - i, size) of tokens i to j of this chunk. Chunks come in order; a
        chunk that starts at 0 starts the pooling anew.
        """
        if self._keeps:
            self._kept = self._kept if start else []
            self._kept.append(float_rows(hidden(0, count)).numpy().tobytes())
        if self._kind == "last":
            if start + count == self._num_prompt:
                self._total = float_rows(hidden(count - 1, count))[0].double()
            return
        rows = float_rows(hidden(0, count)).double()
        if start == 0:
            self._total = rows.new_zeros(rows.shape[1])
        assert self._total is not None, "a chunk of the prompt is missing"
        for row in rows:
            self._total += row

    def embedding(self) -> Embedding:
        """The pooled vector (size,) with an L2 norm of 1. Raises EngineError if it has no direction."""
        assert self._total is not None, "no chunk of the prompt was added"
        length = self._total.norm().item()  # a sum serves as well as a mean: the direction is the same
        if not 0 < length < math.inf:
            raise EngineError("the hidden states are not finite numbers", hint="is the model file damaged?")
        values: list[float] = (self._total / length).tolist()
        return Embedding(tuple(values), b"".join(self._kept))


class ScalingsCollector:
    """Collects the scalings of a request's tokens, each token's once however often it is computed."""

    def __init__(self) -> None:
        self._start: int | None = None
        self._pieces: list[bytes] = []
        self._count = 0
        self._omitted = 0
        self._shape = (0, 0)

    def add(self, start: int, scalings: Buffer) -> None:
        """Adds float32 scalings (tokens, layers, adapters) of the tokens from position ``start`` on."""
        if self._start is None:
            self._start = start
        count, layers, adapters = scalings.shape
        self._shape = (layers, adapters)
        known = min(max(self._start + self._count + self._omitted - start, 0), count)
        room = max(MAX_SCALINGS // (layers * adapters) - self._count, 0)
        stop = min(known + room, count)
        self._pieces.append(bytes(scalings.rows(known, stop).span.bytes))
        self._count += stop - known
        self._omitted += count - stop

    def collected(self, tokens: Sequence[int]) -> Scalings:
        """The event. ``tokens``: the known tokens of the sequence."""
        start = self._start or 0
        return Scalings(
            start, tuple(tokens[start : start + self._count]), self._shape, b"".join(self._pieces), self._omitted
        )
