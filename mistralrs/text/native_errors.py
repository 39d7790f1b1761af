"""Converts errors of the `tokenizers` library, which raises plain ``Exception``, and ``BaseException`` for panics."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from mistralrs.errors import MistralrsError

_PANIC = "PanicException"


@contextlib.contextmanager
def native_errors(make_error: Callable[[str], MistralrsError]) -> Iterator[None]:
    """Replaces, while entered, any error of the library by the one that ``make_error`` returns for its message."""
    try:
        yield
    except MistralrsError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != _PANIC:
            raise
        raise make_error(str(error) or type(error).__name__) from None
