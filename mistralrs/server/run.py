"""Serving from start to end: the address, the model behind it, signals, and the exit code."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from types import FrameType
from typing import Any

import uvicorn

from mistralrs.api.engine_client.engine_client import EngineClient
from mistralrs.api.engine_client.remote import RemoteEngine
from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.errors import EngineError, MistralrsError, UsageError
from mistralrs.progress import Progress
from mistralrs.server.app import create_app
from mistralrs.server.log import RequestLog
from mistralrs.server.protocol import protocol_for
from mistralrs.server.service import Service
from mistralrs.server.settings import ServerSettings

logger = logging.getLogger(__name__)

SHUTDOWN_GRACE_S = 3.0
"""Seconds that clients are waited for which only have to read how their request ended."""
WATCH_S = 0.2

CONNECTIONS_AT_ONCE = 16
"""Connections accepted in one go, which the limit of connections must be able to keep up with."""
WAITING_CONNECTIONS = 1024
"""Connections that the system holds until they are accepted."""

Announce = Callable[[str], None]
Start = Callable[[], Awaitable[EngineClient]]


def say(line: str) -> None:
    """Prints one line on stderr, if there is one: without it, print would write to stdout."""
    if sys.stderr is not None:
        print(line, file=sys.stderr, flush=True)


def serve(
    source: ModelSource,
    options: LoadOptions,
    settings: ServerSettings,
    *,
    progress: Progress | None = None,
    announce: Announce = say,
) -> int:
    """Serves a model until told to end, and returns the exit code.

    Listens before the model is loaded, and answers 503 until it is; ``announce`` gets the lines for the person who
    started it. SIGTERM and SIGINT drain and return 0, a second one ends the process at once. SIGHUP opens the log anew;
    it drains if the terminal that the server was started on has closed. Raises ``UsageError`` for an address, a
    certificate or a log file that cannot be used, ``LoadError`` for a model that cannot be loaded and ``EngineError``
    once the engine is dead.
    """

    async def start() -> EngineClient:
        return await RemoteEngine.start(source, options, progress=progress)

    if options.adapters.root is not None:  # it is the folder for changes
        settings = replace(settings, allow_adapter_changes=True)
    return serve_engine(start, settings, announce=announce)


def serve_engine(start: Start, settings: ServerSettings, *, announce: Announce = say) -> int:
    """Serves like ``serve``, with any engine that ``start`` brings up."""
    _check_certificate(settings)
    listeners = listen(settings)
    with contextlib.ExitStack() as stack:
        for each in listeners:
            stack.callback(each.close)
        log = None
        if settings.log is not None:
            log = RequestLog(settings.log, bodies=settings.log_bodies, secrets=settings.api_keys)
            stack.callback(log.close)
        return asyncio.run(_Serving(Service(settings, log), listeners, announce).run(start))


class _Serving:
    """One run of a server: connections, engine, end."""

    def __init__(self, service: Service, listeners: list[socket.socket], announce: Announce) -> None:
        self._service = service
        self._settings = service.settings
        self._listeners = listeners
        self._announce = announce
        self._stop = asyncio.Event()

    async def run(self, start: Start) -> int:
        server = _Uvicorn(_config(self._service))
        asyncio.get_running_loop().set_exception_handler(_report_defect)
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_report_defect)
        with _stopping_on_signals(loop, self._stop), _on_hangup(loop, self._on_hangup):
            connections = asyncio.create_task(server.serve(self._listeners))
            try:
                return await self._serve(start, connections)
            finally:
                server.should_exit = True
                await connections

    async def _serve(self, start: Start, connections: asyncio.Task[None]) -> int:
        loading = asyncio.ensure_future(start())
        stop = asyncio.create_task(self._stop.wait())
        await asyncio.wait({loading, stop, connections}, return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():
            self._service.draining = True
            loading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await loading
            return 0
        engine = loading.result()
        watch = asyncio.create_task(_watch_engine(engine))
        try:
            self._service.open(engine)
            self._tell(engine)
            await asyncio.wait({stop, watch, connections}, return_when=asyncio.FIRST_COMPLETED)
            if engine.fault is not None:
                await self._until_quiet(SHUTDOWN_GRACE_S)
                raise engine.fault
            await self._drain()
            return 0
        finally:
            for task in (stop, watch):
                task.cancel()
            await engine.close()

    async def _drain(self) -> None:
        """Lets running requests end; those that take too long get an error that says why."""
        self._service.draining = True
        if not await self._until_quiet(self._settings.drain_seconds):
            error = EngineError("the server is shutting down", hint="ask again", code="shutting_down")
            self._service.inflight.stop_all(error)
            await self._until_quiet(SHUTDOWN_GRACE_S)

    async def _until_quiet(self, seconds: float) -> bool:
        """Waits until no request is under way; returns False if there still is one."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._service.inflight:
                    await asyncio.sleep(0.02)
        return not self._service.inflight

    def _on_hangup(self, is_terminal_gone: bool) -> None:
        if is_terminal_gone:
            self._stop.set()
        elif self._service.log is not None:
            self._service.log.reopen()
        else:
            logger.info("SIGHUP opens the log anew, and there is none")

    def _tell(self, engine: EngineClient) -> None:
        settings = self._settings
        address, port = self._listeners[0].getsockname()[:2]
        place = f"[{address}]" if ":" in address else address
        scheme = "http" if settings.tls_cert is None else "https"
        key = "with an API key" if settings.api_keys else "no API key"
        reach = "local only" if settings.is_local else "open to the network"
        with contextlib.suppress(OSError):  # a missing reader is no reason not to serve
            self._announce(f"Serving {self._service.model_name} at {scheme}://{place}:{port}/v1 ({key}; {reach})")
            if engine.model.info.kv_cache_dtype == "q8_0":  # 16 bits go without saying
                self._announce(f"KV cache: q8_0, {engine.model.info.kv_token_bytes:,} bytes a token")
            if adapters := engine.model.adapters.describe():
                self._announce(f"Adapters: {adapters}")
            if not settings.is_local and not settings.api_keys:
                self._announce("warning: whoever reaches this machine can use this server; --api-key asks for a key")
        for reason in engine.model.info.unavailable_backends:
            logger.warning("slower than it could be: %s", reason)


