"""One pool of threads in a process, of which each backend has a share; and what fits the stack of such a thread."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import torch
from mistralrs_kernels import cpu

from mistralrs.errors import LoadError
from mistralrs.ops.arena import Arena, buffer
from mistralrs.ops.backend import KvShape, Norm
from mistralrs.ops.native_backend import NativeBackend
from mistralrs.ops.native_checks import MAX_COLUMNS, MAX_HEAD_DIM
from mistralrs.ops.weight import Matrix
from mistralrs.quant.types import TYPES
from tests import redzones
from tests.ops.harness import Projection, random_matrix, random_values

pytestmark = pytest.mark.native

HANGS = 120
"""Seconds."""


def projection() -> Projection:
    matrix = random_matrix("Q8_0", rows=700, columns=256, seed=1)
    return Projection(matrices=(matrix,), x=random_values(9, 256, seed=2))


def workers() -> int:
    return int(cpu.load().mrs_pool_workers())


def test_backends_share_the_threads_of_the_largest() -> None:
    before = workers()
    backends = [NativeBackend(threads=before + threads) for threads in (3, 6, 6)]
    assert workers() == before + 5
    del backends[1]
    assert workers() == before + 5
    del backends[1]
    assert workers() == before + 2
    backends.clear()
    assert workers() == before


def test_an_operation_keeps_its_share() -> None:
    before = workers()
    arena = Arena(4096)
    x, y, weight = buffer(arena, 1, 32), buffer(arena, 1, 32), buffer(arena, 32)
    op = NativeBackend(threads=before + 3).add_norm(y, x, Norm(weight, 1e-5))
    assert workers() == before + 2
    del op
    assert workers() == before


def test_threads_that_cannot_be_started_are_an_error() -> None:
    before = workers()
    with pytest.raises(LoadError, match="70000 threads cannot be started") as caught:
        NativeBackend(threads=70000)
    assert caught.value.hint == "ask for fewer: --threads"
    assert workers() == before


def test_bits_are_the_same_on_any_share_and_beside_others() -> None:
    [expected] = projection().run(NativeBackend(threads=1))
    backends = [NativeBackend(threads=threads) for threads in (1, 2, 3, 5)]
    wrong: list[int] = []

    def run(backend: NativeBackend) -> None:
        for _ in range(30):
            [found] = projection().run(backend)
            if not torch.equal(found, expected):
                wrong.append(backend.threads)

    threads = [threading.Thread(target=run, args=(backend,)) for backend in backends]
    for thread in threads:
        thread.start()
    for _ in range(20):  # the pool grows and shrinks while jobs run
        NativeBackend(threads=8)
    for thread in threads:
        thread.join(HANGS)
        assert not thread.is_alive()
    assert wrong == []


FORKING = """
import os, sys, threading, torch
from mistralrs.ops.native_backend import NativeBackend
from tests.ops.test_pool import projection, workers

torch.set_num_threads(1)
backend = NativeBackend(threads=3)
[expected] = projection().run(backend)
busy = threading.Thread(target=lambda: [projection().run(other) for _ in range(200)], daemon=True)
other = NativeBackend(threads=2)
busy.start()
child = os.fork()
if child == 0:
    before = workers()
    [found] = projection().run(backend)
    os._exit(0 if (torch.equal(found, expected), before, workers()) == (True, 0, 2) else 3)
busy.join()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(redzones.watched(), reason="AddressSanitizer's allocator may hang in a forked child")
def test_a_forked_child_has_a_pool_of_its_own() -> None:
    """The parent's threads are not there, and one of them was at work when the child began."""
    done = subprocess.run([sys.executable, "-c", FORKING], capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 0, done.stderr


def test_torch_keeps_its_threads_elsewhere() -> None:
    code = """
import threading, torch
from mistralrs.ops.torch_threads import limit_torch_here

torch.set_num_threads(3)
seen = []
def inside():
    limit_torch_here(1)
    seen.append(torch.get_num_threads())
for work in (inside, lambda: seen.append(torch.get_num_threads())):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
assert (seen, torch.get_num_threads()) == ([1, 3], 3), seen
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 0, done.stderr


def test_sizes_beyond_the_stack_of_a_thread_are_refused() -> None:
    """Rows and heads stand on the stack; a file of a few megabytes can name any size."""
    backend = NativeBackend(threads=1)
    wide = Matrix("ffn_down", TYPES["F16"], 1, MAX_COLUMNS + 1, memoryview(b""), None, None)
    with pytest.raises(LoadError, match="ffn_down: the kernels take rows of 1 to 262144 columns, not 1 x 262145"):
        backend.placed_bytes(wide)
    shape = KvShape(blocks=(1,), kv_heads=1, head_dim=MAX_HEAD_DIM + 1, block_size=16)
    with pytest.raises(LoadError, match="heads of 4097 are not 1 to 4096 wide"):
        backend.kv_cache(shape)


def test_the_largest_sizes_fit_the_stack() -> None:
    matrix = random_matrix("Q4_0", rows=16, columns=MAX_COLUMNS, seed=1)
    case = Projection(matrices=(matrix,), x=random_values(1, MAX_COLUMNS, seed=2))
    assert torch.isfinite(case.run(NativeBackend(threads=2))[0]).all()
