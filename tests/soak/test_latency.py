"""The measurement of the server's latency: it measures what it says, and finds what is too long."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from benchmarks.latency import (
    CHAT,
    KINDS,
    SITUATIONS,
    STREAM_TOKENS,
    TOKENIZE,
    Client,
    Waits,
    findings,
    measure,
    report,
)
from tests.serving import RunningServer


def well(clients: int, address: str) -> Waits:
    waits = Waits(clients, address, {kind: [0.001, 0.05, 0.002] for kind in KINDS})
    waits.posted["400"] = clients
    return waits


def test_what_takes_too_long_or_fails_is_found() -> None:
    measured = [well(*situation) for situation in SITUATIONS]
    assert findings(measured) == []
    assert "Findings: none" in report(measured, "a model")
    measured[1].seconds["GET /health"].append(0.11)
    measured[3].seconds["next token"].append(0.31)
    measured[4].failed.append("no answer")
    found = findings(measured)
    assert len(found) == 3
    assert "GET /health took 110 ms" in found[0]
    assert "next token took 310 ms" in found[1]
    assert "| 12, /v1/chat/completions | 50 | 310 | 12 x 400 |" in report(measured, "a model")
    assert len(findings(measured[:2])) == 2
    measured[2].seconds["first token"].clear()
    assert any("no first token was measured" in each for each in findings(measured))


@pytest.mark.native
def test_a_server_is_measured(tiny_llama: Path) -> None:
    with RunningServer("auto", str(tiny_llama)) as server:
        waits = measure(server, 0, CHAT, seconds=0.5, ends=time.perf_counter() + 60)
        client = Client(server)
        assert len(client.stream()) <= STREAM_TOKENS
        with pytest.raises(RuntimeError, match="404"):
            client.ask("GET", "/nowhere")
        client.close()
    assert waits.failed == []
    assert all(waits.seconds[kind] for kind in KINDS)
    assert len(waits.seconds["next token"]) > len(waits.seconds["first token"])
    assert all(0 < wait < 60 for seconds in waits.seconds.values() for wait in seconds)


@pytest.mark.native
@pytest.mark.slow
def test_a_server_is_measured_beside_clients_that_post(tiny_llama: Path) -> None:
    with RunningServer("auto", str(tiny_llama)) as server:
        waits = measure(server, 2, TOKENIZE, seconds=0.5, ends=time.perf_counter() + 60)
    assert waits.failed == []
    assert all(waits.seconds[kind] for kind in KINDS)
