"""The errors of servers: answers with a status, errors within a stream, and connections that fail."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Mapping
from http.client import HTTPException

from mistralrs.errors import EngineError, LoadError, MistralrsError, RequestError
from mistralrs.parsing import parse_nested
from mistralrs_cli.server_client.server_address import ServerAddress

_LONGEST = 500
"""Characters of a server's message that are shown, at most."""
_KEY_HINT = "--api-key KEY or MISTRALRS_API_KEY gives the key"


class BusyServerError(EngineError):
    """The server takes no request now."""

    def __init__(self, message: str, *, retry_after_s: float | None) -> None:
        hint = "try again later" if retry_after_s is None else f"try again in {retry_after_s:g} s"
        super().__init__(message, hint=hint, code="queue_full")
        self.retry_after_s = retry_after_s


class UnreachableError(LoadError):
    """There is no server at the address, or none that speaks HTTP."""


class MissingPathError(LoadError):
    """The server does not have what the path or the body names."""


def refusal(address: ServerAddress, status: int, headers: Mapping[str, str], body: bytes) -> MistralrsError:
    """Returns the error of an answer whose status is not 200."""
    said = _message(body)
    ending = f": {said}" if said else ""
    if status in (401, 403):
        return LoadError(f"{address} refuses the key ({status}){ending}", hint=_KEY_HINT)
    if status == 404:
        return MissingPathError(
            f"{address} does not have it (404){ending}", hint="--model-name names one of its models"
        )
    if 300 <= status < 400:
        elsewhere = headers.get("location", "an unknown place")
        return LoadError(f"{address} sends elsewhere ({status}): {elsewhere}", hint="give that address to --connect")
    if status == 429 or (status == 503 and "retry-after" in headers):
        return BusyServerError(
            f"{address} takes no request now ({status}){ending}", retry_after_s=_seconds(headers.get("retry-after"))
        )
    if status >= 500:
        return EngineError(f"{address} failed ({status}){ending}", hint="its log may say more; try again")
    return RequestError(f"{address} refuses the request ({status}){ending}", code=_code(body))


def stream_error(address: ServerAddress, error: object) -> MistralrsError:
    """Returns the error that a stream carries in place of the rest of an answer."""
    said = _said(error) or "without saying why"
    if isinstance(error, dict) and error.get("type") == "invalid_request_error":
        return RequestError(f"{address} refuses the request: {said}")
    return EngineError(f"{address} failed: {said}", hint="its log may say more; try again")


def failure(address: ServerAddress, error: OSError | HTTPException) -> str:
    """Returns the reason why a connection failed."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{address} has a certificate that is not trusted ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return f"{address} speaks no TLS that works here ({error.reason})"
    if isinstance(error, socket.gaierror):
        return f"{address}: the host {address.host} is not known"
    if isinstance(error, TimeoutError):
        return f"{address} does not answer in time"
    if isinstance(error, HTTPException):
        return f"{address} does not speak HTTP as it should ({type(error).__name__})"
    return f"{address} cannot be reached: {error.strerror or error}"


def _message(body: bytes) -> str:
    try:
        found = parse_nested(json.loads, body)
    except ValueError:
        return _short(body.decode("utf-8", "replace"))
    return _said(found.get("error", found)) if isinstance(found, dict) else ""


def _said(error: object) -> str:
    """Returns the message of an error in any of the shapes that servers use."""
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail")
    return _short(error) if isinstance(error, str) else ""


def _short(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]}..."


def _code(body: bytes) -> str:
    try:
        code = parse_nested(json.loads, body)["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return "invalid_value"
    return code if isinstance(code, str) else "invalid_value"


def _seconds(text: str | None) -> float | None:
    """Returns the seconds of a Retry-After; None for a date, and where there is none."""
    try:
        seconds = float(text) if text is not None else None
    except ValueError:
        return None
    return seconds if seconds is not None and 0 <= seconds < 1e6 else None
