"""Runs foreign code in processes of its own: one, and a second while the first is busy. They are bounded in time and
memory, killed when their work is not wanted any more, and replaced.

Any process may use it from any thread; what is run is ``worker_process``'s. Only JSON and plain bytes come back, so
that code which broke out there could not reach in here.
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
from mistralrs.text.conversation import TemplateRefusalError
from mistralrs.text.framing import HEADER, frame

MAX_PROCESSES = 2
MAX_LOADED = 16
"""Templates and tokenizers that one process holds; the one that was used longest ago makes room."""
MAX_ANSWER_BYTES = 512 << 20
GRACE_S = 5.0
"""After its time a process is dead by its own alarm; this much later it is killed."""
_MODULE = "mistralrs.text.worker_process"
_PASSED_ON = ("LANG", "LC_", "TZ", "PATH", "LD_", "DYLD_")
_PIECE = 1 << 20
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one call, and the subject of the sentence that says which one was passed."""

    subject: str
    cpu_s: float
    memory: int
    """Bytes beyond those that the process has when the call begins."""
    wall_s: float = 60.0
    """For a machine that is busy with other things."""


TOKENIZER_LOADING = Limits("loading the tokenizer", cpu_s=20.0, memory=2 << 30)
TOKENIZING = Limits("it", cpu_s=10.0, memory=2 << 30)
"""For one text: 4 MB in which each byte is a token take half of it."""


@dataclass(frozen=True, slots=True)
class Resource:
    """A thing that a process loads once and that calls name by its number."""

    call: str
    head: Mapping[str, Any]
    payload: Callable[[], bytes]
    limits: Limits
    number: int = field(default_factory=lambda: next(_numbers))


class CancelledError(MistralrsError):
    """The work is not wanted any more."""


class LimitError(MistralrsError):
    """The call passed a limit, or broke its process."""


class FailedError(MistralrsError):
    """The foreign code failed, in its own words."""


class Cancellation:
    """Ends the calls that a thread makes while it has entered this. ``cancel`` is for any other thread."""

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
    """Raises CancelledError if this thread's work is not wanted any more. To be asked between two steps of it."""
    cancellation = _cancellation.get()
    if cancellation is not None:
        cancellation.check()


class Workers:
    """The processes of this one."""

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
        """The answer to a call; resources, by the call's names for them, are loaded first where they are not there.

        Raises RequestError and LoadError as the call does there, FailedError for the words of foreign code, LimitError
        where a limit was passed, and CancelledError.
        """
        with self._process() as process:
            numbers = {name: None if each is None else process.load(each) for name, each in resources.items()}
            return process.ask(call, {**head, **numbers}, payload, limits)

    def load(self, resource: Resource) -> None:
        """Loads it, to learn whether that works. Raises as ``call``."""
        with self._process() as process:
            process.load(resource)

    def close(self) -> None:
        """Ends the processes that are idle; new ones are started when they are wanted."""
        with self._lock:
            idle, self._idle = self._idle, []
        for process in idle:
            process.end()

    def after_fork(self) -> None:
        """In a fork, which has no part in the processes of its parent: lets go of them."""
        for process in self._idle:
            process.let_go()
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
                cancellation.check()  # which is how a process ends, too
                raise
            finally:
                self._put(process)
        finally:
            self._slots.release()

    def _take(self) -> _Process:
        with self._lock:
            while self._idle:
                process = self._idle.pop()
                if process.is_usable:
                    return process
        return _Process()

    def _put(self, process: _Process) -> None:
        if process.is_usable:
            with self._lock:
                self._idle.append(process)


class _Process:
    """One process. ``kill`` is for any thread, all else for the one that has it."""

    def __init__(self) -> None:
        """Starts it. Raises EngineError where that is not possible."""
        self.is_usable = True
        self._loaded: OrderedDict[int, None] = OrderedDict()
        self._lock = threading.Lock()  # a process that has been waited for may be another one
        self._write, self._read, self._id = _start_process()

    def load(self, resource: Resource) -> int:
        """The number of the resource, which is loaded unless it is."""
        number = resource.number
        if number in self._loaded:
            self._loaded.move_to_end(number)
        else:
            payload = resource.payload()
            self.ask(resource.call, {**resource.head, "number": number}, payload, resource.limits)
            self._loaded[number] = None
        return number

    def ask(self, call: str, head: Mapping[str, Any], payload: bytes, limits: Limits) -> tuple[dict[str, Any], bytes]:
        """The answer. After whatever is no answer the process is dead."""
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
        except BaseException:  # Ctrl-C, for one: half a frame may be on its way
            self.end()
            raise
        said = answer.get("error")
        if said is not None:
            if said["kind"] == "memory":
                self.end()
            raise _error(said, limits)
        return answer, data

    def kill(self) -> None:
        """Makes whoever asks it hear of its end."""
        with self._lock:
            if self.is_usable:
                os.kill(self._id, signal.SIGKILL)

    def end(self) -> int:
        """Ends it, unless it has ended; its exit code, or the negative number of the signal that ended it."""
        with self._lock:
            self.is_usable = False
            self.let_go()
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._id, signal.SIGKILL)
            try:
                return os.waitstatus_to_exitcode(os.waitpid(self._id, 0)[1])
            except ChildProcessError:  # somebody waits for all children of this process
                return -signal.SIGKILL

    def let_go(self) -> None:
        os.close(self._write)
        os.close(self._read)

    def _send(self, data: bytes, deadline: float) -> None:
        left = memoryview(data)
        while left:
            _wait(self._write, select.POLLOUT, deadline)
            left = left[os.write(self._write, left[:_PIECE]) :]

    def _receive(self, size: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < size:
            _wait(self._read, select.POLLIN, deadline)
            piece = os.read(self._read, min(size - len(data), _PIECE))
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
    """The end of a sentence about a call that ended its process."""
    if code == -signal.SIGPROF:
        return f"took more than {limits.cpu_s:g} s"
    if code == -signal.SIGALRM:
        return f"took more than {limits.wall_s:g} s"
    if code in (-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS):  # native code that gets no memory ends like this
        return f"took more than {limits.memory >> 20} MiB of memory, or broke its process"
    return f"ended its process ({f'signal {-code}' if code < 0 else f'exit code {code}'})"


def _error(said: Mapping[str, Any], limits: Limits) -> MistralrsError:
    """The error that an answer holds. It is foreign data: every field is what it should be, or a text."""
    message = str(said.get("message"))
    hint = said.get("hint")
    hint = None if hint is None else str(hint)
    match said["kind"]:
        case "memory":
            return LimitError(f"{limits.subject} took more than {limits.memory >> 20} MiB of memory")
        case "refusal" | "request" as kind:
            param = said.get("param")
            made = TemplateRefusalError if kind == "refusal" else RequestError
            return made(message, hint=hint, code=str(said.get("code")), param=None if param is None else str(param))
        case "load":
            return LoadError(message, hint=hint)
    return FailedError(message)


def _start_process() -> tuple[int, int, int]:
    """The descriptor that writes to it, the one that reads from it, and its id.

    A fresh interpreter, since a fork would have locks of threads that it does not have. It gets the variables that time
    and libraries need, and no keys; it looks for modules where this one does. Its process group is its own: a
    terminal's Ctrl-C is not for it.
    """
    path = [os.path.abspath(entry) for entry in sys.path]
    code = f"import sys; sys.path[:] = {path!r}; from {_MODULE} import main; main()"
    environment = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
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
