"""The description of the server that /openapi.json and /docs show: each route's body and every answer it may give.

Bodies are the classes that read them, so they cannot differ; answers are declared, and tests compare real ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import Response

from mistralrs import __version__
from mistralrs.api.schemas.response_bodies import Error
from mistralrs.server.status_bodies import ALL

TITLE = "Mistral.rs"
LICENSE = {"name": "MIT", "identifier": "MIT"}
TAG = "Mistral.rs"
BODY_ERRORS = (400, 404, 413, 415)
"""Statuses that any body may get; the 404 is another model's."""
ENGINE_ERRORS = (429, 499, 504)
"""Statuses that may come of asking the engine."""
_COMMON_ERRORS = (401, 403, 408, 500, 503)
_PHRASES = {499: "Cancelled"}
_REFERENCE = "#/components/schemas/{model}"


def operation(
    summary: str,
    answer: type[BaseModel] | None = None,
    *,
    body: type[BaseModel] | None = None,
    chunk: type[BaseModel] | None = None,
    event: type[BaseModel] | None = None,
    error: type[BaseModel] = Error,
    text: str | None = None,
    errors: Iterable[int] = (),
) -> dict[str, Any]:
    """Returns the keywords that describe a route to FastAPI.

    ``answer`` is its JSON, ``chunk`` the JSON of an event of its stream, ``event`` the same where events have names,
    ``text`` the media type of an answer that is none of these; ``errors`` are those it has beside the ones that every
    route has, ``error`` their JSON.
    """
    content: dict[str, Any] = {}
    if answer is not None:
        content["application/json"] = {"schema": _reference(answer)}
    if chunk is not None:
        content["text/event-stream"] = {"itemSchema": _event(chunk)}
    if event is not None:
        content["text/event-stream"] = {"itemSchema": _named_event(event)}
    if text is not None:
        content[text] = {"schema": {"type": "string"}}
    responses: dict[int | str, dict[str, Any]] = {200: {"description": "OK", "content": content}}
    for status in sorted({*_COMMON_ERRORS, *errors, *(BODY_ERRORS if body else ())}):
        phrase = _PHRASES.get(status) or HTTPStatus(status).phrase
        responses[status] = {"description": phrase, "content": {"application/json": {"schema": _reference(error)}}}
    extra = {}
    if body is not None:
        extra["requestBody"] = {"required": True, "content": {"application/json": {"schema": _reference(body)}}}
    return {
        "summary": summary,
        "tags": [TAG],
        "response_class": Response,
        "response_model": None,
        "responses": responses,
        "openapi_extra": extra,
    }


def describe(app: FastAPI, bodies: Iterable[type[BaseModel]], *, needs_key: bool) -> None:
    """Makes ``app`` describe itself with ``bodies`` and all answers."""

    def schema() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _schema(app, bodies, needs_key=needs_key)
        return app.openapi_schema

    app.openapi = schema  # type: ignore[method-assign]


def _schema(app: FastAPI, bodies: Iterable[type[BaseModel]], *, needs_key: bool) -> dict[str, Any]:
    document = get_openapi(
        title=TITLE,
        version=__version__,
        description="Chat and text completions, embeddings and tokens of one model, as OpenAI's clients expect them.",
        routes=app.routes,
        license_info=LICENSE,
        tags=[{"name": TAG}],
    )
    for methods in document["paths"].values():
        for described in methods.values():
            described["responses"].pop("422", None)  # the framework's own: here it is a 400
    shapes = [(model, "validation" if model in bodies else "serialization") for model in (*bodies, *ALL)]
    _, definitions = models_json_schema(shapes, ref_template=_REFERENCE)  # type: ignore[arg-type]
    components = document.setdefault("components", {})
    components["schemas"] = definitions["$defs"]
    if needs_key:
        components["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer"},
            "x_api_key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
        document["security"] = [{"key": []}, {"x_api_key": []}]
    return document


def _event(chunk: type[BaseModel]) -> dict[str, object]:
    """Returns the schema of an event of a stream, as OpenAPI describes one from 3.2 on."""
    what = f"A {chunk.__name__} as JSON; or an {Error.__name__}, which is the last; or [DONE], which is the last."
    data = {"type": "string", "description": what}
    return {"type": "object", "properties": {"data": data}, "required": ["data"]}


def _named_event(event: type[BaseModel]) -> dict[str, object]:
    """Returns the schema of an event with a name; errors are events of their own."""
    name = {"type": "string", "description": "The type of the event."}
    data = {"type": "string", "description": f"A {event.__name__} as JSON."}
    return {"type": "object", "properties": {"event": name, "data": data}, "required": ["event", "data"]}


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(model=model.__name__)}
