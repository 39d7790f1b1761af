"""One sequence of tokens on its way through the engine: what is known, what is computed, where its KV lies.

Knows no text, no stream and no tensor.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from mistralrs.engine.block_pool import chain_digest, root_digest
from mistralrs.engine.config import SamplingParams


class State(Enum):
    """Where a sequence stands in the scheduler."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """A prompt and what has been drawn after it. Only the scheduler changes it."""

    id: int
    """Order of arrival."""
    tokens: list[int]
    """Known tokens: the prompt, then what was drawn."""
    sampling: SamplingParams
    max_len: int
    """Known tokens at which it ends with reason "length"."""
    identity: str = ""
    """What beside the tokens decides the content of its KV; sequences share blocks only where this is equal."""
    num_prompt: int = field(init=False)
    num_computed: int = 0
    """Leading tokens whose KV is in ``blocks``."""
    num_cached: int | None = None
    """Prompt tokens that a prefix hit saved when it was first admitted; None until then."""
    blocks: list[int] = field(default_factory=list)
    """Block table: token i lies in ``blocks[i // block_size]``."""
    num_registered: int = 0
    """Leading blocks that others may share."""
    state: State = State.WAITING
    finish_reason: Literal["stop", "length"] | None = None
    _chain: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.num_prompt = len(self.tokens)

    @property
    def num_remaining(self) -> int:
        """Known tokens that are not computed."""
        return len(self.tokens) - self.num_computed

    def digests(self, count: int, block_size: int) -> list[bytes]:
        """Digests of the first ``count`` blocks, all of which must be full of known tokens."""
        chain = self._chain
        while len(chain) < count:
            parent = chain[-1] if chain else root_digest(self.identity)
            start = len(chain) * block_size
            chain.append(chain_digest(parent, self.tokens[start : start + block_size]))
        return chain[:count]
