"""The results of an older benchmark, as ``bench --json`` wrote them, and how newer ones differ."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mistralrs.errors import LoadError, UsageError
from mistralrs.files import read_text
from mistralrs.parsing import parse_nested

_BYTES = 4 << 20
_HINT = "it is what mistralrs bench --json printed: a JSON object a line"
SIGNIFICANT = 2.0
"""Standard errors of the difference beyond which two means count as different."""


@dataclass(frozen=True, slots=True)
class OldResult:
    """One test of an older benchmark."""

    rates: tuple[float, ...]
    """Tokens a second, a value for each repetition."""
    setting: str
    """The version, instruction set and threads, as far as they are known."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A new mean against an old one."""

    old: tuple[float, ...]
    new: tuple[float, ...]

    @property
    def percent(self) -> float:
        """Returns the change of the mean; 0 where the old one is 0."""
        old = statistics.fmean(self.old)
        return 100 * (statistics.fmean(self.new) / old - 1) if old else 0.0

    @property
    def verdict(self) -> str:
        """Returns ``faster``, ``slower``, or ``same`` for a change that the spread of the repetitions explains.

        A single repetition has no spread, so that nothing can be said: ``unknown``.
        """
        if min(len(self.old), len(self.new)) < 2:
            return "unknown"
        variances = [statistics.variance(rates) / len(rates) for rates in (self.old, self.new)]
        change = statistics.fmean(self.new) - statistics.fmean(self.old)
        if abs(change) <= SIGNIFICANT * math.sqrt(sum(variances)):
            return "same"
        return "faster" if change > 0 else "slower"


def read_old_results(path: Path) -> Mapping[tuple[str, int], OldResult]:
    """Returns the results in a file, by test (such as ``pp512``) and concurrency; of repeated ones the last.

    Raises ``UsageError`` for a file that ``bench --json`` did not write.
    """
    try:
        lines = read_text(path, limit=_BYTES, hint=_HINT).splitlines()
    except LoadError as error:
        raise UsageError(f"--compare: {error.message}", hint=error.hint) from error
    found: dict[tuple[str, int], OldResult] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            test, result = _result(line, f"--compare {path}: line {number}")
            found[test] = result
    if not found:
        raise UsageError(f"--compare {path} has no result", hint=_HINT)
    return found


def _result(line: str, where: str) -> tuple[tuple[str, int], OldResult]:
    try:
        record = parse_nested(json.loads, line)
        rates = record["tok_s_all"]
        test = record["test"], record["concurrency"]
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{where} is no result of a benchmark", hint=_HINT) from None
    is_result = isinstance(test[0], str) and isinstance(test[1], int) and isinstance(rates, list) and rates
    if not is_result or not all(isinstance(rate, int | float) and 0 <= rate < 1e12 for rate in rates):
        raise UsageError(f"{where} is no result of a benchmark", hint=_HINT)
    setting = [str(record[name]) for name in ("version", "isa") if name in record]
    threads = [f"{record['threads']} threads"] if "threads" in record else []
    return test, OldResult(tuple(map(float, rates)), ", ".join(setting + threads))


def comparison_lines(rows: Sequence[tuple[str, int, OldResult | None, Sequence[float]]]) -> list[str]:
    """Returns a table of the tests (name, concurrency, old, new rates): means with their standard deviations."""
    lines = [f"{'test':<10}  {'streams':>7}  {'old t/s':>20}  {'new t/s':>20}  {'change':>8}  verdict"]
    for test, concurrency, old, new in rows:
        shown = spread(new)
        if old is None:
            lines.append(f"{test:<10}  {concurrency:>7}  {'not there':>20}  {shown:>20}")
            continue
        change = Difference(old.rates, tuple(new))
        percent = f"{change.percent:+.1f} %"
        lines.append(
            f"{test:<10}  {concurrency:>7}  {spread(old.rates):>20}  {shown:>20}  {percent:>8}  {change.verdict}"
        )
    settings = dict.fromkeys(old.setting for _, _, old, _ in rows if old is not None and old.setting)
    return [*lines, *(f"old: {setting}" for setting in settings)]


def spread(rates: Sequence[float]) -> str:
    """Returns mean and sample standard deviation."""
    deviation = statistics.stdev(rates) if len(rates) > 1 else 0.0
    return f"{statistics.fmean(rates):.2f} ± {deviation:.2f}"
