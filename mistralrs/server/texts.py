"""Routes between text, tokens and vectors; ``tokens`` and ``api`` make their answers."""

from __future__ import annotations

import asyncio
import uuid

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from mistralrs.api.schemas.request_bodies import ApplyTemplateBody, DetokenizeBody, EmbeddingBody, TokenizeBody
from mistralrs.api.schemas.response_bodies import AppliedTemplate, Detokenized, EmbeddingList, Tokens
from mistralrs.api.serving.answers.respond import embeddings
from mistralrs.api.serving.prepare import prepare_embeddings
from mistralrs.server import tokens
from mistralrs.server.answer_headers import AnswerHeaders
from mistralrs.server.bodies import Reader
from mistralrs.server.disconnect import unless_gone
from mistralrs.server.middleware import context_of
from mistralrs.server.openapi import ENGINE_ERRORS, operation
from mistralrs.server.responses import JsonResponse, to_json_in_slices
from mistralrs.server.service import Service


def text_routes(service: Service, reader: Reader) -> APIRouter:
    """The routes, bound to a server."""
    router = APIRouter()

    tokenizing = operation("The tokens of a text", Tokens, body=TokenizeBody)
    detokenizing = operation("The text of tokens", Detokenized, body=DetokenizeBody)
    rendering = operation("The prompt of a conversation", AppliedTemplate, body=ApplyTemplateBody)
    embedding = operation("Vectors of texts", EmbeddingList, body=EmbeddingBody, errors=ENGINE_ERRORS)

    @router.post("/tokenize", **tokenizing)
    async def tokenize(request: Request) -> Response:
        body, notes = await reader.prepared(request, TokenizeBody, tokens.tokenize)
        return await _json(service, request, body, notes)

    @router.post("/detokenize", **detokenizing)
    async def detokenize(request: Request) -> Response:
        body, notes = await reader.prepared(request, DetokenizeBody, tokens.detokenize)
        return await _json(service, request, body, notes)

    @router.post("/apply-template", **rendering)
    async def apply_template(request: Request) -> Response:
        body, notes = await reader.prepared(request, ApplyTemplateBody, tokens.apply_template)
        return await _json(service, request, body, notes)

    @router.post("/v1/embeddings", **embedding)
    async def embed(request: Request) -> Response:
        prepared = await reader.prepared(request, EmbeddingBody, prepare_embeddings)
        live = service.begin(
            f"embd-{uuid.uuid4().hex}", context_of(request.scope), prepared.requests, prepared.adapters
        )
        try:
            work = embeddings(prepared, live.streams, model_name=prepared.model_name or service.model_name)
            answer = await unless_gone(request.receive, work)
        finally:
            service.end(live)
        return await _json(service, request, answer.body(), AnswerHeaders.of(prepared))

    return router


async def _json(service: Service, request: Request, body: dict[str, object], notes: AnswerHeaders) -> Response:
    data = await asyncio.to_thread(to_json_in_slices, body)
    service.record("response", context_of(request.scope).id, status=200, body=data)
    return JsonResponse(data, headers=notes.headers(service.model_name))
