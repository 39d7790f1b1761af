"""Measures how long a server lets its clients wait, alone and beside others that post 4 MB of digits repeatedly.

    python -m benchmarks.latency MODEL.gguf [--report FILE] [--seconds 14]

Starts a server as a user does and measures it over kept connections: GET /version, one-token chats, and streams, their
first token and every next one; /health is asked all the while. Clients that post are a process of their own. Takes
about a minute and a half, at most three. The exit code is 1 if /health ever takes longer than 100 ms, a stream pauses
for longer than 300 ms, or a measured request fails. Run it from the project's root, with nothing else running.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.serving import RunningServer

DIGITS = 4_000_000
HEALTH_LIMIT_S = 0.1
PAUSE_LIMIT_S = 0.3
LONGEST_S = 150.0
"""Seconds of the whole measurement without the start; that of a slower server ends early."""
HEALTH_EVERY_S = 0.02
STREAM_TOKENS = 64
CHAT = "/v1/chat/completions"
TOKENIZE = "/tokenize"
QUESTION = {"messages": "Tell me about the sea.", "temperature": 0, "ignore_eos": True}
KINDS = ("GET /version", "one-token chat", "first token", "next token", "GET /health")
SITUATIONS = ((0, CHAT), (1, CHAT), (1, TOKENIZE), (12, CHAT), (12, TOKENIZE))
"""The number of posting clients, and their endpoint."""


@dataclass(slots=True)
class Waits:
    """The waits measured in one situation, in seconds."""

    clients: int
    address: str
    seconds: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    posted: Counter[str] = field(default_factory=Counter)
    """Bodies that the clients posted, by status."""
    failed: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.clients}, {self.address}" if self.clients else "none"

    def longest(self, kind: str) -> float:
        return max(self.seconds[kind], default=0.0)


class Client:
    """One kept connection."""

    def __init__(self, server: RunningServer) -> None:
        self._connection = http.client.HTTPConnection(server.host, server.port, timeout=60)

    def ask(self, method: str, path: str, body: object = None) -> float:
        """Returns the seconds from sending a request to the end of its answer.

        Raises RuntimeError unless that is 200.
        """
        started = time.perf_counter()
        self._send(method, path, body).read()
        return time.perf_counter() - started

    def stream(self) -> list[float]:
        """Returns the seconds from sending a request to its first token, and then from token to token."""
        before = time.perf_counter()
        response = self._send("POST", CHAT, {**QUESTION, "stream": True, "max_tokens": STREAM_TOKENS})
        waits = []
        for line in response:
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                if "error" in event:
                    raise RuntimeError(f"a stream ended with {event['error']['message']}")
                if any(choice["delta"].get("content") for choice in event["choices"]):
                    now = time.perf_counter()
                    waits.append(now - before)
                    before = now
        return waits

    def close(self) -> None:
        self._connection.close()

    def _send(self, method: str, path: str, body: object) -> http.client.HTTPResponse:
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": "application/json"} if data else {}
        try:
            self._connection.request(method, path, data, headers)
            response = self._connection.getresponse()
        except ConnectionError:  # a server may close an idle connection while a request is on its way
            self._connection.close()
            self._connection.request(method, path, data, headers)
            response = self._connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{method} {path}: {response.status} {response.read()[:200].decode(errors='replace')}")
        return response


def measure(server: RunningServer, clients: int, address: str, *, seconds: float, ends: float) -> Waits:
    """Returns all kinds of waits beside so many clients. ``ends``: the end of the measurement by the clock."""
    waits = Waits(clients, address)
    over = threading.Event()
    prober = threading.Thread(target=_probe, args=(Client(server), waits, over))
    with posting(server, clients, address, waits):
        prober.start()
        client = Client(server)
        try:
            for share, kind in ((0.15, "GET /version"), (0.25, "one-token chat"), (0.6, "first token")):
                for found in _repeated(client, kind, until=min(time.perf_counter() + share * seconds, ends)):
                    waits.seconds[kind].append(found[0])
                    waits.seconds["next token"] += found[1:]
        except (OSError, http.client.HTTPException, RuntimeError) as error:
            waits.failed.append(str(error) or type(error).__name__)
        finally:
            over.set()
            prober.join()
            client.close()
    return waits


def _repeated(client: Client, kind: str, *, until: float) -> Iterator[list[float]]:
    """Makes requests of a kind, one after the other. Each has one wait; streams also have those between tokens."""
    one: dict[str, Callable[[], list[float]]] = {
        "GET /version": lambda: [client.ask("GET", "/version")],
        "one-token chat": lambda: [client.ask("POST", CHAT, {**QUESTION, "max_tokens": 1})],
        "first token": client.stream,
    }
    while True:
        yield one[kind]()
        if time.perf_counter() > until:
            return


def _probe(client: Client, waits: Waits, over: threading.Event) -> None:
    try:
        while not over.wait(HEALTH_EVERY_S):
            waits.seconds["GET /health"].append(client.ask("GET", "/health"))
    except (OSError, http.client.HTTPException, RuntimeError) as error:
        waits.failed.append(f"/health: {str(error) or type(error).__name__}")
    finally:
        client.close()


@contextmanager
def posting(server: RunningServer, clients: int, address: str, waits: Waits) -> Iterator[None]:
    """A context in which ``clients`` clients post; their answers are counted by status in ``waits`` at its end."""
    if not clients:
        yield
        return
    command = [sys.executable, "-m", "benchmarks.latency", "--post", str(clients), address, str(server.port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as poster:
        try:
            assert poster.stdout is not None
            poster.stdout.readline()  # all have begun
            yield
        finally:
            told, _ = poster.communicate("", timeout=90)
            waits.posted.update(json.loads(told))


def post(clients: int, address: str, port: int) -> None:
    """Runs the posting process until stdin ends, then prints the number of bodies by status."""
    draw = random.Random(5)
    digits = "".join(draw.choices("0123456789", k=DIGITS))
    body = {"content": digits} if address == TOKENIZE else {"messages": digits, "max_tokens": 1}
    data = json.dumps(body).encode()
    statuses: Counter[str] = Counter()
    threads = [
        threading.Thread(target=_post, args=(address, port, data, statuses), daemon=True) for _ in range(clients)
    ]
    for thread in threads:
        thread.start()
    print("posting", flush=True)
    sys.stdin.read()
    print(json.dumps(dict(statuses)), flush=True)
    os._exit(0)  # it does not wait for answers that are still under way


def _post(address: str, port: int, data: bytes, statuses: Counter[str]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    while True:
        try:
            connection.request("POST", address, data, {"Content-Type": "application/json"})
            response = connection.getresponse()
            response.read()
            statuses[str(response.status)] += 1
        except (OSError, http.client.HTTPException) as error:
            statuses[type(error).__name__] += 1
            connection.close()


def findings(measured: list[Waits]) -> list[str]:
    """Returns a line for each kind of wait that is too long and for failed requests; empty if there are none."""
    found = []
    for waits in measured:
        for kind, limit in (("GET /health", HEALTH_LIMIT_S), ("next token", PAUSE_LIMIT_S)):
            if waits.longest(kind) > limit:
                longest, most = waits.longest(kind) * 1000, limit * 1000
                found.append(
                    f"posting clients {waits.name}: {kind} took {longest:.0f} ms, at most {most:.0f} are right"
                )
        found += [f"posting clients {waits.name}: {reason}" for reason in waits.failed]
        empty = [kind for kind, seconds in waits.seconds.items() if not seconds]
        found += [f"posting clients {waits.name}: no {kind} was measured" for kind in empty]
        if waits.clients and not waits.posted:
            found.append(f"posting clients {waits.name}: no body was answered")
    if len(measured) < len(SITUATIONS):
        found.append(f"{len(measured)} of {len(SITUATIONS)} situations were measured in {LONGEST_S:.0f} s")
    return found


def report(measured: list[Waits], model: str) -> str:
    lines = [
        "# Latency of the server",
        "",
        f"`python -m benchmarks.latency` with {model} on {os.cpu_count()} cores.",
        "Milliseconds: median, 95th percentile, longest.",
        f"A client that posts sends {DIGITS // 1_000_000} MB of digits, as a chat message or to `/tokenize`, "
        "and again once it is answered.",
        "",
        f"| Posting clients | {' | '.join(f'`{kind}`' if kind.startswith('GET') else kind for kind in KINDS[:4])} |",
        "| --- | --- | --- | --- | --- |",
        *(f"| {waits.name} | {' | '.join(_three(waits.seconds[kind]) for kind in KINDS[:4])} |" for waits in measured),
        "",
        "| Posting clients | Longest wait for `/health` | Longest pause of a stream | Bodies answered, by status |",
        "| --- | --- | --- | --- |",
        *(
            f"| {waits.name} | {waits.longest('GET /health') * 1000:.0f} | {waits.longest('next token') * 1000:.0f} "
            f"| {', '.join(f'{count} x {status}' for status, count in sorted(waits.posted.items())) or '-'} |"
            for waits in measured
        ),
        f"| at most | {HEALTH_LIMIT_S * 1000:.0f} | {PAUSE_LIMIT_S * 1000:.0f} | |",
        "",
        "Findings: " + ("none" if not findings(measured) else ""),
        *(f"- {found}" for found in findings(measured)),
    ]
    return "\n".join(lines) + "\n"


def _three(seconds: list[float]) -> str:
    if not seconds:
        return "-"
    ordered = sorted(seconds)
    figures = (statistics.median(ordered), ordered[int(len(ordered) * 0.95)], ordered[-1])
    return ", ".join(f"{figure * 1000:.1f}" for figure in figures)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--seconds", type=float, default=14, help="of measuring, in each of five situations")
    parser.add_argument("--post", nargs=3, metavar=("CLIENTS", "ADDRESS", "PORT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.post:
        post(int(args.post[0]), args.post[1], int(args.post[2]))
    if args.model is None:
        parser.error("MODEL is missing")
    measured: list[Waits] = []
    with RunningServer("auto", str(args.model)) as server:
        ends = time.perf_counter() + LONGEST_S
        client = Client(server)
        client.stream()  # the first request is slower than all others
        client.close()
        for clients, address in SITUATIONS:
            if time.perf_counter() < ends:
                measured.append(measure(server, clients, address, seconds=args.seconds, ends=ends))
                print(_line(measured[-1]), file=sys.stderr)
    text = report(measured, args.model.name)
    print(text)
    if args.report:
        args.report.write_text(text)
    return 1 if findings(measured) else 0


def _line(waits: Waits) -> str:
    return f"{waits.name}: " + "; ".join(f"{kind} {_three(seconds)} ms" for kind, seconds in waits.seconds.items())


if __name__ == "__main__":
    sys.exit(main())
