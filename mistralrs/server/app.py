"""The application: routes, the layers around them, and the one place where errors become answers."""

from __future__ import annotations

import logging
import time

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp

from mistralrs.api.schemas.adapter_bodies import LoadAdapterBody, LoraScales, UnloadAdapterBody
from mistralrs.api.schemas.request_bodies import (
    ApplyTemplateBody,
    ChatCompletionBody,
    CompletionBody,
    DetokenizeBody,
    EmbeddingBody,
    TokenizeBody,
)
from mistralrs.api.schemas.translated.messages_bodies import CountTokensBody, MessagesBody
from mistralrs.api.schemas.translated.responses_bodies import ResponsesBody
from mistralrs.api.serving.answers.respond import AnswerError
from mistralrs.errors import MistralrsError
from mistralrs.server import answer_headers
from mistralrs.server.adapter_routes import adapter_routes
from mistralrs.server.bodies import Reader
from mistralrs.server.disconnect import ClientGoneError
from mistralrs.server.errors import answer_to
from mistralrs.server.generation import generation_routes
from mistralrs.server.middleware import OPEN_PATHS, ApiKeys, Context, KnownHost, RequestContext, context_of
from mistralrs.server.openapi import TITLE, describe
from mistralrs.server.redaction import KeyRedactor
from mistralrs.server.responses import JsonResponse, to_json
from mistralrs.server.service import Service
from mistralrs.server.settings import ServerSettings
from mistralrs.server.status import model_routes, request_routes, status_routes
from mistralrs.server.texts import text_routes
from mistralrs.server.translated_routes import translated_routes
from mistralrs.server.ui_routes import PAGE_PATHS, ui_routes

logger = logging.getLogger(__name__)

BODIES = (
    ChatCompletionBody,
    CompletionBody,
    EmbeddingBody,
    TokenizeBody,
    DetokenizeBody,
    ApplyTemplateBody,
    LoadAdapterBody,
    UnloadAdapterBody,
    LoraScales,
    ResponsesBody,
    MessagesBody,
    CountTokensBody,
)
SHOWN_HEADERS = (
    "x-request-id",
    "openai-processing-ms",
    "retry-after",
    answer_headers.IGNORED,
    answer_headers.TRUNCATED,
    answer_headers.MODEL,
    answer_headers.WARNINGS,
)
"""Headers that web pages may read beside the body."""
LOOPBACK_ORIGIN = r"https?://(?:localhost|[a-z0-9-]+\.localhost|127(?:\.\d{1,3}){3}|\[::1\])(?::\d{1,5})?"
CLIENT_GONE = 499


def create_app(service: Service) -> ASGIApp:
    """The application that serves ``service``."""
    settings = service.settings
    app: ASGIApp = _routes(service)
    if settings.api_keys:
        open_paths = OPEN_PATHS | PAGE_PATHS if settings.ui else OPEN_PATHS
        app = ApiKeys(app, keys=settings.api_keys, open_paths=open_paths)
    app = _cross_origin(app, settings)
    app = KnownHost(app, local_only=settings.is_local and not settings.api_keys)

    keys = KeyRedactor(settings.api_keys)

    def ended(context: Context) -> None:
        seconds = time.perf_counter() - context.started
        status = context.status or CLIENT_GONE
        service.metrics.ended(context.route, status, seconds)
        if logger.isEnabledFor(logging.INFO):
            id, path = keys.text(context.id), keys.text(context.path)
            logger.info("%s %r: %d after %.0f ms", id, path, status, seconds * 1000)

    def failed(context: Context) -> None:
        logger.exception("request %s met a defect", keys.text(context.id))

    return RequestContext(app, ended=ended, failed=failed)


def _routes(service: Service) -> FastAPI:
    app = FastAPIOffline(title=TITLE, openapi_url="/openapi.json", redirect_slashes=False)
    reader = Reader(service)
    app.include_router(generation_routes(service, reader))
    app.include_router(translated_routes(service, reader))
    app.include_router(text_routes(service, reader))
    app.include_router(adapter_routes(service, reader))
    for routes in (status_routes, model_routes, request_routes):
        app.include_router(routes(service))
    if service.settings.ui:
        app.include_router(ui_routes())

    @app.get("/api-doc/openapi.json", include_in_schema=False)
    async def seed_document() -> Response:
        return JsonResponse(app.openapi())

    async def answer_error(request: Request, error: Exception) -> Response:
        return _error_response(service, request, error)

    # the last is for unexpected errors: the framework answers them, and raises them again for RequestContext to report
    for kind in (MistralrsError, AnswerError, ClientGoneError, ClientDisconnect, HTTPException, Exception):
        app.add_exception_handler(kind, answer_error)
    describe(app, BODIES, needs_key=bool(service.settings.api_keys))
    return app


def _error_response(service: Service, request: Request, error: Exception) -> Response:
    if isinstance(error, ClientGoneError | ClientDisconnect):
        return Response(status_code=CLIENT_GONE)
    context = context_of(request.scope)
    if isinstance(error, AnswerError):
        answer = answer_to(error.error, path=context.path, partial=error.partial)
    else:
        answer = answer_to(error, path=context.path)
    body = to_json(answer.body)
    if context.path not in OPEN_PATHS:  # who asks for health does so for ever
        service.record("error", context.id, status=answer.status, code=answer.code, body=body)
    return JsonResponse(body, answer.status, headers=answer.headers)


def _cross_origin(app: ASGIApp, settings: ServerSettings) -> ASGIApp:
    return CORSMiddleware(
        app,
        allow_origins=settings.cors_origins,
        allow_origin_regex=None if settings.cors_origins else LOOPBACK_ORIGIN,
        allow_methods=("GET", "POST", "DELETE"),
        allow_headers=("*",),
        expose_headers=SHOWN_HEADERS,
    )
