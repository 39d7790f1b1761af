"""Both samplers for tests: the one of torch, which is the reference, and the one of the kernels."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch

from mistralrs.engine.sampling.native_sampler import NativeSampler
from mistralrs.engine.sampling.sampler import Sampler
from mistralrs.engine.sampling.sampling_input import TokenSampler
from mistralrs.ops.native_backend import NativeBackend


def native_sampler(vocab_size: int, isa: str | None = None) -> TokenSampler:
    """A sampler with the kernels of an instruction set; None: the processor's best."""
    return NativeSampler(vocab_size, NativeBackend(threads=2, isa=isa).row_sampler(), lambda: Sampler(vocab_size))


MAKERS: dict[str, Callable[[int], TokenSampler]] = {"torch": Sampler, "native": native_sampler}
if os.environ.get("MISTRALRS_NO_NATIVE", "") not in ("", "0"):
    del MAKERS["native"]


def bits_of(allowed: torch.Tensor) -> memoryview:
    """The mask of bool ``allowed`` (vocab_size,)."""
    words = torch.zeros(-(-len(allowed) // 32), 32, dtype=torch.int64)
    words.view(-1)[: len(allowed)] = allowed
    return memoryview((words << torch.arange(32)).sum(1).to(torch.int32).numpy())


_maker = "torch"


@pytest.fixture(autouse=True, params=MAKERS)
def each_sampler(request: pytest.FixtureRequest) -> None:
    """Runs each test of a module that imports it with both samplers, as ``new_sampler``."""
    global _maker
    _maker = request.param


def new_sampler(vocab_size: int) -> TokenSampler:
    """The sampler that the test is run with."""
    return MAKERS[_maker](vocab_size)
