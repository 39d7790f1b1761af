"""The jobs of the commands here: their data, and how options become them."""

from __future__ import annotations

from dataclasses import dataclass

from mistralrs.api.options.resolve import ResolvedOptions
from mistralrs_cli.diagnosis.diagnosis_options import DiagnosisOptions


@dataclass(frozen=True, slots=True)
class ConfigJob:
    """Shows the options in force, and where each comes from."""

    options: ResolvedOptions
    json: bool


DiagnosisJob = ConfigJob
"""The jobs of the commands here."""


def diagnosis_job(words: DiagnosisOptions, options: ResolvedOptions) -> DiagnosisJob:
    """Returns the job of a command; ``options`` are those before it. Raises ``UsageError`` and ``LoadError``."""
    return ConfigJob(options, words.json)
