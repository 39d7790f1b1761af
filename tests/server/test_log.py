"""The request log: lines that are JSON, whatever happens to the process and the disk."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, unquote

import pytest

from mistralrs.errors import UsageError
from mistralrs.server.log import RequestLog
from mistralrs.server.redaction import STEP, KeyRedactor


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
    "body", [b"{broken\nsecond", b"\xff\xff", b"[" * 5000, b"NaN", b"", '{"a":1}'.encode("utf-16")]
)
def test_a_body_that_is_no_json_is_kept_as_text(tmp_path: Path, body: bytes) -> None:
    log = RequestLog(tmp_path / "log")
    log.record("request", "a", body=body)
    log.close()
    assert lines(tmp_path / "log")[0]["body"] == body.decode(json.detect_encoding(body), errors="replace")


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


SHORT, LONG, ODD = "k9Q", "sk-proj-0a1B2c3D4e", 'a"b\\c/dé😀'


def spellings(key: str) -> dict[str, bytes]:
    """Bodies with the key in them, by how it is spelt."""
    inside = json.dumps(key)[1:-1]
    escaped = "".join(f"\\u{ord(c):04x}" for c in key if ord(c) < 0x10000) + ("\\ud83d\\ude00" if "😀" in key else "")
    basic = base64.b64encode(f"user:{key}".encode()).decode()
    return {
        "no JSON": f"{{api_key: {key}, and more".encode(),
        "broken off": json.dumps({"messages": "Hi", "api_key": key}).encode()[:-2],
        "unicode escapes, broken off": f'{{"api_key": "{escaped}", '.encode(),
        "escapes, broken off": f'{{"api_key": "{inside}", '.encode(),
        "JSON in broken JSON": json.dumps({"text": json.dumps({"api_key": key})}).encode()[:-1],
        "JSON in JSON": json.dumps({"text": json.dumps({"text": json.dumps({"api_key": key})})}).encode(),
        "a name": json.dumps({key: 1}).encode(),
        "within a word": json.dumps({"text": f"<{key}>"}).encode(),
        "a header": json.dumps({"text": f"Authorization: Bearer {key}\r\n"}).encode(),
        "a query": json.dumps({"text": f"http://localhost/?key={quote(key, safe='')}&x"}).encode(),
        "a query in no JSON": f"curl http://localhost/?key={quote(key, safe='')}&x".encode(),
        "all percent": json.dumps({"text": "".join(f"%{byte:02x}" for byte in key.encode())}).encode(),
        "percent twice": json.dumps({"text": quote(quote(key, safe=""))}).encode(),
        "Basic": json.dumps({"text": f"authorization: BASIC {basic}"}).encode(),
        "Basic in no JSON": f"Authorization: Basic {basic}\r\n".encode(),
        "UTF-16": json.dumps({"api_key": key}, ensure_ascii=False).encode("utf-16"),
        "too deep": b'{"a":' * 5000 + json.dumps(key, ensure_ascii=False).encode(),
    }


@pytest.mark.parametrize("how", spellings(LONG))
@pytest.mark.parametrize("key", [SHORT, LONG, ODD])
def test_a_key_is_crossed_out_however_it_is_spelt(tmp_path: Path, key: str, how: str) -> None:
    log = RequestLog(tmp_path / "log", secrets=[key, "another"])
    body = spellings(key)[how]
    log.record("request", "a", path="/v1/x", body=body)
    log.close()
    [line] = lines(tmp_path / "log")
    written = str(line["body"])
    assert written.count("[key]") == 1
    for _ in range(5):  # whatever undoing escapes may uncover
        assert key not in written
        written = unquote(re.sub(r"\\u([0-9a-f]{4})", lambda found: chr(int(found[1], 16)), written.replace("\0", "")))
        written = re.sub(r"\\(.)", r"\1", written)
    for coded in re.findall(r"[A-Za-z0-9+/]{4,}", str(line["body"])):
        assert key.encode() not in base64.b64decode(coded[: len(coded) // 4 * 4])


@pytest.mark.parametrize("offset", range(3))
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_a_key_is_crossed_out_inside_of_base64(offset: int, encode: Callable[[bytes], bytes]) -> None:
    for key in (LONG, "s?>~>?s", ODD):
        coded = encode(b"x" * (30 + offset) + key.encode() + b"y" * 40).decode()
        kept = KeyRedactor([key]).text(f"data:text/plain;base64,{coded}")
        assert kept.count("[key]") == 1
        assert len(kept) < len(coded) + 30 - len(key)


def test_what_is_no_key_stays() -> None:
    text = 'Basic facts: "{}" \\u0041 50% of %41%42 c2stcHJvag== \\\\ é😀 ' + "0123456789" * 10_000
    assert KeyRedactor([LONG, ODD]).text(text) == text
    value = {"a": [1, 2.5, None, True, {"b": "c"}]}
    assert KeyRedactor([LONG]).value(value) == value
    assert KeyRedactor([]).text(text) == text


@pytest.mark.parametrize(
    ("keys", "text", "kept"),
    [
        (["abcdefgh", "abcdefghij"], "<abcdefghij>", "<[key]>"),
        (["abcdef", "defghi"], "<abcdefghi>", "<[key]>"),
        (["aba"], "<ababa> aba", "<[key]> [key]"),
        (["key", "other"], "a key, other keys", "a [key], [key] [key]s"),
        (["a"], "banana", "b[key]n[key]n[key]"),
    ],
)
def test_keys_that_overlap_leave_nothing_of_each_other(keys: list[str], text: str, kept: str) -> None:
    for order in (keys, keys[::-1]):
        assert KeyRedactor(order).text(text) == kept


@pytest.mark.parametrize("key", ["kind", "a", "request", "1", '"', ":", "time", "200", "null"])
def test_a_line_stays_json_whatever_the_key_is(tmp_path: Path, key: str) -> None:
    log = RequestLog(tmp_path / "log", secrets=[key])
    log.record("request", f"id-{key}", path=f"/v1/{key}", body=json.dumps({key: [key, 1, 1.5, None]}).encode())
    log.record("response", "b", status=200, body=json.dumps({"kind": f"a {key}"}).encode())
    log.close()
    first, second = lines(tmp_path / "log")
    assert {"time", "kind", "id", "path", "body"} == first.keys()
    assert (first["kind"], second["kind"], second["status"]) == ("request", "response", 200)
    assert key not in str(first["id"]).replace("[key]", "").removeprefix("id-")
    assert key not in json.dumps(first["body"], ensure_ascii=False).replace("[key]", "").translate(
        dict.fromkeys(map(ord, '{[":, ]}null.5' if key in '":null' else '{[":, ]}'), None)
    )


def test_a_long_text_is_searched_in_pieces() -> None:
    text = ("x" * (STEP - 3) + quote(ODD, safe="")) * 3 + "\\" * 5 * STEP
    assert KeyRedactor([ODD]).text(text).count("[key]") == 3


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    RequestLog(tmp_path / "log").close()
    assert (tmp_path / "log").stat().st_mode & 0o077 == 0


def test_a_file_that_cannot_be_opened_is_an_error_of_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        RequestLog(tmp_path / "nowhere" / "log")


def test_a_folder_is_an_error_of_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="directory"):
        RequestLog(tmp_path)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def has(path: Path, id: str) -> bool:
    return path.exists() and any(line["id"] == id for line in lines(path) if "id" in line)


@pytest.mark.parametrize("deleted", [False, True])
def test_a_renamed_or_deleted_file_is_followed_by_a_new_one(tmp_path: Path, deleted: bool) -> None:
    path, old = tmp_path / "log", tmp_path / "log.1"
    log = RequestLog(path)
    log.record("response", "before")
    wait_until(lambda: has(path, "before"))
    path.unlink() if deleted else path.rename(old)
    log.record("response", "after")
    log.close()
    assert [line["id"] for line in lines(path)] == ["after"]
    assert path.stat().st_mode & 0o077 == 0
    if not deleted:
        assert [line["id"] for line in lines(old)] == ["before"]


def test_a_file_is_opened_anew_when_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = RequestLog(path)
    path.rename(tmp_path / "log.1")
    log.reopen()
    wait_until(path.exists)  # without a record
    path.unlink()
    path.write_text('{"half')
    log.record("response", "after")
    log.close()
    half, whole = path.read_text().splitlines()
    assert (half, json.loads(whole)["id"]) == ('{"half', "after")


def test_where_no_new_file_can_be_made_the_old_one_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, old = tmp_path / "log", tmp_path / "log.1"
    log = RequestLog(path)
    path.rename(old)
    path.mkdir()
    for id in ("a", "b"):
        log.record("response", id)
        wait_until(lambda id=id: has(old, id))  # type: ignore[misc]
    path.rmdir()
    log.record("response", "c")
    log.close()
    assert [line["id"] for line in lines(old)] == ["a", "b"]
    assert [line["id"] for line in lines(path)] == ["c"]
    assert log.lost == 0
    assert [record.getMessage() for record in caplog.records if "goes on in the old file" in record.getMessage()]


def test_what_is_written_while_the_folder_is_gone_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    log = RequestLog(folder / "log")
    (folder / "log").unlink()
    folder.rmdir()
    log.reopen()
    for id in ("a", "b"):
        log.record("response", id)
    wait_until(lambda: log.lost == 2)
    folder.mkdir()
    log.record("response", "c")
    log.close()
    told, after = lines(folder / "log")
    assert (told["records"], after["id"]) == (2, "c")
    assert "No such file" in caplog.text
    assert "lacks 2 records" in caplog.text


RECORD = b'"' + b"x" * 30_000 + b'"'


@pytest.mark.parametrize("reader", [False, True], ids=["no reader", "a reader that does not read"])
def test_a_pipe_that_nobody_reads_holds_up_nobody(
    tmp_path: Path, reader: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(RequestLog, "CLOSING_S", 0.2)
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK) if reader else None
    log = RequestLog(path)
    for number in range(40):
        log.record("response", str(number), body=RECORD)
    log.reopen()
    log.close()
    in_the_pipe = b""
    if reading is not None:
        os.set_blocking(reading, False)
        in_the_pipe = os.read(reading, 1 << 20)
        os.close(reading)
    assert log.lost == 40 - in_the_pipe.count(b"\n") > 30
    assert f"lacks {log.lost} records" in caplog.text
    assert "nobody reads it" in caplog.text


def test_a_slow_reader_of_a_pipe_gets_whole_lines_and_the_next_one_too(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    log = RequestLog(path)
    log.record("response", "0", body=b'"' + b"x" * 300_000 + b'"')
    with path.open() as reader:
        time.sleep(0.3)
        assert json.loads(reader.readline())["id"] == "0"
    log.record("response", "1", body=RECORD)  # while there is no reader
    time.sleep(0.3)
    with path.open() as reader:
        assert json.loads(reader.readline())["id"] == "1"
        log.record("response", "2")
        assert json.loads(reader.readline())["id"] == "2"
        log.close()
    assert log.lost == 0


def test_a_disk_that_does_not_answer_ends_with_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate = threading.Event()
    monkeypatch.setattr("mistralrs.server.log_file.os.write", lambda file, data: gate.wait() and len(data))
    monkeypatch.setattr(RequestLog, "CLOSING_S", 0.1)
    log = RequestLog(tmp_path / "log")
    for number in range(5):
        log.record("response", str(number))
    log.close()
    gate.set()
    assert log.lost == 5
    assert "lacks 5 records" in caplog.text


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

    monkeypatch.setattr("mistralrs.server.log_file.os.write", full)
    log = RequestLog(tmp_path / "log")
    for number in range(5):
        log.record("response", str(number), body=json.dumps("x" * 80).encode())
    wait_until(lambda: log.lost == 5)
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
    write, was_opened = os.write, []

    def slow(file: int, data: bytes) -> int:
        was_opened.append(gate.wait(60))
        return write(file, data)

    monkeypatch.setattr("mistralrs.server.log_file.os.write", slow)
    monkeypatch.setattr(RequestLog, "BACKLOG", 10_000)
    log = RequestLog(tmp_path / "log")
    for number in range(200):
        log.record("chunk", str(number), body=b'"0123456789"')
    gate.set()
    log.close()
    assert all(was_opened)  # no record waited until the disk answered
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
