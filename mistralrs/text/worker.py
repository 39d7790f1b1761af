"""Runs foreign code in worker processes: one, and a second while the first is busy.

Worker processes are limited in time and memory, killed when their call is cancelled, and replaced. Any process may use
this module from any thread. Workers run ``worker_process`` and answer with JSON and plain bytes only, so that code
which broke out of a worker's sandbox could not reach this process.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import signal
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from mistralrs.errors import EngineError, LoadError, MistralrsError, RequestError
from mistralrs.process import has_working_folder
from mistralrs.text.conversation import TemplateRefusalError
from mistralrs.text.framing import HEADER, frame

MAX_PROCESSES = 2
MAX_LOADED = 16
"""Templates and tokenizers that one worker keeps; the least recently used one is dropped first."""
MAX_ANSWER_BYTES = 512 << 20
GRACE_S = 5.0
"""Seconds beyond the wall-clock limit, at which a worker's own alarm ends it, after which it is killed."""
_MODULE = "mistralrs.text.worker_process"
_INHERITED_VARIABLES = ("LANG", "LC_", "TZ", "PATH", "LD_", "DYLD_")
_WRITE_BYTES = 1 << 20
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one call, and the subject of the error message if one is exceeded."""

    subject: str
    cpu_s: float
    memory: int
    """Bytes that the process may allocate beyond those that it has when the call begins."""
    wall_s: float = 60.0
    """Longer than ``cpu_s``, for a machine that is busy with other work."""


TOKENIZER_LOADING = Limits("loading the tokenizer", cpu_s=20.0, memory=2 << 30)
TOKENIZING = Limits("it", cpu_s=10.0, memory=2 << 30)
"""Limits for one text: 4 MB in which each byte is a token take half of them."""


@dataclass(frozen=True, slots=True)
class Resource:
    """A template, tokenizer or set of control texts that a worker loads once and calls name by number."""

    call: str
    head: Mapping[str, Any]
    payload: Callable[[], bytes]
    limits: Limits
    number: int = field(default_factory=lambda: next(_numbers))


class CancelledError(MistralrsError):
    """The call was cancelled."""


class LimitError(MistralrsError):
    """The call exceeded a limit, or crashed its process."""


class FailedError(MistralrsError):
    """The foreign code failed; the message is its own."""


class Cancellation:
    """Cancels the calls that a thread makes while it has entered this. Any other thread may call ``cancel``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kill: Callable[[], None] | None = None
        self.cancelled = False

    def cancel(self) -> None:
        with self._lock:
            self.cancelled = True
            if self._kill is not None:
                self._kill()

    def check(self) -> None:
        """Raises CancelledError once it is cancelled."""
        if self.cancelled:
            raise CancelledError("the request was cancelled")

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        token = _cancellation.set(self)
        try:
            yield
        finally:
            _cancellation.reset(token)

    @contextlib.contextmanager
    def ending(self, kill: Callable[[], None]) -> Iterator[None]:
        """While entered, ``cancel`` calls ``kill``."""
        with self._lock:
            self.check()
            self._kill = kill
        try:
            yield
        finally:
            with self._lock:
                self._kill = None


_cancellation: ContextVar[Cancellation | None] = ContextVar("cancellation", default=None)


def check_cancelled() -> None:
    """Raises CancelledError if this thread's work was cancelled. Long work calls it between two steps."""
    cancellation = _cancellation.get()
    if cancellation is not None:
        cancellation.check()


