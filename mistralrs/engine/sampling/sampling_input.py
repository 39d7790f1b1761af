"""Input and result of sampling one token, and the random numbers that decide it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from ctypes import c_int32
from dataclasses import dataclass
from struct import pack
from typing import TYPE_CHECKING, Literal, Protocol

from mistralrs.engine.config import SamplingParams
from mistralrs.engine.sampling.dry_penalty import Dry
from mistralrs.errors import EngineError
from mistralrs.ops.buffer import Buffer
from mistralrs.ops.row_sampler import SamplingRows

if TYPE_CHECKING:
    from mistralrs.engine.request_hooks import LogitsProcessor


class NoTokenError(EngineError):
    """Every token of a row is excluded, by the request or because the model's logits are minus infinity."""

    def __init__(self) -> None:
        super().__init__("no token may follow: every logit is minus infinity", hint="is the model file damaged?")


@dataclass(frozen=True, slots=True)
class SamplingInput:
    """Everything that decides one sampled token, beside its logits."""

    params: SamplingParams
    tokens: Sequence[int]
    """All known tokens of the sequence; their number is the position of the token to be sampled."""
    mask: memoryview | None = None
    """Allowed tokens: int32 (ceil(vocab_size / 32) or more), a bit for each, the lowest first. None: all."""
    banned: tuple[int, ...] = ()
    """Tokens that are excluded even if ``mask`` allows them."""
    dry: Dry | None = None
    """Required if ``params`` turn DRY on."""
    hooks: tuple[LogitsProcessor, ...] = ()
    """Functions of the caller that change the logits before the mask."""
    ends: frozenset[int] = frozenset()
    """Tokens that end the sequence."""


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A sampled token, with natural-log probabilities if the request asks for them."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    """(token, log-probability), best first."""


class PreparedSampling(Protocol):
    """Sampling that a forward pass does in its own call. The sampler is not used until the results are read."""

    @property
    def rows(self) -> SamplingRows:
        """The rows for the forward pass."""
        ...

    def results(self) -> list[list[SampledToken | EngineError]]:
        """For each step that was made, after the pass, one token for each of its inputs, as ``TokenSampler.sample``
        says. Only the first step may have errors: one behind it that has some counts as not made."""
        ...


class TokenSampler(Protocol):
    """The interface of a sampler: samples a token for each row of a batch of logits. One thread uses it."""

    def sample(
        self, logits: Buffer, inputs: Sequence[SamplingInput], *, rows: Sequence[int] | None = None
    ) -> list[SampledToken | EngineError]:
        """One token for each input.

        ``logits``: float32 (count, vocab_size or more), which are not changed.
        ``rows``: the row of each input, ascending; None: all rows.
        A row without a usable logit yields an error instead of a token, and does not affect the others.
        """
        ...

    def prepare(
        self,
        logits: Buffer,
        inputs: Sequence[SamplingInput],
        *,
        num_steps: int = 1,
        num_parts: int = 1,
        wait_flag: c_int32 | None = None,
    ) -> PreparedSampling | None:
        """Prepares one token for each input, from the first rows of ``logits``, which a forward pass is about to write.
        None: they have to be sampled after the pass.

        ``num_steps``: steps in a row that the pass makes at most, each with the tokens of the one before; with more
        than one, no input has a mask, banned tokens or DRY. ``num_parts``: steps in a row that share the inputs, those
        of draft tokens, each made if the draft tokens before it were right. ``wait_flag``: not zero stops them.
        """
        ...

    def score(self, logits: Buffer, tokens: Sequence[int], count: int) -> list[SampledToken | EngineError]:
        """``tokens``, one for each row of ``logits``, with their own and the best ``count`` log-probabilities."""
        ...


def unusable_logits(top: float) -> EngineError:
    """The error for logits whose largest is ``top``, which is not finite."""
    if top == float("-inf"):
        return NoTokenError()
    return EngineError("the logits are not finite numbers", hint="is the model file damaged?")


def uniform(seed: int, position: int, use: Literal["draw", "xtc"] = "draw") -> float:
    """The random number in [0, 1) for the token at ``position``: 53 bits that depend on the arguments alone.

    The generator is counter-based, so that preemption and batching cannot shift the numbers of a request. The choices
    of one request have seeds of their own; numbers for different uses are independent.
    """
    random_bytes = hashlib.blake2b(pack("<Qq", seed % 2**64, position), digest_size=8, person=use.encode()).digest()
    return (int.from_bytes(random_bytes, "little") >> 11) * 2.0**-53
