"""OpenAI's Responses API and Anthropic's Messages API over HTTP: named events, or the body that they make."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from contextlib import aclosing
from typing import Protocol

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from mistralrs.api.schemas.output_chunk import OutputChunk
from mistralrs.api.schemas.translated.messages_bodies import (
    CountTokensBody,
    MessagesAnswer,
    MessagesBody,
    MessagesError,
    MessagesEvent,
    TokenCount,
)
from mistralrs.api.schemas.translated.responses_bodies import ResponseEvent, ResponsesAnswer, ResponsesBody
from mistralrs.api.serving.answers.respond import Answer, AnswerError
from mistralrs.api.serving.other_apis.messages_api import count_tokens, message_with_grammar, prepare_message
from mistralrs.api.serving.other_apis.messages_events import MessageEvents
from mistralrs.api.serving.other_apis.responses_api import prepare_response, response_with_grammar
from mistralrs.api.serving.other_apis.responses_events import ResponseEvents
from mistralrs.api.serving.prepare import Prepared
from mistralrs.errors import RequestError
from mistralrs.server.answer_headers import AnswerHeaders
from mistralrs.server.bodies import Reader
from mistralrs.server.disconnect import unless_gone
from mistralrs.server.errors import answer_to
from mistralrs.server.inflight import InflightRequest
from mistralrs.server.middleware import context_of
from mistralrs.server.openapi import ENGINE_ERRORS, operation
from mistralrs.server.responses import PING, EventStream, JsonResponse, to_json
from mistralrs.server.service import Service
from mistralrs.server.sse import MESSAGES_PING, encode_event, frame_named

Event = dict[str, object]


class AnswerEvents(Protocol):
    """An answer that takes the chunks of a chat, each once and in order."""

    def opening(self) -> Iterator[Event]: ...

    def on_chunk(self, chunk: OutputChunk) -> Iterator[Event]: ...

    def closing(self) -> Iterator[Event]: ...

    def failed(self, error: Mapping[str, object]) -> Iterator[Event]: ...

    def body(self) -> dict[str, object]: ...


def translated_routes(service: Service, reader: Reader) -> APIRouter:
    """The routes, bound to a server."""
    router = APIRouter()
    _add_responses(router, service, reader)
    _add_messages(router, service, reader)
    return router


def _add_responses(router: APIRouter, service: Service, reader: Reader) -> None:
    responding = operation(
        "Answer as OpenAI's Responses API does, without stored state",
        ResponsesAnswer,
        body=ResponsesBody,
        event=ResponseEvent,
        errors=ENGINE_ERRORS,
    )

    @router.post("/v1/responses", **responding)
    async def respond(request: Request) -> Response:
        asked = await reader.prepared(request, ResponsesBody, prepare_response, grammar_in=response_with_grammar)
        id, created, model_name = _facts("resp", service, asked.prepared)
        events = ResponseEvents(asked, id=id, created=created, model_name=model_name)
        return await _answer(service, request, asked.prepared, events, id=id, created=created)

    @router.api_route("/v1/responses/{id:path}", methods=["GET", "DELETE", "POST"], include_in_schema=False)
    async def stored(id: str) -> Response:
        raise RequestError(
            "this server keeps no responses, so that there is none to be found by its id",
            hint="send the whole conversation as input",
            code="response_not_found",
        )


def _add_messages(router: APIRouter, service: Service, reader: Reader) -> None:
    writing = operation(
        "Answer as Anthropic's Messages API does",
        MessagesAnswer,
        body=MessagesBody,
        event=MessagesEvent,
        error=MessagesError,
        errors=ENGINE_ERRORS,
    )
    counting = operation("The tokens of a prompt", TokenCount, body=CountTokensBody, error=MessagesError)

    @router.post("/v1/messages", **writing)
    async def write(request: Request) -> Response:
        asked = await reader.prepared(request, MessagesBody, prepare_message, grammar_in=message_with_grammar)
        id, created, model_name = _facts("msg", service, asked.prepared)
        events = MessageEvents(asked, id=id, created=created, model_name=model_name)
        return await _answer(service, request, asked.prepared, events, id=id, created=created, ping=MESSAGES_PING)

    @router.post("/v1/messages/count_tokens", **counting)
    async def count(request: Request) -> Response:
        counted = await reader.prepared(request, CountTokensBody, count_tokens, grammar_in=message_with_grammar)
        body = to_json({"input_tokens": counted.num_tokens})
        service.record("response", context_of(request.scope).id, status=200, body=body)
        return JsonResponse(body, headers=AnswerHeaders.of(counted.prepared).headers(service.model_name))


def _facts(prefix: str, service: Service, prepared: Prepared) -> tuple[str, int, str]:
    """Returns an answer's id, its time in seconds since 1970, and its model."""
    return f"{prefix}_{uuid.uuid4().hex}", int(time.time()), prepared.model_name or service.model_name


async def _answer(
    service: Service,
    request: Request,
    prepared: Prepared,
    events: AnswerEvents,
    *,
    id: str,
    created: int,
    ping: bytes = PING,
) -> Response:
    """Submits a prepared request, and answers. Raises the engine's refusals."""
    context = context_of(request.scope)
    model_name = prepared.model_name or service.model_name
    answer = Answer(prepared, id=id, created=created, model_name=model_name)
    headers = AnswerHeaders.of(prepared).headers(model_name)
    live = service.begin(id, context, prepared.requests, prepared.adapters)
    if prepared.stream:
        return EventStream(
            _framed(service, answer, live, events, path=context.path),
            headers=headers,
            keep_alive_s=service.settings.keep_alive_ms / 1000,
            close=lambda: service.end(live),
            ping=ping,
        )
    try:
        body = to_json(await unless_gone(request.receive, _whole(answer, live, events)))
    finally:
        service.end(live)
    service.record("response", context.id, status=200, body=body)
    return JsonResponse(body, headers=headers)


async def _whole(answer: Answer, live: InflightRequest, events: AnswerEvents) -> dict[str, object]:
    """The body that the events of a stream make. Raises AnswerError with the part that existed."""
    try:
        async with aclosing(answer.events(live.streams)) as chunks:
            async for chunk in chunks:
                for _ in events.on_chunk(chunk):
                    pass
    except AnswerError as error:
        raise AnswerError(error.error, events.body()) from error
    return events.body()


async def _framed(
    service: Service, answer: Answer, live: InflightRequest, events: AnswerEvents, *, path: str
) -> AsyncGenerator[bytes]:
    """The server-sent events of an answer, which also go into the log; an error is the last of them."""

    def framed(made: Iterable[Event], *, is_error: bool = False) -> Iterator[bytes]:
        for event in made:
            data = encode_event(event)
            service.record("error" if is_error else "chunk", live.request_id, body=data)
            yield frame_named(str(event["type"]), data)

    for frame in framed(events.opening()):
        yield frame
    try:
        async with aclosing(answer.events(live.streams)) as chunks:
            async for chunk in chunks:
                for frame in framed(events.on_chunk(chunk)):
                    yield frame
    except AnswerError as error:
        for frame in framed(events.failed(answer_to(error.error, path=path).facts), is_error=True):
            yield frame
        return
    for frame in framed(events.closing()):
        yield frame
