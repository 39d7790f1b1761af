"""Gives errors their HTTP status, and their body in the shape that an address's clients read; no other module does.

That is OpenAI's shape, and under ``/v1/messages`` Anthropic's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from starlette.exceptions import HTTPException

from mistralrs.errors import EngineError, MistralrsError, RequestError

INVALID_REQUEST = "invalid_request_error"
RATE_LIMIT = "rate_limit_error"
UNAVAILABLE = "service_unavailable_error"
SERVER = "server_error"

STATUSES: Mapping[str, tuple[int, str]] = {
    "invalid_api_key": (401, INVALID_REQUEST),
    "forbidden_host": (403, INVALID_REQUEST),
    "adapter_changes_forbidden": (403, INVALID_REQUEST),
    "adapter_path_forbidden": (403, INVALID_REQUEST),
    "adapter_not_found": (404, INVALID_REQUEST),
    "model_not_found": (404, INVALID_REQUEST),
    "request_not_found": (404, INVALID_REQUEST),
    "response_not_found": (404, INVALID_REQUEST),
    "unknown_url": (404, INVALID_REQUEST),
    "method_not_allowed": (405, INVALID_REQUEST),
    "request_timeout": (408, INVALID_REQUEST),
    "request_too_large": (413, INVALID_REQUEST),
    "unsupported_media_type": (415, INVALID_REQUEST),
    "queue_full": (429, RATE_LIMIT),
    "adapter_slots_full": (429, RATE_LIMIT),
    "request_cancelled": (499, INVALID_REQUEST),
    "adapter_unavailable": (503, UNAVAILABLE),
    "engine_dead": (503, UNAVAILABLE),
    "engine_stalled": (503, UNAVAILABLE),
    "model_loading": (503, UNAVAILABLE),
    "shutting_down": (503, UNAVAILABLE),
    "too_many_connections": (503, UNAVAILABLE),
    "deadline_exceeded": (504, SERVER),
}
"""Status and type by code. A code that is not listed has 400 as a RequestError and 500 as any other error."""

RETRY_AFTER_S = {
    "queue_full": 1,
    "adapter_slots_full": 1,
    "too_many_connections": 1,
    "model_loading": 5,
    "shutting_down": 5,
    "engine_stalled": 5,
    "engine_dead": 30,
}
"""Seconds after which it is worth asking again."""

MESSAGES_PATH = "/v1/messages"
"""Beginning of the addresses whose clients read errors in Anthropic's shape."""
_MESSAGES_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""Anthropic's type by status; other statuses below 500 are ``invalid_request_error``, the rest ``api_error``."""

_FRAMEWORK_CODES = {404: "unknown_url", 405: "method_not_allowed", 413: "request_too_large"}
"""Codes of errors that the framework raises by itself."""


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """An error as it goes over the wire."""

    status: int
    code: str
    body: dict[str, object]
    """``{"error": {"message", "type", "param", "code"}}``, or Anthropic's ``{"type": "error", "error": {"type",
    "message"}}``"""
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def facts(self) -> dict[str, object]:
        """Returns the error itself."""
        error = self.body["error"]
        assert isinstance(error, dict)
        return error


def answer_to(error: BaseException, *, path: str = "", partial: Mapping[str, object] | None = None) -> ErrorAnswer:
    """Returns the answer to a request for ``path`` that ended with ``error``; ``partial`` is the part of its answer
    that existed until then.

    An exception that is no MistralrsError is a defect: the answer says that, and does not show the exception's words.
    """
    answer = _from_framework(error) if isinstance(error, HTTPException) else _from_error(error, partial)
    if path == MESSAGES_PATH or path.startswith(f"{MESSAGES_PATH}/"):
        other = "invalid_request_error" if answer.status < 500 else "api_error"
        kind = _MESSAGES_TYPES.get(answer.status, other)
        body: dict[str, object] = {"type": "error", "error": {"type": kind, "message": answer.facts["message"]}}
        return replace(answer, body=body)
    return answer


def _from_error(error: BaseException, partial: Mapping[str, object] | None) -> ErrorAnswer:
    code, message, param = _facts(error)
    status, kind = STATUSES.get(code, (400, INVALID_REQUEST) if isinstance(error, RequestError) else (500, SERVER))
    body = _body(message, kind, code, param)
    if partial is not None and status >= 500:
        body["partial_response"] = dict(partial)
    headers = {}
    if code in RETRY_AFTER_S:
        headers["retry-after"] = str(RETRY_AFTER_S[code])
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    if status == 413:  # the rest of the body will not be read
        headers["connection"] = "close"
    return ErrorAnswer(status, code, body, headers)


def _facts(error: BaseException) -> tuple[str, str, str | None]:
    """Returns code, message and param."""
    if isinstance(error, MemoryError):
        return "out_of_memory", "there is not enough memory for this request", None
    if not isinstance(error, MistralrsError):
        return "internal_error", f"the server met a defect ({type(error).__name__}); what it prints says more", None
    message = error.message if error.hint is None else f"{error.message} ({error.hint})"
    if isinstance(error, RequestError):
        return error.code, message, error.param
    return error.code if isinstance(error, EngineError) else "internal_error", message, None


def _from_framework(error: HTTPException) -> ErrorAnswer:
    code = _FRAMEWORK_CODES.get(error.status_code, "invalid_value")
    words = {
        "unknown_url": "there is nothing at this address; /docs shows what there is",
        "method_not_allowed": "this address does not know that method",
    }
    kind = INVALID_REQUEST if error.status_code < 500 else SERVER
    return ErrorAnswer(
        error.status_code, code, _body(words.get(code, error.detail), kind, code, None), dict(error.headers or {})
    )


def _body(message: str, kind: str, code: str, param: str | None) -> dict[str, object]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
