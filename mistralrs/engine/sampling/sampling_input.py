"""What goes into one draw, what comes out of it, and the numbers that decide it.

Knows no batch and no order of stages. Tensors pass through; torch is imported by whoever has some.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from struct import pack
from typing import TYPE_CHECKING, Literal

from mistralrs.engine.config import SamplingParams
from mistralrs.engine.sampling.dry_penalty import Dry
from mistralrs.errors import EngineError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class SamplingInput:
    """One place where a token is wanted."""

    params: SamplingParams
    tokens: Sequence[int]
    """All known tokens of the sequence; their number is the position of the token to be drawn."""
    mask: torch.Tensor | None = None
    """Tokens that may come: bool (vocab_size,), or int32 words (ceil(vocab_size / 32),) with the lowest bit first."""
    banned: tuple[int, ...] = ()
    """Tokens that may not come, whatever ``mask`` says."""
    dry: Dry | None = None
    """Must be there if ``params`` ask for DRY, which reads what tokens spell."""


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A drawn token, with natural-log probabilities if they were asked for."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    """(token, log-probability), best first."""


def with_logprobs(token: int, scores: torch.Tensor, count: int) -> SampledToken:
    """``token`` with its own and the best ``count`` log-probabilities under ``scores`` (vocab_size,)."""
    logprobs = scores.double().log_softmax(0)
    values, ids = logprobs.topk(count)
    return SampledToken(token, logprobs[token].item(), tuple(zip(ids.tolist(), values.tolist(), strict=True)))


def unusable_logits(top: float) -> EngineError:
    """What to say of logits whose largest is ``top``, which is not finite."""
    if top == float("-inf"):
        return EngineError("no token may follow: every logit is minus infinity", hint="check mask and logit_bias")
    return EngineError("the logits are not finite numbers", hint="is the model file damaged?")


def uniform(seed: int, position: int, use: Literal["draw", "xtc"] = "draw") -> float:
    """The number in [0, 1) that decides about the token at ``position``: 53 random bits, a function of the arguments.

    A counter-based generator, so that preemption and batching cannot shift a sequence of draws. Choices of one
    request have seeds of their own; numbers for different uses are independent.
    """
    block_hash = hashlib.blake2b(pack("<Qq", seed % 2**64, position), digest_size=8, person=use.encode()).digest()
    return (int.from_bytes(block_hash, "little") >> 11) * 2.0**-53