def _report_defect(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Logs an error that reaches no caller in the usual format; asyncio would print its traceback."""
    logger.error("a defect: %s", context["message"], exc_info=context.get("exception"))


async def _watch_engine(engine: EngineClient) -> None:
    while engine.fault is None:
        await asyncio.sleep(WATCH_S)


class _Uvicorn(uvicorn.Server):
    """uvicorn without its handling of signals; it takes connections in small groups."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for each in sockets or ():
            each.listen(WAITING_CONNECTIONS)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _config(service: Service) -> uvicorn.Config:
    settings = service.settings
    return uvicorn.Config(
        create_app(service),
        loop="asyncio",
        http=protocol_for(settings),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",  # uvicorn reports a defect in the application once
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=CONNECTIONS_AT_ONCE,
        timeout_graceful_shutdown=round(SHUTDOWN_GRACE_S),
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )


@contextlib.contextmanager
def _stopping_on_signals(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> Iterator[None]:
    """Makes the first SIGINT or SIGTERM set ``stop``; the second ends the process at once."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread gets signals
        yield
        return
    told = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal told
        if told:
            os._exit(128 + number)
        told = True
        loop.call_soon_threadsafe(stop.set)

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _on_hangup(loop: asyncio.AbstractEventLoop, on_hangup: Callable[[bool], None]) -> Iterator[None]:
    """Makes SIGHUP call ``on_hangup`` with whether it came because a terminal closed that is a stream of the process.

    Where SIGHUP was ignored, as by ``nohup``, the end of the terminal has no effect on the process.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGHUP"):
        yield
        return
    terminals = [stream for stream in range(3) if os.isatty(stream)]
    is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN

    def on_signal(number: int, frame: FrameType | None) -> None:
        is_terminal_gone = not is_ignored and not all(map(os.isatty, terminals))
        loop.call_soon_threadsafe(on_hangup, is_terminal_gone)

    previous = signal.signal(signal.SIGHUP, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, previous)


def listen(settings: ServerSettings) -> list[socket.socket]:
    """Returns bound sockets, one for each address of the host's name. Raises ``UsageError`` with what to do instead."""
    host, port = settings.host, settings.port
    try:
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--serve-ip {host} is no address of this machine", hint="127.0.0.1 or 0.0.0.0") from error
    listeners: list[socket.socket] = []
    chosen = port
    for family, _, _, _, address in dict.fromkeys(found):
        # asyncio sets TCP_NODELAY only for sockets that say their protocol; without it, the end of a short answer waits
        # 40 ms for the client to confirm its beginning
        each = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listeners.append(each)
        try:
            if os.name == "posix":  # elsewhere it would take a port away from another program
                each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            each.bind((address[0], chosen, *address[2:]))
            chosen = each.getsockname()[1]  # where any port will do, the same one for all addresses
            each.listen()
        except OSError as error:
            for one in listeners:
                one.close()
            raise _not_bound(error, host, port) from error
    return listeners


def _not_bound(error: OSError, host: str, port: int) -> MistralrsError:
    if error.errno == errno.EADDRINUSE:
        return UsageError(f"port {port} is taken", hint="end what listens there, or give another --port; 0 finds one")
    if error.errno in (errno.EACCES, errno.EPERM):
        return UsageError(f"port {port} is not for everybody", hint="give a --port from 1024 up")
    if error.errno == errno.EADDRNOTAVAIL:
        return UsageError(f"--serve-ip {host} is no address of this machine", hint="127.0.0.1 or 0.0.0.0")
    return UsageError(f"cannot listen at {host}:{port}: {error.strerror}", hint="try another --serve-ip or --port")


def _check_certificate(settings: ServerSettings) -> None:
    """Raises ``UsageError`` if the files are no pair of certificate and key."""
    if settings.tls_cert is None:
        if settings.tls_key is not None:
            raise UsageError("a TLS key needs its certificate", hint="give the file with --ssl-certfile")
        return

    def ask() -> str:
        raise UsageError("the TLS key is encrypted", hint="give one without a passphrase")

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_cert, settings.tls_key, password=ask)
    except OSError as error:  # also for errors that TLS itself reports
        files = " and ".join(str(file) for file in (settings.tls_cert, settings.tls_key) if file is not None)
        raise UsageError(
            f"{files}: no certificate with its key: {error.strerror or error}", hint="both in PEM format"
        ) from error
