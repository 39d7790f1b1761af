"""The address of a server, read from a URL as users write it."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from mistralrs.errors import UsageError


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """The base of a server's interface; ``path`` has no slash at its end."""

    host: str
    port: int
    path: str
    is_tls: bool

    @classmethod
    def parse(cls, url: str, *, written: str) -> ServerAddress:
        """Returns the address that a URL names; without a path it is ``/v1``. ``written``: the option in errors.

        Raises ``UsageError``.
        """
        hint = "write it as http://127.0.0.1:1234 or https://HOST/v1"
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise UsageError(f"{written} {url}: {error}", hint=hint) from None
        if parts.scheme not in ("http", "https") or not host:
            raise UsageError(f"{written} {url!r} is no address of a server", hint=hint)
        if parts.query or parts.fragment or parts.username is not None:
            raise UsageError(
                f"{written} has more than a host, a port and a path", hint=f"{hint}; --api-key has the key"
            )
        if not (url.isascii() and url.isprintable()) or " " in url:
            raise UsageError(f"{written} {url!r} has characters that no address has", hint=hint)
        is_tls = parts.scheme == "https"
        return cls(host, port or (443 if is_tls else 80), parts.path.rstrip("/") or "/v1", is_tls)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == (443 if self.is_tls else 80) else f":{self.port}"
        return f"http{'s' if self.is_tls else ''}://{host}{port}{self.path}"
