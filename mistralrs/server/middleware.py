"""The layers that every request passes before it is routed: pure ASGI, so that a stream pays nothing for them."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address
from urllib.parse import quote, unquote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mistralrs import __version__
from mistralrs.errors import RequestError
from mistralrs.server.errors import answer_to
from mistralrs.server.responses import send_error
from mistralrs.server.settings import is_loopback

CONTEXT = "mistralrs"
"""Key of the request's ``Context`` in the scope."""
AUTHORITY = "mistralrs.authority"
"""Key, in the scope, of the host and port in a request's target, where that is a whole URL (``GET http://...``)."""
OPEN_PATHS = frozenset({"/", "/health", "/ready", "/version"})
"""Paths that need no key: they show that there is a server, and its version."""
_SANE_ID = re.compile(r"[\x21-\x7e]{1,128}")
_BARE = re.compile(
    r"/(?:chat/completions|completions|embeddings|models|models/.+|responses|responses/.+|messages|messages/.+)"
)
_HOST = re.compile(r"(\[[^\[\]]*\]|[A-Za-z0-9._~!$&'()*+;=%-]*)(?::([0-9]{0,5}))?")
MAX_PORT = 65535


@dataclass(slots=True)
class Context:
    """The facts of a request beside its body."""

    id: str
    path: str
    started: float
    """On the clock of ``time.perf_counter``."""
    key_id: str = ""
    """The id of the key that the request came with, which keeps one key's requests from another's; empty: no keys."""
    route: str = "other"
    """The path as it is written in the documentation."""
    status: int = 0
    """The answer's status, 0 until it begins."""


Observer = Callable[[Context], None]


def context_of(scope: Scope) -> Context:
    context = scope[CONTEXT]
    assert isinstance(context, Context)
    return context


def canonical_path(raw_path: str) -> str:
    """Returns the path that the routes have, for one that is still percent-encoded.

    Empty pieces and a second /v1, which a base URL with a slash or a /v1 at its end brings about, are left out, and the
    /v1 that some clients leave out is added. An encoded slash separates no pieces, and only the id of a model may have
    one: elsewhere it stays encoded, so that no route knows it.
    """
    pieces = [unquote(piece) for piece in raw_path.split("/") if piece]
    while pieces[:2] == ["v1", "v1"]:
        del pieces[0]
    first = pieces.index("models") + 1 if "models" in pieces[:2] else len(pieces)
    shown = [piece.replace("/", "%2F") if place < first else piece for place, piece in enumerate(pieces)]
    path = "/" + "/".join(shown)
    return f"/v1{path}" if _BARE.fullmatch(path) else path


class RequestContext:
    """The outermost layer: gives a request its id, an answer its headers, and an uncaught error its answer."""

    def __init__(self, app: ASGIApp, *, ended: Observer, failed: Observer) -> None:
        """``ended`` is called for each request when its answer is complete or its client gone.

        ``failed`` is called before that, while the error is being handled, for a request that met a defect.
        """
        self._app = app
        self._ended = ended
        self._failed = failed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = Headers(scope=scope).get("x-request-id", "")
        id = asked if _SANE_ID.fullmatch(asked) else uuid.uuid4().hex
        context = Context(id, canonical_path(raw_path(scope)), time.perf_counter())
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
            self._failed(context)
            if not context.status:
                await send_error(send_with_headers, answer_to(error, path=context.path))
            elif not is_complete:  # a begun answer cannot be withdrawn: the end of the connection is the client's sign
                raise
        finally:
            context.route = getattr(scope.get("route"), "path", "other")
            self._ended(context)


class KnownHost:
    """Refuses requests whose host is missing, ambiguous or malformed, from every client.

    With ``local_only`` it also refuses names that are not this machine's, for a server that has no key: a web page may
    point its own name at 127.0.0.1; for a browser, this server would then be that page's.
    """

    def __init__(self, app: ASGIApp, *, local_only: bool) -> None:
        self._app = app
        self._local_only = local_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._check(scope)
            except RequestError as error:
                await send_error(send, answer_to(error, path=scope["path"]))
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        host = host_of(scope)
        if self._local_only and host is not None and not is_loopback(host):
            raise RequestError(
                "this server is for this machine alone, under a name of it",
                hint="ask for 127.0.0.1 or localhost; --api-key or --serve-ip opens it to other names",
                code="forbidden_host",
            )


def host_of(scope: Scope) -> str | None:
    """Returns the name or address that a request is for, without port and brackets; None for HTTP/1.0 without one.

    Raises ``RequestError`` for requests that RFC 9112, section 3.2, refuses: no Host header or several, one that is not
    a name or an address with or without a port, and a target with another host than the header.
    """
    given = Headers(scope=scope).getlist("host")
    if not given and scope["http_version"] in ("0.9", "1.0"):
        return None
    authority = scope.get(AUTHORITY)
    found = _HOST.fullmatch(given[0]) if len(given) == 1 else None
    if found is None or not _is_address(found[1]) or int(found[2] or 0) > MAX_PORT:
        raise RequestError(
            "the request must have one Host header, of a name or an address and perhaps a port",
            hint="send it as Host: 127.0.0.1:1234",
            code="invalid_host",
        )
    if authority is not None and authority.lower() != given[0].lower():
        raise RequestError(
            "the request's target names another host than its Host header",
            hint="this server is no proxy: ask for a path, such as /v1/models",
            code="invalid_host",
        )
    return found[1].strip("[]")


def _is_address(name: str) -> bool:
    """Returns whether brackets, if there are any, hold an IPv6 address."""
    if not name.startswith("["):
        return True
    try:
        IPv6Address(name[1:-1])
    except ValueError:
        return False
    return True


def raw_path(scope: Scope) -> str:
    """Returns the path as it was sent, or the decoded one if a server keeps only that."""
    raw = scope.get("raw_path")
    return quote(scope["path"]) if raw is None else raw.decode("latin-1")


class ApiKeys:
    """Admits requests that have one of the keys. Every key is compared, in a time that does not depend on the match."""

    def __init__(self, app: ASGIApp, *, keys: tuple[str, ...], open_paths: frozenset[str] = OPEN_PATHS) -> None:
        """``open_paths`` need no key."""
        self._app = app
        self._open_paths = open_paths
        self._keys = [key.encode() for key in keys]
        self._identities = [hashlib.sha256(key).hexdigest()[:16] for key in self._keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._open_paths:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        identity = self._key_id(headers.get("authorization", ""), headers.get("x-api-key", ""))
        if identity is None:
            error = RequestError(
                # the first four words are OpenAI's, by which litellm recognises this error
                "Incorrect API key provided: this server needs one of its own, as the header Authorization: Bearer KEY"
                " or x-api-key: KEY",
                code="invalid_api_key",
            )
            await send_error(send, answer_to(error, path=scope["path"]))
            return
        context_of(scope).key_id = identity
        await self._app(scope, receive, send)

    def _key_id(self, authorization: str, api_key: str) -> str | None:
        """Returns the id of the key that is in one of the two headers, the second of which Anthropic's clients send."""
        scheme, _, given = authorization.partition(" ")
        # headers come as latin-1; a key in UTF-8 is the same bytes
        offered = [each.strip().encode("latin-1") for each in (given if scheme.lower() == "bearer" else "", api_key)]
        compared = [[hmac.compare_digest(key, each) for each in offered] for key in self._keys]
        matches = [any(each) for each in compared]
        return self._identities[matches.index(True)] if any(matches) else None
