"""Runs a function on a file in a process of its own, so that a crash, a hang or a memory leak ends there."""

from __future__ import annotations

import ctypes
import multiprocessing
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

from mistralrs.errors import LoadError

Load = Callable[[Path], None]

LOADED, REFUSED = "loaded", "refused"
SOUND_OUTCOMES = (LOADED, REFUSED)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome: "loaded" or "refused" are sound; "wrong error", "memory", "hang" and "crash" are not."""

    kind: str
    detail: str
    """The error's message, or the exit code of a crash."""
    seconds: float = 0.0
    peak_bytes: int = 0
    """The largest growth of the process, mapped pages included."""


def run_guarded(load: Load, path: Path, *, seconds: float, limit_bytes: int) -> Outcome:
    """Calls ``load(path)`` in a child whose time and growth are limited."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(sender, load, path, limit_bytes))
    child.start()
    sender.close()
    try:
        if not receiver.poll(seconds):
            return Outcome("hang", f"no answer in {seconds} s", seconds)
        outcome: Outcome = receiver.recv()
    except EOFError:
        child.join()
        return Outcome("crash", f"exit code {child.exitcode}")
    finally:
        child.kill()
        child.join()
        receiver.close()
    return outcome if outcome.peak_bytes <= limit_bytes else replace(outcome, kind="memory")


def _child(sender: Connection, load: Load, path: Path, limit_bytes: int) -> None:
    _forget_the_past()
    address_space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    # Room for the mapped file beside the limit: a map takes addresses and not memory.
    resource.setrlimit(resource.RLIMIT_AS, (address_space + limit_bytes + path.stat().st_size,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    before, start = _peak_bytes(), time.perf_counter()
    kind, detail = LOADED, ""
    try:
        load(path)
    except LoadError as error:
        kind, detail = REFUSED, error.message
    except MemoryError as error:
        kind, detail = "memory", repr(error)
    except Exception as error:  # every other exception is a finding
        kind, detail = "wrong error", repr(error)
    sender.send(Outcome(kind, detail, time.perf_counter() - start, _peak_bytes() - before))


def _forget_the_past() -> None:
    """Returns memory that the parent freed to the system, and resets the peak, which is then that of this process."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # a function of the GNU C library
        trim(0)
    with suppress(OSError):  # a kernel without this file: small growth after a larger peak is not measured
        Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    [peak] = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(peak) * 1024
