"""An answer of a server as it comes: server-sent events become the events of an engine."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from mistralrs.api.read_stream import Thought
from mistralrs.engine.events import Delta, End, Event, Failed, Finished, Usage
from mistralrs.errors import EngineError, MistralrsError
from mistralrs.parsing import parse_nested
from mistralrs_cli.model import LostModelError
from mistralrs_cli.server_client.remote_tokens import StreamLogprobs
from mistralrs_cli.server_client.server_connection import Server, ServerConnection
from mistralrs_cli.server_client.server_errors import BusyServerError, stream_error

CHAT = "/chat/completions"
_END = b"[DONE]"
_LONGEST_WAIT_S = 60.0
_TRIES = 20
"""Requests of a patient stream that a busy server may refuse."""


@dataclass(slots=True)
class _Progress:
    """The part of an answer that has come."""

    began: float
    first: float | None = None
    """The time of the first text."""
    pieces: int = 0
    reason: str | None = None
    usage: Mapping[str, object] | None = None
    timings: Mapping[str, object] | None = None


class RemoteStream:
    """One answer, which a thread of its own asks for; ``cancel`` closes its connection."""

    def __init__(
        self,
        server: Server,
        body: Mapping[str, object],
        *,
        seed: int,
        permits: threading.Semaphore,
        is_patient: bool,
    ) -> None:
        """``permits`` bounds the requests at once; ``is_patient``: asks again where the server is busy."""
        self._server = server
        self._body = body
        self._seed = seed
        self._permits = permits
        self._is_patient = is_patient
        self._events: SimpleQueue[Event | Thought | BaseException] = SimpleQueue()
        self._lock = threading.Lock()
        self._has_ended = False
        self._cancelled = threading.Event()
        self._connection: ServerConnection | None = None
        self._progress = _Progress(time.monotonic())
        self._logprobs = StreamLogprobs()
        threading.Thread(target=self._run, name="server-answer", daemon=True).start()

    def __iter__(self) -> Iterator[Event | Thought]:
        while True:
            event = self._events.get()
            if isinstance(event, BaseException):
                raise event
            yield event
            if isinstance(event, End):
                return

    def prompt_progress(self) -> None:
        """Returns None: a server does not say how much of a prompt it has computed."""

    def cancel(self) -> None:
        """Ends the answer at once; safe from any thread, and more than once."""
        self._cancelled.set()
        self._put(Finished("cancelled", self._usage()))
        with self._lock:
            connection = self._connection
        if connection is not None:
            connection.close()

    def _put(self, event: Event | Thought | BaseException) -> None:
        with self._lock:
            if self._has_ended:
                return
            self._has_ended = isinstance(event, End | BaseException)
            self._events.put(event)

    def _run(self) -> None:
        try:
            with self._permits:
                self._ask_patiently()
        except MistralrsError as error:
            self._put(Failed(error, self._usage()))
        except BaseException as error:  # a defect, which belongs to the thread that iterates
            self._put(error)

    def _ask_patiently(self) -> None:
        for tried in range(1, _TRIES + 1):
            try:
                return self._exchange()
            except BusyServerError as error:
                if not self._is_patient or tried == _TRIES:
                    raise
                wait = min(2.0**tried / 2 if error.retry_after_s is None else error.retry_after_s, _LONGEST_WAIT_S)
                if self._cancelled.wait(wait):
                    return None
        return None

    def _exchange(self) -> None:
        connection = ServerConnection(self._server)
        with self._lock:
            self._connection = connection
        if self._cancelled.is_set():
            return
        self._progress = progress = _Progress(time.monotonic())
        for data in connection.stream(CHAT, self._body):
            if data == _END:
                break
            self._take(data, progress)
        if progress.reason is None:
            raise LostModelError(f"{self._server.address} broke its answer off", hint="its log may say why")
        if progress.reason not in ("stop", "length"):
            hint = "only text that stops or reaches its limit is an answer here"
            raise EngineError(f"{self._server.address} ended its answer with {progress.reason!r}", hint=hint)
        self._put(Finished("length" if progress.reason == "length" else "stop", self._usage()))

    def _take(self, data: bytes, progress: _Progress) -> None:
        """Takes the data of one event. Raises ``MistralrsError`` for an error, and for what is no chunk of a chat."""
        address = self._server.address
        try:
            chunk = parse_nested(json.loads, data)
            if not isinstance(chunk, dict):
                raise ValueError("an event is no object")
            choice: Mapping[str, Any] = next(iter(chunk.get("choices") or ()), {})
            delta = choice.get("delta") or {}
            text, thought = delta.get("content"), delta.get("reasoning_content", delta.get("reasoning"))
            reason = choice.get("finish_reason")
            if not all(isinstance(value, str | None) for value in (text, thought, reason)):
                raise ValueError("a text or a reason is none")
            logprobs = self._logprobs.read(choice.get("logprobs"))
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise LostModelError(f"{address} sent no chunk of a chat: {error}", hint="is this OpenAI's API?") from error
        if chunk.get("error"):
            raise stream_error(address, chunk["error"])
        progress.reason = reason or progress.reason
        if isinstance(chunk.get("usage"), dict):
            progress.usage = chunk["usage"]
        if isinstance(chunk.get("timings"), dict):
            progress.timings = chunk["timings"]
        if thought:
            self._put(Thought(thought))
        if text:
            progress.first = progress.first or time.monotonic()
            progress.pieces += 1
        if text or logprobs:
            self._put(Delta(text or "", (), logprobs))

    def _usage(self) -> Usage:
        """Returns the server's counts and times; where it gives none, the pieces that came and the times here."""
        progress, now = self._progress, time.monotonic()
        usage, timings = progress.usage or {}, progress.timings or {}
        first = progress.first or now
        details = usage.get("prompt_tokens_details")
        return Usage(
            prompt_tokens=_count(usage, "prompt_tokens"),
            cached_tokens=_count(details if isinstance(details, dict) else {}, "cached_tokens"),
            completion_tokens=_count(usage, "completion_tokens", otherwise=progress.pieces),
            prompt_s=_seconds(timings, "total_prompt_time_sec", first - progress.began),
            completion_s=_seconds(timings, "total_completion_time_sec", now - first),
            first_token_s=first - progress.began if progress.first is not None else 0.0,
            seed=self._seed,
            drafted_tokens=_count(timings, "draft_n"),
            accepted_tokens=_count(timings, "draft_n_accepted"),
        )


def _count(counts: Mapping[str, object], name: str, *, otherwise: int = 0) -> int:
    value = counts.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else otherwise


def _seconds(timings: Mapping[str, object], name: str, otherwise: float) -> float:
    value = timings.get(name)
    return float(value) if isinstance(value, int | float) else otherwise
