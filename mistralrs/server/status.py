"""Routes about the server's state and its model, and the one that ends a request."""

from __future__ import annotations

import math
import time

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from mistralrs import __version__
from mistralrs.api.schemas.parameter_table import capabilities
from mistralrs.api.schemas.response_bodies import ModelCard, ModelList
from mistralrs.api.served_model import ServedModel
from mistralrs.api.serving.grammars.thinking_budget import thinking_marks
from mistralrs.errors import EngineError, RequestError
from mistralrs.server import status_bodies
from mistralrs.server.middleware import context_of
from mistralrs.server.openapi import operation
from mistralrs.server.responses import JsonResponse
from mistralrs.server.service import Service


def status_routes(service: Service) -> APIRouter:
    """The routes about the server itself."""
    router = APIRouter()

    @router.get("/", **operation("Whether there is a server", text="text/plain", errors=()))
    async def root(request: Request) -> Response:
        if service.settings.ui and "text/html" in request.headers.get("accept", ""):  # a browser, which has the page
            return Response(status_code=307, headers={"location": "ui", "vary": "accept"})
        return PlainTextResponse("OK", headers={"vary": "accept"})

    @router.get("/health", **operation("Whether requests are served", text="text/plain", errors=(503,)))
    async def health() -> Response:
        service.admit()
        return PlainTextResponse("OK")

    @router.get("/ready", **operation("The same as /health", text="text/plain", errors=(503,)))
    async def ready() -> Response:
        return await health()

    @router.get("/version", **operation("The server's version", status_bodies.Version, errors=()))
    async def version() -> Response:
        return JsonResponse({"version": __version__})

    @router.get("/metrics", **operation("Numbers for Prometheus", text="text/plain"))
    async def metrics() -> Response:
        try:
            stats = await service.engine.stats()
        except EngineError:  # loading, dead or standing still: the server's own counts are there all the same
            stats = None
        service.metrics.serving.set(service.is_serving)
        if service.log is not None:
            service.metrics.log_lost.set(service.log.lost)
        return Response(service.metrics.render(stats), media_type=CONTENT_TYPE_LATEST)

    return router


def model_routes(service: Service) -> APIRouter:
    """Returns the routes about the served model."""
    router = APIRouter()

    @router.get("/v1/models", **operation("The model and its adapters", ModelList, errors=(503,)))
    async def models() -> Response:
        return JsonResponse({"object": "list", "data": _models(service)})

    @router.get("/v1/models/{id:path}", **operation("One model", ModelCard, errors=(404, 503)))
    async def model(id: str) -> Response:
        known = {str(each["id"]): each for each in _models(service)}
        found = known.get(service.model_name if id == "default" else id)
        if found is None:
            names = ", ".join(map(repr, known))
            raise RequestError(f"there is no model {id!r} here, but {names}", code="model_not_found", param="model")
        return JsonResponse(found)

    @router.get("/v1/capabilities", **operation("What becomes of each parameter", status_bodies.Capabilities))
    async def table() -> Response:
        return JsonResponse({"object": "capabilities", "endpoints": capabilities()})

    return router


def request_routes(service: Service) -> APIRouter:
    """Returns the routes about requests under way; a key's requests are visible to that key alone."""
    router = APIRouter()

    @router.get("/v1/requests", **operation("The requests under way", status_bodies.RequestList, errors=(503,)))
    async def requests(request: Request) -> Response:
        engine = service.engine
        try:
            waiting: float = (await engine.stats()).waiting
        except EngineError:
            if engine.fault is not None:
                raise
            waiting = math.inf  # the engine stands still, and with it every request that has not begun
        states = service.inflight.states(waiting)
        now = time.monotonic()
        data = [
            {
                "id": live.id,
                "object": "request",
                "request_id": live.request_id,
                "endpoint": live.endpoint,
                "state": states[live.id],
                "choices": len(live.streams),
                "tokens": live.tokens,
                "age_s": round(now - live.started, 3),
            }
            for live in service.inflight.of(context_of(request.scope).key_id)
        ]
        return JsonResponse({"object": "list", "data": data})

    @router.delete("/v1/requests/{id}", **operation("Cancel a request", status_bodies.Cancelled, errors=(404,)))
    async def cancel(id: str, request: Request) -> Response:
        live = service.inflight.find(id, context_of(request.scope).key_id)
        live.stop(EngineError("the request was cancelled by DELETE /v1/requests", code="request_cancelled"))
        return JsonResponse({"id": live.id, "object": "request", "cancelled": True})

    return router


def _models(service: Service) -> list[dict[str, object]]:
    """Returns the model and its adapters, with the context's length under every name that clients look for."""
    model = service.engine.model
    base: dict[str, object] = {
        "id": service.model_name,
        "object": "model",
        "created": service.created,
        "owned_by": "local",
        "max_model_len": model.max_len,
        "context_length": model.max_len,
        "meta": {
            "n_ctx": model.max_len,
            "n_ctx_train": model.info.context_length,
        },
        "capabilities": _capabilities(model),
        "default_sampling": dict(model.info.sampling),
    }
    adapters = [
        {**base, "id": each.name, "root": each.source, "parent": base["id"]}
        for each in model.adapters.adapters
        if each.name != base["id"]
    ]
    return [base, *adapters]


def _capabilities(model: ServedModel) -> list[str]:
    """Returns the abilities of a model, in Ollama's words where it has them."""
    responses = model.responses
    shows_tools = model.template is not None and "tools" in model.template.source
    has_tools = shows_tools and responses is not None and responses.has_tool_calls
    abilities = {
        "completion": True,
        "embedding": True,
        "structured_outputs": True,
        "chat": model.template is not None,
        "tools": has_tools,
        "forced_tools": has_tools and model.call_format is not None,
        "thinking": responses is not None and responses.has_reasoning,
        "thinking_budget": thinking_marks(responses) is not None,
    }
    return [name for name, is_there in abilities.items() if is_there]
