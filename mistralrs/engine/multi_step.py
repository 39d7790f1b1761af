"""Decides how many decode steps the library makes in one call.

Behind a step, the weights have driven the engine's own memory out of the processor's caches: planning, committing and
delivering takes 0.3 to 0.4 ms. Steps in a row share that time. Their tokens are delivered together.
"""

from __future__ import annotations

MAX_STEPS = 8
SECONDS = 0.06
"""Time that steps in a row may take: readers hardly see that tokens come together."""
SMOOTHING = 0.3
"""Weight of the newest measurement in the exponential average."""


class MultiStep:
    """Measures steps that decode. The engine's thread alone uses it."""

    def __init__(self, *, has_drafts: bool) -> None:
        """``has_drafts``: whether there are draft tokens, which no step but the first can have."""
        self._has_drafts = has_drafts
        self._num_seqs = 0  # of the steps that were measured
        self._step_s = 0.0
        self._num_plain = 0  # tokens of each sequence since draft tokens were of use, or a prompt came

    def limit(self, num_seqs: int) -> int:
        """Steps of so many sequences that may be made in a row now, at least one: one more for each token without use
        for draft tokens, as drafts are missed in all but the first."""
        if num_seqs > self._num_seqs:  # they take longer than those that were measured
            return 1
        count = min(MAX_STEPS, int(SECONDS / max(self._step_s, 1e-6)))
        return max(min(count, 1 + self._num_plain) if self._has_drafts else count, 1)

    def on_decode(self, num_seqs: int, num_steps: int, seconds: float) -> None:
        """Records steps in a row of so many sequences, without draft tokens, that took ``seconds`` together."""
        each = seconds / num_steps
        self._step_s = each if num_seqs != self._num_seqs else self._step_s + SMOOTHING * (each - self._step_s)
        self._num_seqs = num_seqs
        self._num_plain += num_steps

    def on_drafts(self, accepted: int) -> None:
        """Records a step with draft tokens, of which ``accepted`` were right."""
        if accepted:
            self._num_plain = 0

    def on_prefill(self) -> None:
        """Records a step that computed prompts."""
        self._num_plain = 0
