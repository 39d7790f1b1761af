"""The settings of a server, which its operator chooses. They are plain values."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path

from mistralrs.api.options.declarations import DEFAULTS
from mistralrs.engine.config import SamplingParams

KEEP_ALIVE_MS = 1000
_SAMPLING = SamplingParams()


def keep_alive_ms() -> int:
    """Milliseconds of silence after which a stream gets a comment: ``KEEP_ALIVE_INTERVAL``, 1000 if it is no count."""
    text = os.environ.get("KEEP_ALIVE_INTERVAL", "")
    return int(text) if text.isascii() and text.isdecimal() and 0 < int(text) < 10**9 else KEEP_ALIVE_MS


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How to serve. Everything has a default that is safe on a machine that others can reach."""

    host: str = DEFAULTS.serve_ip
    """The address, or the name of one, to listen at."""
    port: int = 1234
    """0 takes a free one."""
    model_name: str | None = None
    """The model's id in answers; None: the name that was loaded."""
    strict: bool = DEFAULTS.strict
    """Refuse parameters that would be ignored."""
    strict_model: bool = DEFAULTS.strict_model
    """Refuse requests for another model instead of answering them with this one."""
    truncate: bool = DEFAULTS.truncate_sequence
    """Drop the beginning of prompts that are too long instead of refusing them."""
    sampling: SamplingParams = _SAMPLING
    """What a request gets that does not say."""
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    """Any of them opens the server; none: it is open."""
    isolate_keys: bool = DEFAULTS.isolate_keys
    """Requests share the prefix cache only with those of the same key."""
    cors_origins: tuple[str, ...] = ()
    """Origins of web pages that may call, ``*`` for all; none: pages from this machine."""
    tls_cert: Path | None = None
    """PEM file of the certificate and its chain; None: plain HTTP."""
    tls_key: Path | None = None
    """PEM file of its key; None: it is in ``tls_cert``."""
    log: Path | None = None
    """File that requests and answers are appended to."""
    log_bodies: bool = DEFAULTS.log_bodies == "on"
    """Write what was said into the log, not only that something was."""
    drain_seconds: float = DEFAULTS.drain_seconds
    """Seconds that running requests may go on once the server is told to end."""
    request_timeout: float | None = DEFAULTS.request_timeout
    """Seconds that one request may take, waiting included; None: any number."""
    max_body_bytes: int = DEFAULTS.max_body
    """A longer body is refused before it is read."""
    max_connections: int = 1024
    """Connections that may be open at once."""
    ui: bool = not DEFAULTS.no_ui
    """Serve the page ``/ui``."""
    read_timeout: float = 30.0
    """Seconds in which a request must arrive, from its first byte to the last of its body."""
    write_timeout: float = 60.0
    """Seconds after which a client that takes nothing of its answer is cut off."""
    keep_alive_ms: int = field(default_factory=keep_alive_ms)
    """Milliseconds of silence after which a stream gets a comment."""

    allow_adapter_changes: bool = False
    """Clients may load and unload adapters, and set those that act by default."""

    @property
    def is_local(self) -> bool:
        """Only this machine can reach the server."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Returns whether a name or an address, without brackets and port, always means this machine."""
    name = host.lower().removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
