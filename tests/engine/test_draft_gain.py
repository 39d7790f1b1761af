"""How many draft tokens measured times allow: simulated machines, whose clock the tests own."""

from __future__ import annotations

from random import Random

import pytest

from mistralrs.engine.acceptance import Acceptance
from mistralrs.engine.draft_gain import FIRST_BALANCE_S, FORGET_ONE_AFTER, PLAIN_EVERY, DraftGain, Offer

DENSE = (20.0, 22, 33, 33, 43, 43, 43, 43)
"""Milliseconds of a step of 1 to 8 tokens: a dense model, whose weights are read once."""
MIXTURE = (20.0, 36, 50, 62, 72, 80, 86, 90)
"""Experts: each token reads others."""


def simulate(
    steps: tuple[float, ...], agreement: float, *, pass_ms: float = 0.0, tokens: int = 3000, seed: int = 0
) -> tuple[float, float]:
    """Tokens a second of one sequence with draft tokens over those without, and draft tokens a step."""
    gain, acceptance, random = DraftGain(), Acceptance(0.6), Random(seed)
    seconds, known, num_steps, drafted = 0.0, 0, 0, 0
    while known < tokens:
        [count], _ = gain.choose([Offer(acceptance.chance, 7, from_model=pass_ms > 0)], 7)
        spent = 0.0
        for _ in range(count if pass_ms else 0):
            gain.on_pass(pass_ms / 1000)
            spent += pass_ms / 1000
        accepted = next((place for place in range(count) if random.random() >= agreement), count)
        if count:
            acceptance.record(count, accepted)
        elif pass_ms:
            acceptance.fade()
        else:  # prompt lookup sees at no cost whether it would have been right
            acceptance.record(1, int(random.random() < agreement))
        took = steps[count] / 1000 * random.uniform(0.95, 1.1) + spent
        gain.on_step(1, 1 + count, tokens=1 + accepted, seconds=took)
        seconds, known, num_steps, drafted = seconds + took, known + 1 + accepted, num_steps + 1, drafted + count
    return known / seconds * steps[0] / 1000, drafted / num_steps


@pytest.mark.parametrize("agreement", [0.0, 0.2, 0.4, 0.6, 0.7, 0.9, 1.0])
@pytest.mark.parametrize(
    ("steps", "pass_ms"), [(DENSE, 0.0), (DENSE, 3.5), (DENSE, 15.0), (MIXTURE, 0.0), (MIXTURE, 3.5)]
)
def test_drafts_never_cost_much(steps: tuple[float, ...], pass_ms: float, agreement: float) -> None:
    """Noise alone lowers the figure by 2.5 %."""
    speed, _ = simulate(steps, agreement, pass_ms=pass_ms)
    assert speed > 0.975 * 0.98


def test_drafts_gain_where_they_can() -> None:
    assert simulate(DENSE, 0.7, pass_ms=3.5)[0] > 1.25
    assert simulate(DENSE, 1.0)[0] > 3.3
    assert simulate(MIXTURE, 1.0)[0] > 1.6
    assert simulate(MIXTURE, 0.6)[1] < 0.05  # they are off by themselves
    assert simulate(DENSE, 0.9, pass_ms=40.0)[1] < 0.05


def known_times(steps: tuple[float, ...], num_seqs: int = 1) -> DraftGain:
    gain = DraftGain()
    for rows in range(len(steps), num_seqs - 1, -1):
        gain.on_step(num_seqs, rows, tokens=rows, seconds=steps[rows - 1])
    return gain


def test_likely_tokens_come_first() -> None:
    gain = known_times((1.0,) * 8, num_seqs=3)
    assert gain.choose([Offer(0.8, 7), Offer(0.1, 7), Offer(0.5, 7)], 5)[0] == [4, 0, 1]
    assert gain.choose([Offer(0.9, 2), Offer(0.0, 7), Offer(0.9, 1)], 5)[0] == [2, 0, 1]
    assert gain.choose([Offer(1.0, 7), Offer(0.0, 0), Offer(0.0, 0)], 5)[0] == [5, 0, 0]


