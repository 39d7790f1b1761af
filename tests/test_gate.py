"""The speed gate: how it judges figures and writes them down. Nothing is measured here."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.gate import Commit, Comparison, Conditions, in_turns, median_interval, report, third_party

STEADY = (100.0, 101.0, 99.0, 100.0, 100.0)


def times(factor: float, values: tuple[float, ...] = STEADY) -> tuple[float, ...]:
    return tuple(factor * value for value in values)


@pytest.mark.parametrize(
    ("name", "head", "verdict"),
    [
        ("decode", STEADY, "holds"),
        ("decode", times(1.5), "holds"),
        ("decode", times(0.96), "holds"),
        ("decode", times(0.94), "fell"),
        ("start", times(0.5), "holds"),
        ("start", times(1.04), "holds"),
        ("start", times(1.07), "fell"),
    ],
)
def test_a_fall_of_more_than_five_percent_is_found(name: str, head: tuple[float, ...], verdict: str) -> None:
    assert Comparison(name, STEADY, head).verdict == verdict


@pytest.mark.parametrize(
    "head",
    [
        (90.0, 60.0, 120.0, 85.0, 90.0),  # fell, but the rounds reach above 1
        (100.0, 60.0, 120.0, 100.0, 100.0),  # held, but the rounds reach below 0.95
    ],
)
def test_a_spread_larger_than_the_difference_decides_nothing(head: tuple[float, ...]) -> None:
    assert Comparison("prefill", STEADY, head).verdict == "inconclusive"


def test_drift_of_the_machine_is_no_spread() -> None:
    drifting = (100.0, 80.0, 60.0, 120.0, 70.0)
    assert Comparison("decode", drifting, drifting).verdict == "holds"
    assert Comparison("decode", drifting, times(0.9, drifting)).verdict == "fell"


def test_ratio_is_of_medians_and_of_speeds() -> None:
    assert Comparison("prefill", (1.0, 2.0, 9.0), (1.0, 3.0, 3.0)).ratio == 1.5
    assert Comparison("start", (1.0, 2.0, 9.0), (1.0, 4.0, 4.0)).ratio == 0.5


@pytest.mark.parametrize(
    ("count", "least", "most", "confidence"),
    # of the sign test's tables: with n values, those at places k and n + 1 - k hold the median with this confidence
    [(5, 1, 5, 0.9375), (7, 1, 7, 0.984375), (8, 2, 7, 0.9296875), (11, 3, 9, 0.934570), (20, 6, 15, 0.958611)],
)
def test_interval_of_the_median(count: int, least: int, most: int, confidence: float) -> None:
    values = [float(place) for place in reversed(range(1, count + 1))]
    found = median_interval(values)
    assert found[:2] == (least, most)
    assert found[2] == pytest.approx(confidence, abs=1e-6)


def test_sides_run_in_turns_after_a_round_that_does_not_count() -> None:
    ran: list[str] = []

    def side(name: str) -> dict[str, float]:
        ran.append(name)
        return {"prefill": len(ran), "decode": 10 * len(ran), "start": 0.1}

    compared = in_turns(2, [lambda: side("base"), lambda: side("head")])
    assert ran == ["base", "head"] * 3
    assert compared == [
        Comparison("prefill", (3, 5), (4, 6)),
        Comparison("decode", (30, 50), (40, 60)),
        Comparison("start", (0.1, 0.1), (0.1, 0.1)),
    ]


def test_report_names_the_machine_and_no_path() -> None:
    base, head = (Commit(name, f"Do {name}", Path("/p/sources"), Path("/p/python")) for name in ("aaa1111", "bbb2222"))
    conditions = Conditions(
        model="tiny.gguf",
        processor="A Processor",
        isa="avx2",
        threads=2,
        cores=4,
        load=0.25,
        versions="Python 3, torch 2",
    )
    comparisons = [Comparison("decode", STEADY, times(0.9)), Comparison("start", times(0.01), times(0.01))]
    lines = report(base, head, comparisons=comparisons, conditions=conditions).splitlines()
    assert "- base: aaa1111 Do aaa1111" in lines
    assert "- processor: A Processor; avx2 kernels, 2 threads" in lines
    assert "| decode, tokens/s | 100 | 90 | 0.900 | 0.900 and 0.900 | 94% | fell |" in lines
    assert "| start, s | 1 | 1 | 1.000 | 1.000 and 1.000 | 94% | holds |" in lines
    assert not [line for line in lines if "/p/" in line]


def test_packages_are_shared_and_sources_are_not() -> None:
    path = [
        "",
        "/project",
        "/env/lib/python3.11/site-packages",
        "/usr/lib/python3/dist-packages",
        "/usr/lib/python3.11",
    ]
    assert third_party(path) == ["/env/lib/python3.11/site-packages", "/usr/lib/python3/dist-packages"]