class Workers:
    """The worker processes of this process."""

    def __init__(self, most: int = MAX_PROCESSES) -> None:
        self._slots = threading.Semaphore(most)
        self._lock = threading.Lock()
        self._idle: list[_Process] = []

    def start(self) -> None:
        """Starts a process, unless one is idle, and does not wait until it is ready."""
        with self._lock:
            if not self._idle:
                self._idle.append(_Process())

    def call(
        self,
        call: str,
        head: Mapping[str, Any],
        resources: Mapping[str, Resource | None],
        *,
        limits: Limits,
        payload: bytes = b"",
    ) -> tuple[dict[str, Any], bytes]:
        """The answer to a call. ``resources``, by the call's parameter names, are loaded first if necessary.

        Raises RequestError and LoadError as the call does in the worker, FailedError with the message of foreign code,
        LimitError if a limit was exceeded, and CancelledError.
        """
        with self._process() as process:
            numbers = {name: None if each is None else process.load(each) for name, each in resources.items()}
            return process.ask(call, {**head, **numbers}, payload, limits)

    def load(self, resource: Resource) -> None:
        """Loads a resource, to check that it loads. Raises as ``call`` does."""
        with self._process() as process:
            process.load(resource)

    def close(self) -> None:
        """Ends the idle processes. Later calls start new ones."""
        with self._lock:
            idle, self._idle = self._idle, []
        for process in idle:
            process.end()

    def after_fork(self) -> None:
        """Closes, in a fork, the pipes to the parent's workers, which only the parent may use."""
        for process in self._idle:
            process.close_pipes()
        self._idle = []
        self._slots = threading.Semaphore(MAX_PROCESSES)
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def _process(self) -> Iterator[_Process]:
        cancellation = _cancellation.get() or Cancellation()
        while not self._slots.acquire(timeout=0.1):
            cancellation.check()
        try:
            process = self._take()
            try:
                with cancellation.ending(process.kill):
                    yield process
            except LimitError:
                cancellation.check()  # a cancelled call ends its process as well
                raise
            finally:
                self._put(process)
        finally:
            self._slots.release()

    def _take(self) -> _Process:
        with self._lock:
            while self._idle:
                process = self._idle.pop()
                if not process.has_ended():
                    return process
                process.end()
        return _Process()

    def _put(self, process: _Process) -> None:
        if not process.is_usable:
            return
        if process.is_killed:  # a cancel came when the call had ended: the next call must not meet it
            process.end()
            return
        with self._lock:
            self._idle.append(process)


class _Process:
    """One worker process. Any thread may call ``kill``; all else is for the thread that took it."""

    def __init__(self) -> None:
        """Starts the process. Raises EngineError if that fails."""
        self.is_usable = True
        self.is_killed = False
        self._loaded: OrderedDict[int, None] = OrderedDict()
        self._lock = threading.Lock()  # after waitpid the id may belong to another process
        self._write, self._read, self._id = _start_process()

    def load(self, resource: Resource) -> int:
        """The number of the resource, which is loaded if it is not yet."""
        number = resource.number
        if number in self._loaded:
            self._loaded.move_to_end(number)
        else:
            payload = resource.payload()
            self.ask(resource.call, {**resource.head, "number": number}, payload, resource.limits)
            self._loaded[number] = None
        return number

    def ask(self, call: str, head: Mapping[str, Any], payload: bytes, limits: Limits) -> tuple[dict[str, Any], bytes]:
        """The answer to a call. After an error other than an answer the process has ended."""
        dropped = [self._loaded.popitem(last=False)[0] for _ in range(len(self._loaded) - MAX_LOADED)]
        try:
            bound = {"cpu_s": limits.cpu_s, "wall_s": limits.wall_s, "memory": limits.memory}
            call_head = {**head, "call": call, "drop": dropped, "limits": bound}
            try:
                pieces = frame(call_head, payload)
            except (TypeError, ValueError, RecursionError) as error:
                raise RequestError(
                    f"the messages hold a value that JSON cannot say: {error}", param="messages"
                ) from None
            deadline = time.monotonic() + limits.wall_s + GRACE_S
            for piece in pieces:
                self._send(piece, deadline)
            head_bytes, payload_bytes = HEADER.unpack(self._receive(HEADER.size, deadline))
            if head_bytes + payload_bytes > MAX_ANSWER_BYTES:
                raise EOFError
            answer: dict[str, Any] = json.loads(self._receive(head_bytes, deadline).decode("utf-8", "surrogatepass"))
            data = self._receive(payload_bytes, deadline)
        except (OSError, EOFError):
            raise LimitError(f"{limits.subject} {_ending(self.end(), limits)}") from None
        except BaseException:  # for example Ctrl-C: part of a frame may have been sent
            self.end()
            raise
        error_fields = answer.get("error")
        if error_fields is not None:
            if error_fields["kind"] == "memory":
                self.end()
            raise _error(error_fields, limits)
        return answer, data

    def kill(self) -> None:
        """Kills the process, so that the call that waits for it raises LimitError."""
        with self._lock:
            if self.is_usable:
                self.is_killed = True
                os.kill(self._id, signal.SIGKILL)

    def has_ended(self) -> bool:
        """Returns whether an idle process has hung up; one that lives writes nothing unless it is asked."""
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        return bool(poll.poll(0))

    def end(self) -> int:
        """Ends the process if it runs; returns its exit code, or the negative number of the signal that ended it."""
        with self._lock:
            self.is_usable = False
            self.close_pipes()
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._id, signal.SIGKILL)
            try:
                return os.waitstatus_to_exitcode(os.waitpid(self._id, 0)[1])
            except ChildProcessError:  # other code in this process waits for all children
                return -signal.SIGKILL

    def close_pipes(self) -> None:
        os.close(self._write)
        os.close(self._read)

    def _send(self, data: bytes, deadline: float) -> None:
        left = memoryview(data)
        while left:
            _wait(self._write, select.POLLOUT, deadline)
            left = left[os.write(self._write, left[:_WRITE_BYTES]) :]

    def _receive(self, size: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < size:
            _wait(self._read, select.POLLIN, deadline)
            piece = os.read(self._read, min(size - len(data), _WRITE_BYTES))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)


