"""The options after ``config``, ``doctor``, ``verify``, ``tune`` and ``completions``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mistralrs.api.options.option import option


def _json() -> Any:
    return option(False, "--json", help="One JSON object instead of text.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigOptions:
    """The options after ``config``."""

    json: bool = _json()


DiagnosisOptions = ConfigOptions
"""The options of the commands here."""