def test_each_token_has_a_chance_of_its_own() -> None:
    """A draft ends before one that is unlikely, as those behind it are of use only together with it."""
    gain = known_times((1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2, 2.4))
    assert gain.choose([Offer(0.99, 7, chances=(0.9, 0.9, 0.1, 0.9))], 7)[0] == [2]
    assert gain.choose([Offer(0.99, 7, chances=(0.5,))], 7)[0] == [7]
    assert list(Offer(0.5, 3, chances=(0.1,)).useful()) == pytest.approx([0.1, 0.05, 0.025])


@pytest.mark.parametrize(("chance", "expected"), [(0.99, 15), (0.9, 15), (0.6, 3)])
def test_a_second_part_costs_time_only_if_the_first_is_right(chance: float, expected: int) -> None:
    """With a chance of 0.9, 16 tokens in one pass would give 4.5 tokens a second, and 8 of them give 5.7."""
    gain = known_tiles(1.8)
    gain.on_step(1, 16, tokens=16, seconds=1.8, num_parts=2)
    assert gain.choose([Offer(chance, 15)], 15, in_parts=True) == ([expected], expected == 15)
    if chance == 0.9:
        assert gain.choose([Offer(chance, 15)], 15) == ([7], False)


def test_a_second_part_is_tried() -> None:
    for sixteen, divided in ((1.8, False), (2.1, True)):
        assert known_tiles(sixteen).choose([Offer(0.99, 15)], 15, in_parts=True) == ([15], divided)


@pytest.mark.parametrize(("whole", "both", "chance"), [(1.4, 1.9, 0.97), (1.8, 1.4, 0.97), (1.4, 1.9, 0.85)])
def test_parts_are_chosen_by_their_time(whole: float, both: float, chance: float) -> None:
    """A large model reads its weights for each part; a small one saves what is between two steps."""
    gain = known_tiles(whole)
    gain.on_step(1, 16, tokens=16, seconds=both, num_parts=2)
    expected = 1.0 + chance**8 * (both - 1.0) < whole
    assert gain.choose([Offer(chance, 15)], 15, in_parts=True) == ([15], expected)
    assert expected == (whole == 1.8 or chance == 0.85)
    assert gain.extra_steps(1, 16) == pytest.approx(whole / 0.5 - 1)
    assert gain.extra_steps(1, 16, num_parts=2) == pytest.approx(both / 0.5 - 1)


def known_tiles(sixteen: float) -> DraftGain:
    """Steps that fill tiles of the kernels, the largest of which takes so many seconds."""
    gain = DraftGain()
    for rows, seconds in ((16, sixteen), (8, 1.0), (4, 0.75), (2, 0.6), (1, 0.5)):
        gain.on_step(1, rows, tokens=rows, seconds=seconds)
    return gain


def test_drafts_are_tried_again_on_a_machine_that_became_faster() -> None:
    """Steps with draft tokens were measured while memory was slow, and may be faster too."""
    gain = DraftGain()
    for _ in range(3):
        for rows, seconds in ((1, 0.020), (2, 0.026)):
            gain.on_step(1, rows, tokens=rows, seconds=seconds)
    offer = Offer(0.6, 1)
    assert gain.choose([offer], 1)[0] == [1]
    for _ in range(30):
        gain.on_step(1, 1, tokens=1, seconds=0.013)
    assert gain.choose([offer], 1)[0] == [1]
    for _ in range(10):  # which takes as long as before
        gain.on_step(1, 2, tokens=2, seconds=0.026)
    assert gain.choose([offer], 1)[0] == [0]
    assert gain.extra_steps(1, 2) == pytest.approx(1.0, abs=0.1)


def test_steps_that_fill_a_tile_are_tried() -> None:
    """Each number of tokens that is measured costs trials; one that a draft's end asks for is taken as it is."""
    gain = known_times((1.0,))
    tried = set()
    for _ in range(20):
        [count], _ = gain.choose([Offer(0.99, 6)], 6)
        tried.add(1 + count)
        gain.on_step(1, 1 + count, tokens=1 + count, seconds=(1.0, 1.1, 1.2, 1.3, 5, 5, 5)[count])
    assert tried == {4, 7}


def test_larger_steps_are_guessed_from_measured_ones() -> None:
    """Sixteen tokens would gain if each further one cost a twentieth, and lose if it costs what those before it did."""
    for two, four, chosen in ((1.05, 1.15, 15), (1.7, 3.0, 3)):
        gain = DraftGain()
        for rows, seconds in ((4, four), (2, two), (1, 1.0)):
            gain.on_step(1, rows, tokens=rows, seconds=seconds)
        assert gain.choose([Offer(0.9, 15)], 15)[0] == [chosen]


