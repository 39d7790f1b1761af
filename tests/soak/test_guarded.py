"""The soak's guard sees what it is there to see."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from mistralrs.errors import FormatError
from tests.loading.mutations import open_and_read
from tests.soak.gguf_mutations import make_bases, report, run_cases
from tests.soak.guarded import LOADED, Load, run_guarded

# Threads of other tests' libraries do not live on in the child, which runs nothing of theirs.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def succeed(path: Path) -> None:
    path.read_bytes()


def refuse(path: Path) -> None:
    raise FormatError(str(path), "place", "reason")


def fail(path: Path) -> None:
    raise KeyError(path.name)


def hang(path: Path) -> None:
    time.sleep(60)


def crash(path: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def allocate(path: Path) -> None:
    bytearray(8 << 30)  # more than the parent can have freed


def grow(path: Path) -> None:
    bytearray(b"x") * (80 << 20)


@pytest.mark.parametrize(
    ("load", "kind", "detail"),
    [
        (succeed, "loaded", ""),
        (refuse, "refused", "place: reason"),
        (fail, "wrong error", "KeyError"),
        (hang, "hang", "no answer in 0.5 s"),
        (crash, "crash", "exit code -9"),
        (allocate, "memory", "MemoryError"),
    ],
)
def test_outcomes(load: Load, kind: str, detail: str, tiny_llama: Path) -> None:
    outcome = run_guarded(load, tiny_llama, seconds=0.5 if load is hang else 20.0, limit_bytes=200 << 20)
    assert outcome.kind == kind
    assert detail in outcome.detail


def test_growth_is_measured(tiny_llama: Path) -> None:
    outcome = run_guarded(grow, tiny_llama, seconds=20.0, limit_bytes=200 << 20)
    assert outcome.kind == LOADED
    assert 70 << 20 < outcome.peak_bytes < 120 << 20


def test_a_short_drill(tmp_path: Path) -> None:
    bases = make_bases(tmp_path, None)
    cases = run_cases(bases, open_and_read, tmp_path, numbers=range(20), seed=1)
    assert {case.outcome.kind for case in cases} == {"loaded", "refused"}
    text = report(cases, seed=1)
    assert "Nothing." in text
    broken = run_cases(bases, fail, tmp_path, numbers=range(2), seed=1)
    assert "number 1 of quantized.gguf: wrong error: KeyError('mutant-1.gguf')" in report(broken, seed=1)