def _wait(file: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(file, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise EOFError


def _ending(code: int, limits: Limits) -> str:
    """The predicate of the error message for a call that ended its process."""
    if code == -signal.SIGPROF:
        return f"took more than {limits.cpu_s:g} s"
    if code == -signal.SIGALRM:
        return f"took more than {limits.wall_s:g} s"
    if code in (-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS):  # native code ends like this when it gets no memory
        return f"took more than {limits.memory >> 20} MiB of memory, or broke its process"
    return f"ended its process ({f'signal {-code}' if code < 0 else f'exit code {code}'})"


def _error(error_fields: Mapping[str, Any], limits: Limits) -> MistralrsError:
    """The error of an answer. Its fields come from foreign code, so that each is converted to its type."""
    message = str(error_fields.get("message"))
    hint = error_fields.get("hint")
    hint = None if hint is None else str(hint)
    match error_fields["kind"]:
        case "memory":
            return LimitError(f"{limits.subject} took more than {limits.memory >> 20} MiB of memory")
        case "refusal" | "request" as kind:
            param = error_fields.get("param")
            error_class = TemplateRefusalError if kind == "refusal" else RequestError
            return error_class(
                message, hint=hint, code=str(error_fields.get("code")), param=None if param is None else str(param)
            )
        case "load":
            return LoadError(message, hint=hint)
    return FailedError(message)


def _start_process() -> tuple[int, int, int]:
    """Starts a worker; returns the descriptors to write to it and to read from it, and its process id.

    The worker is a fresh interpreter, because a fork would inherit locks without the threads that hold them. It
    inherits the environment variables that time zones and libraries need, but no keys, and ``sys.path``. It has a
    process group of its own, so that a terminal's Ctrl-C does not reach it.
    """
    # a relative entry means nothing where the working directory is gone
    path = [os.path.abspath(entry) for entry in sys.path if os.path.isabs(entry) or has_working_folder()]
    code = f"import sys; sys.path[:] = {path!r}; from {_MODULE} import main; main()"
    environment = {name: value for name, value in os.environ.items() if name.startswith(_INHERITED_VARIABLES)}
    environment["TOKENIZERS_PARALLELISM"] = "false"
    stdin, write = os.pipe()
    read, stdout = os.pipe()
    actions = [
        (os.POSIX_SPAWN_DUP2, stdin, 0),
        (os.POSIX_SPAWN_DUP2, stdout, 1),
        (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
    ]
    try:
        command = [sys.executable, "-I", "-S", "-c", code]
        number = os.posix_spawn(sys.executable, command, environment, file_actions=actions, setpgroup=0)
    except OSError as error:
        os.close(write)
        os.close(read)
        raise EngineError(f"the process for chat templates cannot be started: {error}") from error
    finally:
        os.close(stdin)
        os.close(stdout)
    os.set_blocking(write, False)
    return write, read, number


workers = Workers()
os.register_at_fork(after_in_child=workers.after_fork)
