"""Chat and text completions over HTTP: from a body to a whole answer or a stream, which ends when the client leaves."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from mistralrs.api.schemas.request_bodies import ChatCompletionBody, CompletionBody
from mistralrs.api.schemas.response_bodies import ChatCompletion, ChatCompletionChunk, Completion, CompletionChunk
from mistralrs.api.serving.answers.respond import Answer, AnswerError, answer_id
from mistralrs.api.serving.prepare import Prepared, prepare_chat, prepare_completion
from mistralrs.server.answer_headers import AnswerHeaders
from mistralrs.server.bodies import Reader
from mistralrs.server.disconnect import unless_gone
from mistralrs.server.errors import answer_to
from mistralrs.server.inflight import InflightRequest
from mistralrs.server.middleware import context_of
from mistralrs.server.openapi import ENGINE_ERRORS, operation
from mistralrs.server.responses import EventStream, JsonResponse, to_json
from mistralrs.server.service import Service
from mistralrs.server.sse import DONE, ChunkEncoder, encode_error, frame_event


def generation_routes(service: Service, reader: Reader) -> APIRouter:
    """The routes, bound to a server."""
    router = APIRouter()
    chatting = operation(
        "Answer a conversation",
        ChatCompletion,
        body=ChatCompletionBody,
        chunk=ChatCompletionChunk,
        errors=ENGINE_ERRORS,
    )
    completing = operation(
        "Continue a text", Completion, body=CompletionBody, chunk=CompletionChunk, errors=ENGINE_ERRORS
    )

    @router.post("/v1/chat/completions", **chatting)
    async def chat(request: Request) -> Response:
        return await _answer(service, request, await reader.prepared(request, ChatCompletionBody, prepare_chat))

    @router.post("/v1/completions", **completing)
    async def complete(request: Request) -> Response:
        return await _answer(service, request, await reader.prepared(request, CompletionBody, prepare_completion))

    return router


async def _answer(service: Service, request: Request, prepared: Prepared) -> Response:
    """Submits what was prepared, and answers. Raises what the engine refuses before an answer has begun."""
    context = context_of(request.scope)
    id, created, model_name = answer_id(prepared), int(time.time()), prepared.model_name or service.model_name
    answer = Answer(prepared, id=id, created=created, model_name=model_name)
    headers = AnswerHeaders.of(prepared).headers(model_name)
    live = service.begin(id, context, prepared.requests, prepared.adapters)
    if prepared.stream:
        encoder = ChunkEncoder(prepared, id=id, created=created, model_name=model_name)
        return EventStream(
            _framed(service, answer, live, encoder),
            headers=headers,
            keep_alive_s=service.settings.keep_alive_ms / 1000,
            close=lambda: service.end(live),
        )
    try:
        body = to_json(await unless_gone(request.receive, answer.whole(live.streams)))
    finally:
        service.end(live)
    service.record("response", context.id, status=200, body=body)
    return JsonResponse(body, headers=headers)


async def _framed(
    service: Service, answer: Answer, live: InflightRequest, encoder: ChunkEncoder
) -> AsyncGenerator[bytes]:
    """The server-sent events of an answer, which also go into the log; an error is the last of them."""
    try:
        async with aclosing(answer.events(live.streams)) as chunks:
            async for chunk in chunks:
                data = encoder.encode(chunk)
                service.record("chunk", live.request_id, body=data)
                yield frame_event(data)
    except AnswerError as failed:
        data = encode_error(answer_to(failed.error).body)
        service.record("error", live.request_id, body=data)
        yield frame_event(data)
    else:
        yield DONE
