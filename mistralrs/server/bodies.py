"""The way from the bytes of a request to something that the engine can be asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from starlette.requests import Request

from mistralrs.api.schemas.request_bodies import BodyType, parse
from mistralrs.api.served_model import ServedModel
from mistralrs.api.serving.grammars.grammar_choice import has_new_grammar
from mistralrs.api.serving.policy import Policy
from mistralrs.errors import RequestError
from mistralrs.server.disconnect import unless_gone
from mistralrs.server.middleware import context_of
from mistralrs.server.preparation import Preparation, check_shape
from mistralrs.server.service import Service

DISCARDED = 4
"""Factor of the limit up to which a body is read and thrown away, so that a client which sends first and reads then
gets the reason."""

PreparedType = TypeVar("PreparedType")


@dataclass(frozen=True, slots=True)
class _Postponed(Generic[PreparedType]):
    """The rest of the work on a body whose grammar has to be checked first."""

    work: Callable[[], PreparedType]


def _itself(body: object) -> object:
    return body


class Reader:
    """Reads bodies for one server."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._preparation = Preparation()

    async def prepared(
        self,
        request: Request,
        kind: type[BodyType],
        prepare: Callable[[BodyType, ServedModel, Policy], PreparedType],
        *,
        grammar_in: Callable[[BodyType], object] = _itself,
    ) -> PreparedType:
        """Returns the body, checked and prepared; other requests are served meanwhile. ``grammar_in`` returns the body
        that may have a grammar.

        Raises RequestError for a wrong body, EngineError if there is no engine, ClientGoneError if the client left.
        """
        context = context_of(request.scope)
        model = self._service.admit().model
        policy = self._service.policy(context.key_id)
        data = await read_bytes(request, self._service.settings.max_body_bytes)
        self._service.record("request", context.id, path=context.path, body=data)

        def work() -> PreparedType | _Postponed[PreparedType]:
            check_shape(data)
            body = parse(kind, data)
            if has_new_grammar(grammar_in(body), model):
                return _Postponed(lambda: prepare(body, model, policy))
            return prepare(body, model, policy)

        async def run() -> PreparedType:
            found = await self._preparation.run(work, size=len(data))
            if isinstance(found, _Postponed):
                return await self._preparation.run_with_grammar(found.work)
            return found

        return await unless_gone(request.receive, run())


async def read_bytes(request: Request, max_bytes: int) -> bytes:
    """Returns the body, keeping never more than ``max_bytes``. Raises RequestError if it is longer, or is not JSON."""
    _check_media_type(request.headers.get("content-type"))
    length = request.headers.get("content-length", "")
    too_long = length.isdecimal() and int(length) > max_bytes
    if too_long and "expect" in request.headers:  # a client that asks before sending has sent nothing yet
        raise _too_large(max_bytes)
    pieces: list[bytes] = []
    total = 0
    async for piece in request.stream():
        total += len(piece)
        if too_long or total > max_bytes:
            too_long = True
            pieces.clear()
            if total > max_bytes * DISCARDED:
                break
        else:
            pieces.append(piece)
    if too_long:
        raise _too_large(max_bytes)
    return b"".join(pieces)


def _check_media_type(given: str | None) -> None:
    """Refuses every media type but JSON, also a missing one: any web page may send those to any server without being
    asked.
    """
    media_type = (given or "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise RequestError(
            f"the body is to be JSON, and its media type is {media_type[:64] or 'not given'}",
            hint="send the header Content-Type: application/json",
            code="unsupported_media_type",
        )


def _too_large(max_bytes: int) -> RequestError:
    return RequestError(
        f"the body is larger than {max_bytes} bytes", hint="send less at once", code="request_too_large"
    )
