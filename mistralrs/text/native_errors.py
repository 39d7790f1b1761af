"""Errors of the `tokenizers` library as ours. It raises nothing narrower than ``Exception``, and what it panics with is
not even that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from mistralrs.errors import MistralrsError

_PANIC = "PanicException"


@contextlib.contextmanager
def native_errors(said: Callable[[str], MistralrsError]) -> Iterator[None]:
    """While entered, whatever the library raises becomes the error that ``said`` makes of its words."""
    try:
        yield
    except MistralrsError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != _PANIC:
            raise
        raise said(str(error) or type(error).__name__) from None
