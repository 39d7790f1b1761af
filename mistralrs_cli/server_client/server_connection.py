"""One HTTP exchange with a server, which another thread can end."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection

from mistralrs import __version__
from mistralrs.errors import LoadError, MistralrsError
from mistralrs.parsing import parse_nested
from mistralrs_cli.model import LostModelError
from mistralrs_cli.server_client.server_address import ServerAddress
from mistralrs_cli.server_client.server_errors import UnreachableError, failure, refusal
from mistralrs_cli.server_client.sse_events import SseDecoder

CONNECT_TIMEOUT_S = 10.0
LOOKUP_TIMEOUT_S = 30.0
"""Seconds that the server may take for an answer that it does not generate."""
_MAX_BODY = 4 << 20
_MAX_ERROR = 64 << 10
_PIECE = 64 << 10


@dataclass(frozen=True, slots=True)
class Server:
    """An address and the key to it."""

    address: ServerAddress
    key: str | None

    def headers(self) -> dict[str, str]:
        """Returns the headers of every request."""
        key = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
        return {"User-Agent": f"mistralrs/{__version__}", **key}


class ServerConnection:
    """A connection for one request."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._lock = threading.Lock()
        self._closed = False
        self._socket: socket.socket | None = None  # http.client drops its own once a response has begun
        address = server.address
        if address.is_tls:
            context = ssl.create_default_context()
            self._http: HTTPConnection = HTTPSConnection(
                address.host, address.port, timeout=CONNECT_TIMEOUT_S, context=context
            )
        else:
            self._http = HTTPConnection(address.host, address.port, timeout=CONNECT_TIMEOUT_S)

    def get(self, path: str) -> object:
        """Returns the JSON value at a path. Raises ``LoadError``, and the error of a server that refuses."""
        return self._value("GET", self._server.address.path + path, None)

    def post(self, path: str, body: Mapping[str, object]) -> object:
        """Returns the JSON value that answers a body, at a path beside OpenAI's ``/v1``. Raises as ``get`` does."""
        return self._value("POST", self._server.address.path.removesuffix("/v1") + path, json.dumps(body).encode())

    def _value(self, method: str, path: str, sent: bytes | None) -> object:
        response = None
        try:
            self._connect(LOOKUP_TIMEOUT_S)
            response = self._send(method, path, sent)
            body = response.read(_MAX_BODY)
        except (OSError, HTTPException) as error:
            hint = "is the server running, and is this its address?"
            raise UnreachableError(failure(self._server.address, error), hint=hint) from error
        finally:
            self._dispose(response)
        if response.status != 200:
            raise self._refusal(response, body)
        try:
            return parse_nested(json.loads, body)
        except ValueError as error:
            hint = "is this the address of OpenAI's API?"
            raise LoadError(f"{self._server.address} has no JSON at {path}", hint=hint) from error

    def stream(self, path: str, body: Mapping[str, object]) -> Iterator[bytes]:
        """Sends a body and yields the data of the events that come back.

        Raises ``LostModelError`` where the connection fails, and the error of a server that refuses.
        """
        address = self._server.address
        response = None
        try:
            self._connect(None)
            response = self._send("POST", address.path + path, json.dumps(body).encode(), accepts="text/event-stream")
            if response.status != 200:
                raise self._refusal(response, response.read(_MAX_ERROR))
            kind = response.headers.get_content_type()
            if kind != "text/event-stream":
                hint = "is this the address of OpenAI's API?"
                raise LoadError(f"{address} answers with {kind}, not with a stream of events", hint=hint)
            decoder = SseDecoder()
            while data := response.read1(_PIECE):
                yield from decoder.feed(data)
        except (OSError, HTTPException) as error:
            hint = "is the server still running?"
            raise LostModelError(failure(address, error), hint=hint) from error
        except MistralrsError:
            raise  # some are ValueErrors
        except ValueError as error:
            raise LostModelError(f"{address} sent no valid stream: {error}") from error
        finally:
            self._dispose(response)

    def close(self) -> None:
        """Ends the exchange; a thread that reads gets no more. Safe from any thread, and more than once."""
        with self._lock:
            self._closed = True
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def _dispose(self, response: HTTPResponse | None) -> None:
        self.close()
        if response is not None:
            response.close()
        self._http.close()

    def _connect(self, timeout_s: float | None) -> None:
        self._http.connect()
        opened = self._http.sock
        opened.settimeout(timeout_s)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        with self._lock:
            if self._closed:
                raise ConnectionAbortedError("the exchange is closed")
            self._socket = opened

    def _send(self, method: str, path: str, body: bytes | None, *, accepts: str = "application/json") -> HTTPResponse:
        headers = self._server.headers() | {"Connection": "close"}
        if body is not None:
            headers |= {"Content-Type": "application/json", "Accept": accepts}
        self._http.request(method, path, body, headers)
        return self._http.getresponse()

    def _refusal(self, response: HTTPResponse, body: bytes) -> MistralrsError:
        headers = {name.lower(): value for name, value in response.getheaders()}
        return refusal(self._server.address, response.status, headers, body)
