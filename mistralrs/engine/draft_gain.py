"""Weighs draft tokens by measured times: how many of them make a step gain, and how much may be risked on a trial.

It handles numbers alone: seconds, tokens and chances.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

PART = 8
"""Tokens of one sequence that are computed at once: a tile of the kernels. Others follow if these were right."""
SMOOTHING = 0.25
"""Weight of the newest measurement in the exponential average."""
MARGIN = 1.05
"""Gain in speed that draft tokens must promise: chances are known with some error only."""
MARGIN_AFTER_LOSSES = 1.2
"""The same while the balance is below zero."""
GUESSED_COST = 0.05
"""Share of a step that one more token is believed to cost until that was measured."""
GUESSED_PASS = 5
"""Tokens of a long text that are read in the time that a pass over one token is believed to take."""
PLAIN_EVERY = 64
"""Steps with draft tokens after which one is made without, to know what it takes now."""
FORGET_AFTER = 1024
"""Steps after which measurements are no longer believed."""
FASTER = 0.85
"""Share of the time that a step without draft tokens took before, below which the machine has become faster."""
FORGET_ONE_AFTER = 32
"""The same for a single measurement, which may have been held up by something else."""
SHARE = 0.008
"""Share of all time that may be lost on trials."""
FIRST_BALANCE_S = 0.1
MAX_BALANCE_S = 2.0


@dataclass(frozen=True, slots=True)
class Offer:
    """Draft tokens that one sequence could have."""

    chance: float
    """The chance that each is accepted if those before it are."""
    limit: int
    """Their number, at most."""
    from_model: bool = False
    """A draft model must compute them, one after the other."""
    chances: tuple[float, ...] = ()
    """The chance of each of them, where it is known; ``chance`` is that of those behind."""

    def useful(self) -> Iterator[float]:
        """Yields the chance of each to be of use: that it and all before it are accepted."""
        useful = 1.0
        for place in range(self.limit):
            useful *= self.chances[place] if place < len(self.chances) else self.chance
            yield useful


@dataclass(frozen=True, slots=True)
class _Measured:
    """The measured time of steps of one kind, or of a pass of the draft model, or of a token that it reads."""

    seconds: float
    step: int
    """The number of steps when it was last measured."""
    count: int
    """1, or 2 for more."""
    plain: float | None
    """The time of a step without draft tokens when it was measured; None: not known, or this is that time."""

    def believed(self, plain: float | None) -> float:
        """The seconds that it takes now, where a step without draft tokens takes ``plain``: less than it took if the
        machine has become faster. Otherwise draft tokens that did not gain while memory was slow would not be tried
        again."""
        if self.plain is None or plain is None or plain >= FASTER * self.plain:
            return self.seconds
        return self.seconds * plain / self.plain


class DraftGain:
    """Decides from the times of earlier steps. The engine's thread alone uses it.

    Draft tokens may lose no more than ``SHARE`` of all time and what they gained before: losses and gains are booked on
    a balance of seconds. While that is below zero, a draft model rests and others must promise more.
    """

    def __init__(self) -> None:
        self.balance_s = FIRST_BALANCE_S
        """Seconds that may be lost."""
        self._steps = 0
        self._times: dict[tuple[int, int, int], _Measured] = {}  # by numbers of sequences, tokens and parts
        self._drafted_since: dict[int, int] = {}  # by sequences: steps with drafts since the last one without
        self._pass_time: _Measured | None = None
        self._token_time: _Measured | None = None  # of those that the draft model reads
        self._spent_s = 0.0  # by the draft model since the last step

    @property
    def affordable_tokens(self) -> int:
        """Tokens that the draft model may read at once."""
        token_s = self._token()
        return int(self.balance_s / 2 / token_s) if token_s else 32

    def choose(self, offers: Sequence[Offer], rows: int, *, in_parts: bool = False) -> tuple[list[int], bool]:
        """How many draft tokens each sequence of a step gets, ``rows`` at most in sum, and whether they are computed in
        parts of ``PART`` tokens. ``in_parts``: whether they may be, those of one sequence."""
        none = [0] * len(offers)
        num_seqs = len(offers)
        plain = self._known(num_seqs, num_seqs)
        if plain is None or self._drafted_since.get(num_seqs, 0) >= PLAIN_EVERY:
            return none, False
        best, chosen = num_seqs / plain * (MARGIN if self.balance_s >= 0 else MARGIN_AFTER_LOSSES), none
        tokens, taken, divided = float(num_seqs), [0] * num_seqs, False
        offered = self._by_chance(offers)[:rows]
        from_model = [index for index, offer in enumerate(offers) if offer.from_model]
        for extra, (chance, index) in enumerate(offered, 1):
            tokens += chance
            taken[index] += 1
            if extra < len(offered) and not (from_model or self._is_tried(num_seqs, num_seqs + extra)):
                continue
            seconds, is_divided = self._step_s(num_seqs, num_seqs + extra), False
            if in_parts and extra + 1 == 2 * PART:
                is_divided = (parts := self._parts_s(offered[PART - 1][0])) < seconds
                seconds = min(parts, seconds)
            if from_model:
                seconds += max(taken[index] for index in from_model) * self._pass()
            rate = tokens / seconds
            if rate > best:
                best, chosen, divided = rate, list(taken), is_divided
        return chosen, divided

    def on_step(self, num_seqs: int, rows: int, *, tokens: int, seconds: float, num_parts: int = 1) -> None:
        """Records a step that decoded: its sequences, the tokens that it computed and those that came of it.

        ``seconds``: the whole step, the draft model's work included. ``num_parts``: parts that were computed.
        """
        spent, self._spent_s = self._spent_s, 0.0
        self._steps += 1
        self._measure((num_seqs, rows, num_parts), seconds - spent)
        plain = self._known(num_seqs, num_seqs)
        self._drafted_since[num_seqs] = 0 if rows == num_seqs else self._drafted_since.get(num_seqs, 0) + 1
        self.balance_s += SHARE * seconds - spent
        if rows > num_seqs and plain is not None:
            self.balance_s += tokens / num_seqs * plain - (seconds - spent)
        self.balance_s = min(self.balance_s, MAX_BALANCE_S)

    def extra_steps(self, num_seqs: int, rows: int, *, num_parts: int = 1) -> float:
        """The time that a step with ``rows`` tokens takes longer than one without draft tokens, in such steps; 0 before
        both were measured."""
        plain, seconds = self._known(num_seqs, num_seqs), self._known(num_seqs, rows, num_parts)
        return 0.0 if plain is None or seconds is None else seconds / plain - 1

    def on_prefill(self, seconds: float) -> None:
        """Records a step that computed prompts."""
        self.balance_s = min(self.balance_s + SHARE * seconds - self._spent_s, MAX_BALANCE_S)
        self._spent_s = 0.0

    def on_pass(self, seconds: float) -> None:
        """Records a pass of the draft model over a few tokens."""
        self._spent_s += seconds
        self._pass_time = self._updated(self._pass_time, seconds, self._known(1, 1))

    def on_reading(self, tokens: int, seconds: float) -> None:
        """Records that the draft model read ``tokens`` of a text."""
        self._spent_s += seconds
        if tokens >= 8:
            self._token_time = self._updated(self._token_time, seconds / tokens, self._known(1, 1))

    def _pass(self) -> float:
        """Seconds of a pass of the draft model, guessed where that is not known."""
        known = self._still_known(self._pass_time, self._known(1, 1))
        return GUESSED_PASS * (self._token() or 0.0) if known is None else known

    def _token(self) -> float | None:
        """Seconds in which the draft model reads a token; None: not known."""
        return self._still_known(self._token_time, self._known(1, 1))

    def _by_chance(self, offers: Sequence[Offer]) -> list[tuple[float, int]]:
        """The chance of each draft token to be of use, and its sequence: the best first, a sequence's in order."""
        chances = [
            (-chance, place, index)
            for index, offer in enumerate(offers)
            if not (offer.from_model and self.balance_s < 0)
            for place, chance in enumerate(offer.useful())
        ]
        if len(offers) > 1:
            chances.sort()
        return [(-chance, index) for chance, _, index in chances]

    def _is_tried(self, num_seqs: int, rows: int) -> bool:
        """Whether a step of ``rows`` tokens may be tried where draft tokens cost nothing: one that was measured, or one
        that fills a tile of a kernel, because the last token of a tile costs hardly more."""
        return rows & (rows - 1) == 0 or self._known(num_seqs, rows) is not None

    def _measure(self, kind: tuple[int, int, int], seconds: float) -> None:
        num_seqs, rows, _ = kind
        plain = None if rows == num_seqs else self._known(num_seqs, num_seqs)
        self._times[kind] = self._updated(self._times.get(kind), seconds, plain)

    def _updated(self, time: _Measured | None, seconds: float, plain: float | None) -> _Measured:
        """``time`` with a new measurement."""
        count = 1
        if time is not None and self._steps - time.step < FORGET_AFTER:
            before = time.believed(plain)
            seconds, count = min(before, seconds) if time.count == 1 else _averaged(before, seconds), 2
        return _Measured(seconds, self._steps, count, plain)

    def _known(self, num_seqs: int, rows: int, num_parts: int = 1) -> float | None:
        plain = None if rows == num_seqs else self._known(num_seqs, num_seqs)
        return self._still_known(self._times.get((num_seqs, rows, num_parts)), plain)

    def _still_known(self, time: _Measured | None, plain: float | None) -> float | None:
        if time is None or self._steps - time.step >= (FORGET_ONE_AFTER if time.count == 1 else FORGET_AFTER):
            return None
        return time.believed(plain)

    def _parts_s(self, chance: float) -> float:
        """Seconds of two parts of one sequence, of which the second is computed with this chance. It saves the time
        between two steps, which is guessed before it was measured."""
        first, both = self._step_s(1, PART), self._known(1, 2 * PART, num_parts=2)
        second = first * (1 - GUESSED_COST) if both is None else max(both - first, 0.0)
        return first + chance * second

    def _step_s(self, num_seqs: int, rows: int) -> float:
        """Seconds of a step with ``rows`` tokens. If there was none, those of the next larger in its tile, or a guess:
        each further token costs a little, or as much as those of a smaller step did."""
        tile = 1 << (rows - 1).bit_length()
        for count in (rows, *range(rows + 1, tile + 1)):
            known = self._known(num_seqs, count)
            if known is not None:
                return known
        fewer = next(count for count in range(rows - 1, 0, -1) if self._known(num_seqs, count) is not None)
        seconds, plain = self._known(num_seqs, fewer) or 0.0, self._known(num_seqs, num_seqs) or 0.0
        measured = (seconds - plain) / (fewer - num_seqs) if fewer > num_seqs else 0.0
        return seconds + (rows - fewer) * max(GUESSED_COST * seconds, measured)


def _averaged(before: float, seconds: float) -> float:
    """The average with a new measurement, which counts as twice the average at most: a step may be held up."""
    return before + SMOOTHING * (min(seconds, 2 * before) - before)
