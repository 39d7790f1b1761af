"""Which adapters act on which tokens of a step."""

from __future__ import annotations

from random import Random

import pytest

from mistralrs.ops.linear import AdapterUse
from mistralrs.ops.step_uses import StepUses


def test_uses_are_spread_over_the_tokens_from_their_first_position_on() -> None:
    random = Random(5)
    for _ in range(300):
        positions: list[int] = []
        starts, adapters = [0], []
        for _ in range(random.randrange(1, 5)):
            first, count = random.randrange(20), random.randrange(1, 9)
            positions += range(first, first + count)
            starts.append(len(positions))
            slots = random.sample(range(6), random.randrange(4))
            adapters.append([AdapterUse(slot, random.random(), random.choice((0, 0, 4, 12, 40))) for slot in slots])
        found = StepUses.of(adapters, positions=positions, query_start_loc=starts, slots=6)
        expected = [
            [(use.slot, use.weight) for use in uses if position >= use.first_position]
            for uses, begin, end in zip(adapters, starts[:-1], starts[1:], strict=True)
            for position in positions[begin:end]
        ]
        if found is None:
            assert not any(expected)
            continue
        spread = [
            list(zip(found.slots[begin:end], found.weights[begin:end], strict=True))
            for begin, end in zip(found.starts[:-1], found.starts[1:], strict=True)
        ]
        assert [[slot for slot, _ in uses] for uses in spread] == [[slot for slot, _ in uses] for uses in expected]
        slots = {tuple(slot for slot, _ in uses) for uses in expected}
        assert found.only_slot == (next(iter(slots))[0] if len(slots) == 1 and len(next(iter(slots))) == 1 else -1)
        flat = [weight for uses in expected for _, weight in uses]
        assert list(found.weights) == pytest.approx(flat)


def test_a_step_without_uses_has_none() -> None:
    assert StepUses.of((), positions=[0], query_start_loc=[0, 1], slots=2) is None
    assert StepUses.of([[]], positions=[0], query_start_loc=[0, 1], slots=2) is None
    late = [[AdapterUse(0, 1.0, 5)]]
    assert StepUses.of(late, positions=[0, 1], query_start_loc=[0, 2], slots=2) is None


@pytest.mark.parametrize("slots", [[2], [-1], [0, 0]])
def test_slots_that_are_not_there_or_come_twice_are_refused(slots: list[int]) -> None:
    with pytest.raises(ValueError, match="are not different ones of the model's 2"):
        StepUses.of([[AdapterUse(slot) for slot in slots]], positions=[0], query_start_loc=[0, 1], slots=2)
