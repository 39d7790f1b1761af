"""Runs the commands here, each of which imports only what it needs."""

from __future__ import annotations

from mistralrs_cli.diagnosis.diagnosis_jobs import ApiJob, ConfigJob, DiagnosisJob, TuneJob, VerifyJob
from mistralrs_cli.terminal.exits import leaving_at_once
from mistralrs_cli.terminal.output import Streams


def run_diagnosis(job: DiagnosisJob, streams: Streams) -> int:
    """Runs the job; returns the exit code."""
    with leaving_at_once():
        if isinstance(job, ConfigJob):
            from mistralrs_cli.diagnosis.config_command import run_config

            return run_config(job, streams)
        if isinstance(job, VerifyJob):
            from mistralrs_cli.diagnosis.verify_command import run_verify

            return run_verify(job, streams)
        if isinstance(job, TuneJob):
            from mistralrs_cli.diagnosis.tune_command import run_tune

            return run_tune(job, streams)
        from mistralrs_cli.diagnosis.doctor_command import run_api_checks, run_doctor

        return run_api_checks(job, streams) if isinstance(job, ApiJob) else run_doctor(job, streams)
