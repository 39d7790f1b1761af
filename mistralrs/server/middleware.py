"""What every request goes through before it is routed: pure ASGI, so that a stream pays nothing for it.

Knows headers; does not know what is asked.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mistralrs import __version__
from mistralrs.errors import RequestError
from mistralrs.server.errors import answer_to
from mistralrs.server.responses import send_error
from mistralrs.server.settings import is_loopback

logger = logging.getLogger(__name__)

CONTEXT = "mistralrs"
"""Key of the request's ``Context`` in the scope."""
OPEN_PATHS = frozenset({"/", "/health", "/ready", "/version"})
"""What needs no key: whether there is a server, and which."""
_SANE_ID = re.compile(r"[\x21-\x7e]{1,128}")
_BARE = re.compile(r"/(?:chat/completions|completions|embeddings|models|models/.+)")


@dataclass(slots=True)
class Context:
    """What is known of a request beside its words."""

    id: str
    path: str
    started: float
    """On the clock of ``time.perf_counter``."""
    identity: str = ""
    """Of the key that opened the server, so that one key's requests are not another's; empty: no keys."""
    route: str = "other"
    """The path as it is written in the documentation."""
    status: int = 0
    """Of the answer, 0 until it begins."""


Observer = Callable[[Context], None]


def context_of(scope: Scope) -> Context:
    context = scope[CONTEXT]
    assert isinstance(context, Context)
    return context


def canonical_path(path: str) -> str:
    """The path that the routes know: without slashes at the end, and with the /v1 that some clients leave out."""
    path = path.rstrip("/") or "/"
    return f"/v1{path}" if _BARE.fullmatch(path) else path


class RequestContext:
    """The outermost: gives a request its id, an answer its headers, and an error that nobody caught its answer."""

    def __init__(self, app: ASGIApp, *, ended: Observer) -> None:
        """``ended`` is told of each request when its answer is complete or its client gone."""
        self._app = app
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = Headers(scope=scope).get("x-request-id", "")
        id = asked if _SANE_ID.fullmatch(asked) else uuid.uuid4().hex
        context = Context(id, canonical_path(scope["path"]), time.perf_counter())
        scope = {**scope, "path": context.path, CONTEXT: context}
        if scope["method"] == "HEAD":  # the connection leaves out the body
            scope["method"] = "GET"

        is_complete = False

        async def send_with_headers(message: Message) -> None:
            nonlocal is_complete
            is_complete = message["type"] == "http.response.body" and not message.get("more_body", False)
            if message["type"] == "http.response.start":
                context.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = context.id
                headers["openai-processing-ms"] = str(round((time.perf_counter() - context.started) * 1000))
                headers["server"] = f"mistralrs/{__version__}"
                headers["x-content-type-options"] = "nosniff"
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception as error:
            logger.exception("request %s met a defect", context.id)
            if not context.status:
                await send_error(send_with_headers, answer_to(error))
            elif not is_complete:  # what has begun cannot be taken back: the connection's end tells
                raise
        finally:
            context.route = getattr(scope.get("route"), "path", "other")
            self._ended(context)


class KnownHost:
    """Refuses names that are not this machine's, while only this machine is served without a key.

    A web page may point its own name at 127.0.0.1; for a browser, this server would then be that page's.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not is_loopback(_hostname(Headers(scope=scope).get("host", "localhost"))):
            error = RequestError(
                "this server is for this machine alone, under a name of it",
                hint="ask for 127.0.0.1 or localhost; --api-key or --serve-ip opens it to other names",
                code="forbidden_host",
            )
            await send_error(send, answer_to(error))
            return
        await self._app(scope, receive, send)


def _hostname(host: str) -> str:
    """The name in a Host header, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


class ApiKeys:
    """Lets in who has one of the keys. All are compared, each in a time that does not depend on what matches."""

    def __init__(self, app: ASGIApp, *, keys: tuple[str, ...]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]
        self._identities = [hashlib.sha256(key).hexdigest()[:16] for key in self._keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        identity = self._identity(Headers(scope=scope).get("authorization", ""))
        if identity is None:
            error = RequestError(
                # the first four words are OpenAI's: litellm knows this error by them
                "Incorrect API key provided: this server needs one of its own, as the header Authorization: Bearer KEY",
                code="invalid_api_key",
            )
            await send_error(send, answer_to(error))
            return
        context_of(scope).identity = identity
        await self._app(scope, receive, send)

    def _identity(self, authorization: str) -> str | None:
        scheme, _, given = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return None
        # headers come as latin-1; a key in UTF-8 is the same bytes
        offered = given.strip().encode("latin-1")
        matches = [hmac.compare_digest(key, offered) for key in self._keys]
        return self._identities[matches.index(True)] if any(matches) else None
