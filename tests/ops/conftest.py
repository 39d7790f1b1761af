"""Sets torch to one thread in all tests of operations."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from mistralrs_kernels import cpu


@pytest.fixture(autouse=True, scope="module")
def small_tensors(one_torch_thread: None) -> None:
    """Uses the fixture in every module."""


MEASURED, NEAR, FAR = range(3)
"""``mrs_distance``."""


@pytest.fixture(params=[NEAR, FAR], ids=["near", "far"])
def distance(request: pytest.FixtureRequest) -> Iterator[None]:
    """Lets the kernels believe that threads share a cache, or that they do not: they then store past the caches."""
    cpu.load().mrs_pool_assume(request.param)
    yield
    cpu.load().mrs_pool_assume(MEASURED)
