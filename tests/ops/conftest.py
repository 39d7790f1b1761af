"""Sets torch to one thread in all tests of operations."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, scope="module")
def small_tensors(one_torch_thread: None) -> None:
    """Uses the fixture in every module."""
