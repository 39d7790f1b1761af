"""``verify``: whether the files of a model are whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict

from mistralrs.loading.verified_file import VerifiedFile, verify
from mistralrs_cli.diagnosis.diagnosis_jobs import VerifyJob
from mistralrs_cli.terminal.output import ProgressLine, Streams, byte_size, clean_line, grouped


def run_verify(job: VerifyJob, streams: Streams) -> int:
    """Verifies the files that the job names; returns the exit code. Raises as ``verify`` does."""
    progress = ProgressLine(streams.stderr)
    try:
        found = verify(job.path, sha256=job.sha256, progress=progress)
    finally:
        progress.clear()
    if job.json:
        streams.stdout.write(json.dumps(asdict(found), default=str) + "\n")
    else:
        streams.stdout.writelines(f"{line}\n" for line in _page(found))
    streams.stdout.flush()
    return 0


def _page(found: VerifiedFile) -> Iterator[str]:
    types = ", ".join(f"{name} x {count}" for name, count in found.types)
    yield clean_line(f"{found.path}: {found.container}, sound")
    yield f"  {grouped(found.tensors)} tensors, {grouped(found.parameters)} parameters: {types}"
    for part in found.parts:
        known = part.checksum
        verdict = "no checksum is known" if known is None else f"{known.algorithm} as in {known.source}"
        yield f"  {clean_line(part.path.name)}  {byte_size(part.nbytes)}  {clean_line(verdict)}"
