"""``doctor``: prints what this machine has, or how a server keeps to what clients rely on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from mistralrs_cli.conformance.check_table import Outcome, run_checks
from mistralrs_cli.conformance.checked_server import CheckedServer
from mistralrs_cli.diagnosis.diagnosis_jobs import ApiJob, DoctorJob
from mistralrs_cli.diagnosis.machine_report import Finding, examine
from mistralrs_cli.terminal.output import ProgressLine, Streams, clean_line

_MARKS = {"ok": "ok", "note": "note", "problem": "PROBLEM", "fault": "FAULT", "not checked": "-"}


def run_doctor(job: DoctorJob, streams: Streams) -> int:
    """Examines the machine; returns the exit code, 1 where something does not work."""
    found = list(examine(asks_hub=job.hub))
    if job.json:
        _write_json(streams, {"ok": _is_well(found), "findings": [asdict(finding) for finding in found]})
    else:
        streams.stdout.writelines(f"{line}\n" for line in _report(found))
    streams.stdout.flush()
    return 0 if _is_well(found) else 1


def run_api_checks(job: ApiJob, streams: Streams) -> int:
    """Checks a server; returns the exit code, 1 where it has a fault. Raises ``UnreachableError``."""
    server = CheckedServer(job.server, model=job.model_name)
    progress = ProgressLine(streams.stderr)
    outcomes = []
    try:
        for outcome in run_checks(server):
            outcomes.append(outcome)
            progress(f"checked: {outcome.name}", 0, 0)
    finally:
        progress.clear()
    faults = sum(outcome.state == "fault" for outcome in outcomes)
    if job.json:
        record = {"server": str(job.server.address), "model": server.model, "ok": faults == 0}
        _write_json(streams, record | {"checks": [asdict(outcome) for outcome in outcomes]})
    else:
        streams.stdout.write(f"{clean_line(f'{job.server.address}, model {server.model}')}\n")
        streams.stdout.writelines(f"{line}\n" for line in _table(outcomes))
    streams.stdout.flush()
    return 1 if faults else 0


def _write_json(streams: Streams, record: dict[str, object]) -> None:
    streams.stdout.write(json.dumps(record, ensure_ascii=False) + "\n")


def _is_well(found: Sequence[Finding]) -> bool:
    return all(finding.state != "problem" for finding in found)


def _report(found: Sequence[Finding]) -> Iterator[str]:
    for finding in found:
        yield f"{_MARKS[finding.state]:<7}  {finding.name:<13}  {clean_line(finding.said)}"
        if finding.hint:
            yield f"{'':<7}  {'':<13}  {clean_line(finding.hint)}"
    problems = sum(finding.state == "problem" for finding in found)
    yield f"{problems} problem{'' if problems == 1 else 's'}" if problems else "everything works"


def _table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    width = max(len(outcome.name) for outcome in outcomes)
    for outcome in outcomes:
        said = {"fault": f"{outcome.said}  (breaks: {outcome.breaks})", "not checked": outcome.said, "ok": ""}
        yield f"{_MARKS[outcome.state]:<5}  {outcome.name:<{width}}  {clean_line(said[outcome.state])}".rstrip()
    faults = sum(outcome.state == "fault" for outcome in outcomes)
    passed = sum(outcome.state == "ok" for outcome in outcomes)
    yield f"{passed} ok, {faults} with a fault, {len(outcomes) - passed - faults} not checked"
