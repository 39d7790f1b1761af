"""Values of options that Typer does not check: numbers in their range, sizes in bytes. Raises ``UsageError``."""

from __future__ import annotations

import math
import re

from mistralrs.errors import UsageError

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = re.compile(r"([0-9]{1,15}) ?([KMGT]?)(?:i?B)?", re.IGNORECASE)


def number(name: str, value: float | None, default: float, least: float = -math.inf, most: float = math.inf) -> float:
    """``value``, or ``default`` for None. ``least`` and ``most`` are allowed."""
    check_range(name, value, least, most)
    return default if value is None else value


def check_range(name: str, value: float | None, least: float, most: float) -> None:
    """None is in every range; what is no finite number in none."""
    if value is None or (least <= value <= most and (isinstance(value, int) or math.isfinite(value))):
        return
    if math.isinf(most):
        allowed = "a finite number" if math.isinf(least) else f"at least {least:g}"
    else:
        allowed = f"from {least} to {most}"
    raise UsageError(f"{name} {shortened(value)} is out of range", hint=f"it must be {allowed}")


def shortened(value: float) -> str:
    """A number for a sentence; one of thousands of digits has only the first of them."""
    digits = str(value)
    return digits if len(digits) <= 32 else f"{digits[:24]}..."


def positive(name: str, value: float | None, *, hint: str) -> None:
    """Refuses 0 and less, and what is no finite number; None is allowed."""
    if value is not None and not (math.isfinite(value) and value > 0):
        raise UsageError(f"{name} {value} is out of range", hint=hint)


def byte_count(name: str, text: str) -> int:
    """Bytes of a size such as 512M or 4GiB: K, M, G and T are powers of 1024. At least one."""
    match = _SIZE.fullmatch(text.strip())
    size = int(match[1]) * _UNITS[match[2].upper()] if match else 0
    if size < 1:
        raise UsageError(f"{name} {text}: not a size", hint="write bytes, or a number with K, M, G or T, such as 512M")
    return size
