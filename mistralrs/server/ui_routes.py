"""Routes of the page: static files that are package data, the same for everybody, without a secret."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import PurePosixPath

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from mistralrs.server.middleware import raw_path

PAGE = "/ui"
FILES = (
    "answer_stream.js",
    "chat_database.js",
    "chat_list.js",
    "chat_tree.js",
    "dialogs.js",
    "elements.js",
    "icon.svg",
    "main.js",
    "markdown.js",
    "message_view.js",
    "messages.css",
    "server_api.js",
    "storage.js",
    "style.css",
    "theme.js",
    "thread_view.js",
    "vendor/marked.esm.js",
    "vendor/purify.es.mjs",
)
"""The files that the page consists of, beside ``index.html``."""
PAGE_PATHS = frozenset({PAGE, *(f"{PAGE}/{name}" for name in FILES)})
"""Paths that need no key."""
CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self'",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'",
    "trusted-types": "dompurify",
}
HEADERS = {
    "content-security-policy": "; ".join(f"{directive} {sources}" for directive, sources in _POLICY.items()),
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}
"""Headers of every file. A browser may keep a file, and asks each time whether it is still the same."""


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    content_type: str
    etag: str


def ui_routes() -> APIRouter:
    """Returns the routes of the page."""
    router = APIRouter()

    @router.get(PAGE, include_in_schema=False)
    async def page(request: Request) -> Response:
        # the page names its files relative to an address without a slash at its end, so that a proxy may add a prefix
        sent = raw_path(request.scope)
        if slashes := len(sent) - len(sent.rstrip("/")):
            return Response(status_code=308, headers={**HEADERS, "location": "../" * slashes + "ui"})
        return _answer(request, _file("index.html"))

    @router.get(PAGE + "/{name:path}", include_in_schema=False)
    async def file(name: str, request: Request) -> Response:
        if name not in FILES:
            raise HTTPException(404)
        return _answer(request, _file(name))

    return router


def _answer(request: Request, file: _File) -> Response:
    headers = {**HEADERS, "etag": file.etag}
    if request.headers.get("if-none-match") == file.etag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers={**headers, "content-type": file.content_type})


@cache
def _file(name: str) -> _File:
    content = files("mistralrs.server").joinpath("ui", name).read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:32]
    return _File(content, CONTENT_TYPES[PurePosixPath(name).suffix], f'"{digest}"')
