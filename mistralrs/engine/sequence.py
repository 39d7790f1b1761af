"""The state of one sequence of tokens: its known tokens, its computed tokens, and its KV blocks."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Literal

from mistralrs.engine.active_adapters import ActiveAdapter, active_adapters
from mistralrs.engine.config import Request, SamplingParams
from mistralrs.engine.kv.block_pool import hash_adapters, hash_block, hash_root
from mistralrs.engine.ngram_proposer import NgramProposer

if TYPE_CHECKING:
    from mistralrs.engine.sequence_constraint import SequenceConstraint


class State(Enum):
    """Where a sequence stands in the scheduler, which does not have new ones yet."""

    NEW = "new"
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class ExecutorState:
    """A place in which the executor keeps what one step of a sequence leaves to later ones. Nobody else reads it."""

    num_prompt: int
    """Tokens of the sequence's prompt; later tokens are generated."""
    kept: object | None = None


@dataclass(slots=True, eq=False)
class Sequence:
    """A prompt and the tokens sampled after it. Only the scheduler changes it."""

    id: int
    """Order of arrival."""
    tokens: list[int]
    """Known tokens: the prompt, then the sampled ones."""
    sampling: SamplingParams
    max_len: int
    """Number of known tokens at which it ends with reason "length"."""
    cache_salt: str = ""
    """Sequences share KV blocks only where this is equal."""
    adapters: tuple[ActiveAdapter, ...] = ()
    """Adapters that act on it. Sequences share KV blocks with a token on which one acts only where they agree in its
    content, its weight and its first token."""
    reuse: bool = True
    """Whether it may start from cached blocks. Others may reuse its own blocks in any case."""
    end_ids: frozenset[int] = frozenset()
    """Tokens that end it with reason "stop" when they are sampled."""
    prompt_end: Literal["stop", "length"] | None = None
    """Not None: no token is sampled, and it ends with this reason once its prompt is computed."""
    scores_prompt: bool = False
    """Whether the logits at all prompt positions but the last are needed, for the tokens after them."""
    num_scored: int = 0
    """Leading positions whose logits were computed, if ``scores_prompt``."""
    num_prompt: int = field(init=False)
    num_computed: int = 0
    """Leading tokens that have been computed."""
    num_cached: int | None = None
    """Prompt tokens found in the prefix cache when it was first admitted; None until then."""
    block_tables: list[list[int]] = field(default_factory=list)
    """A block table for each KV group while it runs: token i lies in ``table[i // block_size]``."""
    num_window_evicted: list[int] = field(default_factory=list)
    """Leading entries of each table that are undefined, because the group's window has left their blocks behind."""
    num_registered: int = 0
    """Leading blocks that are registered for reuse by others."""
    ngram_proposer: NgramProposer = field(default_factory=NgramProposer)
    """Proposes draft tokens."""
    constraint: SequenceConstraint | None = None
    """The grammar that the tokens after the prompt match."""
    takes_drafts: bool = True
    takes_steps: bool = True
    """Whether tokens may be sampled and computed before those before them are committed."""
    executor_state: ExecutorState = field(init=False)
    state: State = State.NEW
    finish_reason: Literal["stop", "length"] | None = None
    _block_hashes: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.num_prompt = len(self.tokens)
        self.executor_state = ExecutorState(self.num_prompt)

    @classmethod
    def of(cls, number: int, request: Request, prompt: list[int], *, limit: int, eos_ids: frozenset[int]) -> Sequence:
        """The sequence of ``request`` with its ``prompt``, truncated already; ``limit``: tokens that it can have."""
        sampling = request.sampling
        room = limit - len(prompt)
        if sampling.max_tokens is not None:
            room = min(room, sampling.max_tokens)
        scores_prompt, pools = request.prompt_logprobs is not None, request.pooling is not None
        return cls(
            number,
            prompt,
            sampling,
            max_len=len(prompt) + room,
            cache_salt=request.cache_salt,
            adapters=active_adapters(request.adapters, prompt),
            # Tokens from the prefix cache have neither logits nor hidden states.
            reuse=request.reuse and not scores_prompt and request.pooling != "mean" and not request.hidden_states,
            end_ids=frozenset(sampling.stop_token_ids) | (frozenset() if sampling.ignore_eos else eos_ids),
            prompt_end="stop" if pools else "length" if scores_prompt and room == 0 else None,
            scores_prompt=scores_prompt,
            takes_drafts=request.hooks is None,
            takes_steps=request.hooks is None and request.thinking is None and not sampling.dry_multiplier,
        )

    def prompt_progress(self) -> tuple[int, int]:
        """Returns how many tokens of the prompt have their KV, and how many there are."""
        return min(self.num_computed, self.num_prompt), self.num_prompt

    @property
    def num_remaining(self) -> int:
        """Known tokens that are not computed."""
        return len(self.tokens) - self.num_computed

    @property
    def num_unscored(self) -> int:
        """Prompt positions whose logits are still to be computed."""
        return max(self.num_prompt - 1 - self.num_scored, 0) if self.scores_prompt else 0

    def reason_after(self, token: int, num_tokens: int) -> Literal["stop", "length"] | None:
        """Why it ends with ``token`` as its last of ``num_tokens`` tokens; None: it goes on."""
        if token in self.end_ids:
            return "stop"
        return "length" if num_tokens >= self.max_len else None

    def block_hashes(self, count: int, block_size: int) -> list[bytes]:
        """Hashes of the first ``count`` blocks, all of which must be full of known tokens."""
        chain = self._block_hashes
        while len(chain) < count:
            parent = chain[-1] if chain else hash_root(self.cache_salt)
            start = len(chain) * block_size
            stop = start + block_size
            # An adapter enters with the first block that it changes: the blocks before are the base's.
            entering = [active for active in self.adapters if start <= active.first_position < stop]
            if entering:
                entries = [(active.digest, active.weight, active.first_position) for active in entering]
                parent = hash_adapters(parent, entries)
            chain.append(hash_block(parent, self.tokens[start:stop]))
        return chain[:count]