def test_the_first_step_and_some_later_ones_are_plain() -> None:
    """Without them nobody knows what draft tokens gain."""
    gain = DraftGain()
    counts = []
    for _ in range(2 * PLAIN_EVERY + 3):
        [count], _ = gain.choose([Offer(1.0, 3)], 3)
        gain.on_step(1, 1 + count, tokens=1 + count, seconds=1.0 + count / 10)
        counts.append(count)
    assert [step for step, count in enumerate(counts) if not count] == [0, 33, PLAIN_EVERY + 34]


def test_a_draft_model_rests_while_it_has_lost_too_much() -> None:
    gain = known_times((1.0, 1.0, 1.0, 1.0))
    offer = Offer(0.9, 3, from_model=True)
    assert gain.choose([offer], 3)[0] == [3]
    gain.on_pass(0.01)
    gain.on_reading(100, 50 * FIRST_BALANCE_S)
    gain.on_step(1, 4, tokens=1, seconds=1.01 + 50 * FIRST_BALANCE_S)
    assert gain.balance_s < 0
    assert gain.choose([offer], 3)[0] == [0]
    assert gain.choose([Offer(0.9, 3)], 3)[0] == [3]  # prompt lookup costs no passes
    while gain.balance_s < 0:
        gain.on_step(1, 1, tokens=1, seconds=1.0)
    assert gain.choose([offer], 3)[0] == [3]


@pytest.mark.parametrize("first_pass", [0.003, 1.0])
def test_a_pass_that_was_held_up_is_not_believed_for_long(first_pass: float) -> None:
    """Passes are measured only while there are some: one that took too long would be the last."""
    gain, offer = known_times((0.020, 0.022, 0.024, 0.026)), Offer(0.9, 3, from_model=True)

    def after_passes(count: int, seconds: float) -> int:
        for _ in range(count):
            gain.on_pass(seconds)
        gain.on_prefill(count * seconds)
        gain.balance_s = FIRST_BALANCE_S
        return gain.choose([offer], 3)[0][0]

    gain.on_reading(100, 0.05)
    assert after_passes(1, first_pass) == (3 if first_pass == 0.003 else 0)
    for _ in range(FORGET_ONE_AFTER):
        gain.on_step(1, 1, tokens=1, seconds=0.020)
    assert after_passes(0, 0.0) == 3
    assert after_passes(3, 0.003) == 3
    assert after_passes(30, 0.1) == 0


def test_a_reading_that_was_held_up_is_not_believed_for_long() -> None:
    """It bounds what is read next, and few tokens are not measured; a pass is guessed from it, too."""
    gain, offer = known_times((0.020, 0.022, 0.024, 0.026)), Offer(0.9, 3, from_model=True)
    gain.on_reading(100, 5.0)
    gain.on_prefill(5.0)
    gain.balance_s = FIRST_BALANCE_S
    assert gain.affordable_tokens < 8
    assert gain.choose([offer], 3)[0] == [0]
    for _ in range(FORGET_ONE_AFTER):
        gain.on_step(1, 1, tokens=1, seconds=0.020)
    assert gain.affordable_tokens == 32
    assert gain.choose([offer], 3)[0] == [3]


def test_passes_are_faster_on_a_machine_that_became_faster() -> None:
    """Steps with tokens that cost nothing show it; passes that were measured before keep nobody from trying them."""
    gain = DraftGain()
    for plain in (0.020, 0.012):
        for _ in range(30):
            for rows, seconds in ((1, plain), (2, 1.2 * plain)):
                if plain == 0.020:
                    gain.on_pass(0.009)
                    seconds += 0.009
                gain.on_step(1, rows, tokens=rows, seconds=seconds)
        gain.balance_s = FIRST_BALANCE_S
        assert gain.choose([Offer(0.8, 1, from_model=True)], 1)[0] == [1]


def test_what_may_be_read_is_what_may_be_lost() -> None:
    gain = DraftGain()
    assert gain.affordable_tokens == 32
    gain.on_reading(100, 0.01)
    gain.on_prefill(0.0)
    assert gain.affordable_tokens == pytest.approx((FIRST_BALANCE_S - 0.01) / 0.0002, abs=1)
