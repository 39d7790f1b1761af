"""Runs the commands here, each of which imports only what it needs."""

from __future__ import annotations

from mistralrs_cli.diagnosis.diagnosis_jobs import DiagnosisJob
from mistralrs_cli.terminal.output import Streams


def run_diagnosis(job: DiagnosisJob, streams: Streams) -> int:
    """Runs the job; returns the exit code."""
    from mistralrs_cli.diagnosis.config_command import run_config

    return run_config(job, streams)
