"""The type of a callback for the progress of long work, such as a download or the placing of weights."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called as (activity, done, total).

The unit is the caller's own, bytes for files. ``done`` never falls within one activity; a total of 0 is unknown.
"""
