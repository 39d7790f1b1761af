"""Preparation of a process's surroundings: its standard descriptors, its working directory and its garbage."""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager


def open_standard_descriptors() -> None:
    """Opens those of the descriptors 0, 1 and 2 that are closed, on the null device.

    The next file or socket would get such a number otherwise, and messages for stderr would be written into it.
    """
    for number, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, flags)  # the lowest number that is free, which is this one
            assert opened == number
            os.set_inheritable(number, True)


def has_working_folder() -> bool:
    """Returns whether the working directory still exists."""
    try:
        os.getcwd()
    except OSError:
        return False
    return True


def import_torch_without_working_folder() -> None:
    """Imports torch if the working directory does not exist any more; otherwise does nothing.

    MKL asks for the working directory while it is loaded, and ends the process if there is none. The process moves to
    another one meanwhile and goes back, so that relative paths keep their meaning. No other thread may open files by
    relative paths while this runs.
    """
    if has_working_folder():
        return
    here = os.open(".", getattr(os, "O_PATH", os.O_RDONLY))
    try:
        os.chdir("/")
        importlib.import_module("torch")
        os.fchdir(here)
    finally:
        os.close(here)


@contextmanager
def garbage_collected_later() -> Iterator[None]:
    """Python searches for no garbage inside, unless another thread has it do so: for work that makes much and drops
    little. Works as a decorator too."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
