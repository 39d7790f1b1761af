"""The request log: lines that are JSON, whatever happens to the process and the disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mistralrs.errors import UsageError
from mistralrs.server.log import RequestLog


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_record_is_a_line_with_time_kind_id_facts_and_body(tmp_path: Path) -> None:
    log = RequestLog(tmp_path / "log")
    log.record("request", "a", path="/v1/x", body=b'{\n "q": "\xc3\xa4\\n"\n}')
    log.record("error", "a", status=400, body=b'{"error":{}}')
    log.close()
    request, error = lines(tmp_path / "log")
    assert request.pop("time")
    assert request == {"kind": "request", "id": "a", "path": "/v1/x", "body": {"q": "ä\n"}}
    assert (error["kind"], error["status"], error["body"]) == ("error", 400, {"error": {}})


@pytest.mark.parametrize(
    "body", [b"{broken\nsecond", b"\xff\xfe", b"[" * 5000, b"NaN", b"", '{"a":1}'.encode("utf-16")]
)
def test_a_body_that_is_no_json_is_kept_as_text(tmp_path: Path, body: bytes) -> None:
    log = RequestLog(tmp_path / "log")
    log.record("request", "a", body=body)
    log.close()
    assert lines(tmp_path / "log")[0]["body"] == body.decode(errors="replace")


def test_without_bodies_nothing_that_was_said_is_written(tmp_path: Path) -> None:
    log = RequestLog(tmp_path / "log", bodies=False)
    log.record("request", "a", body=b'"whisper"')
    log.record("chunk", "a", body=b'"whisper"')
    log.record("response", "a", status=200, body=b'"whisper"')
    log.close()
    assert "whisper" not in (tmp_path / "log").read_text()
    assert [line["kind"] for line in lines(tmp_path / "log")] == ["request", "response"]


def test_keys_are_crossed_out(tmp_path: Path) -> None:
    key = 'sk-sehr"geheim'
    log = RequestLog(tmp_path / "log", secrets=[key])
    log.record("request", "a", body=json.dumps({"api_key": key, "text": f"it is {key}!"}).encode())
    log.close()
    assert "geheim" not in (tmp_path / "log").read_text()
    assert lines(tmp_path / "log")[0]["body"] == {"api_key": "[key]", "text": "it is [key]!"}


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    RequestLog(tmp_path / "log").close()
    assert (tmp_path / "log").stat().st_mode & 0o077 == 0


def test_a_file_that_cannot_be_opened_is_an_error_of_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        RequestLog(tmp_path / "nowhere" / "log")


def test_a_half_line_of_a_killed_process_stays_alone(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b'{"kind":"request","id"')
    log = RequestLog(path)
    log.record("response", "b")
    log.close()
    half, whole = path.read_text().splitlines()
    assert half == '{"kind":"request","id"'
    assert json.loads(whole)["id"] == "b"


def test_a_full_disk_is_said_once_counted_and_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write, room = os.write, [100]

    def full(file: int, data: bytes) -> int:
        if room[0] == 0:
            raise OSError(28, "No space left on device")
        taken = write(file, data[: room[0]])
        room[0] -= taken
        return taken

    monkeypatch.setattr("mistralrs.server.log.os.write", full)
    log = RequestLog(tmp_path / "log")
    for number in range(5):
        log.record("response", str(number), body=json.dumps("x" * 80).encode())
    deadline = time.monotonic() + 5
    while log.lost < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert log.lost == 5
    room[0] = 1 << 30
    log.record("response", "after")
    log.close()
    assert len([record for record in caplog.records if "not complete" in record.message]) == 1
    _, *rest = (tmp_path / "log").read_text().splitlines()  # the first is what there was room for
    told, after = map(json.loads, rest)
    assert (told["kind"], told["records"], after["id"]) == ("lost", 5, "after")


def test_a_slow_disk_never_makes_anybody_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate = threading.Event()
    write = os.write

    def slow(file: int, data: bytes) -> int:
        gate.wait()
        return write(file, data)

    monkeypatch.setattr("mistralrs.server.log.os.write", slow)
    monkeypatch.setattr(RequestLog, "BACKLOG", 10_000)
    log = RequestLog(tmp_path / "log")
    started = time.monotonic()
    for number in range(200):
        log.record("chunk", str(number), body=b'"0123456789"')
    assert time.monotonic() - started < 1
    gate.set()
    log.close()
    written = lines(tmp_path / "log")
    kept = [line for line in written if line["kind"] == "chunk"]
    assert log.lost > 0
    assert len(kept) + log.lost == 200
    assert sum(int(str(line["records"])) for line in written if line["kind"] == "lost") == log.lost


_WRITER = """
import sys
from pathlib import Path
from mistralrs.server.log import RequestLog
log = RequestLog(Path(sys.argv[1]))
print("ready", flush=True)
while True:
    log.record("response", "a", body=b'"' + b"x" * 30000 + b'"')
"""


def test_killed_while_writing_it_goes_on_with_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE)
        with process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
    log = RequestLog(path)
    log.record("response", "last")
    log.close()
    read = path.read_text().splitlines()
    broken = [line for line in read if not line.endswith("}")]
    assert len(broken) <= 3
    assert all(json.loads(line)["kind"] in ("response", "lost") for line in read if line not in broken)
    assert json.loads(read[-1])["id"] == "last"
