"""The type of what is told how far something long has come, such as a download or the placing of weights."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called as (what is done, how much of it is done, of how much).

The unit is the caller's own, bytes for files. The second number never falls while the first word stays; a total of 0 is
unknown.
"""
