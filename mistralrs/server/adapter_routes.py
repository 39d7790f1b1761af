"""Routes about adapters: those that are loaded, and changes of them, by the names that clients of vLLM and llama.cpp
use."""

from __future__ import annotations

from collections.abc import Iterable

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from mistralrs.api.loaded_adapters.adapter_changes import ActivateAdapters, AdapterChange, LoadAdapter, UnloadAdapter
from mistralrs.api.loaded_adapters.known_adapters import KnownAdapter, KnownAdapters
from mistralrs.api.schemas import parameter_table
from mistralrs.api.schemas.adapter_bodies import LoadAdapterBody, LoraScales, UnloadAdapterBody
from mistralrs.api.served_model import ServedModel
from mistralrs.api.serving.adapter_choice import scales_by_name
from mistralrs.api.serving.policy import Policy
from mistralrs.errors import RequestError
from mistralrs.server import status_bodies
from mistralrs.server.answer_headers import AnswerHeaders
from mistralrs.server.bodies import Reader
from mistralrs.server.disconnect import unless_gone
from mistralrs.server.middleware import context_of
from mistralrs.server.openapi import operation
from mistralrs.server.responses import JsonResponse, to_json
from mistralrs.server.service import Service


def adapter_routes(service: Service, reader: Reader) -> APIRouter:
    """The routes, bound to a server."""
    router = APIRouter()
    _add_vllms(router, service, reader)
    _add_llama_cpps(router, service, reader)
    return router


def _add_vllms(router: APIRouter, service: Service, reader: Reader) -> None:
    listing = operation("The adapters", status_bodies.AdapterList, errors=(503,))
    loading = operation("Load an adapter", status_bodies.LoadedAdapter, body=LoadAdapterBody, errors=(503,))
    unloading = operation("Unload an adapter", status_bodies.UnloadedAdapter, body=UnloadAdapterBody, errors=(503,))

    @router.get("/v1/lora_adapters", **listing)
    async def adapters() -> Response:
        known = service.engine.model.adapters
        data = [_facts(known, each) for each in known.adapters]
        body = {"object": "list", "data": data, "max_adapters": known.max_adapters, "generation": known.generation}
        return JsonResponse(body)

    @router.post("/v1/load_lora_adapter", **loading)
    async def load(request: Request) -> Response:
        _check_allowed(service)
        change, notes = await reader.prepared(request, LoadAdapterBody, _loading)
        known = await _change(service, request, change)
        facts = known.find(change.name)
        if facts is None:  # another request has unloaded it already
            raise RequestError(f"the adapter {change.name!r} was unloaded meanwhile", code="adapter_not_found")
        return _json(service, request, {**_facts(known, facts), "generation": known.generation}, notes)

    @router.post("/v1/unload_lora_adapter", **unloading)
    async def unload(request: Request) -> Response:
        _check_allowed(service)
        change, notes = await reader.prepared(request, UnloadAdapterBody, _unloading)
        known = await _change(service, request, change)
        body = {"id": change.name, "object": "adapter", "unloaded": True, "generation": known.generation}
        return _json(service, request, body, notes)


def _add_llama_cpps(router: APIRouter, service: Service, reader: Reader) -> None:
    scales = operation("The adapters, as llama.cpp lists them", status_bodies.LoraAdapters, errors=(503,))
    scaling = operation(
        "Set the adapters that act on later requests that choose none",
        status_bodies.Success,
        body=LoraScales,
        errors=(503,),
    )

    @router.get("/lora-adapters", **scales)
    async def lora_adapters() -> Response:
        known = service.engine.model.adapters
        return JsonResponse(
            [
                {"id": place, "name": each.name, "path": each.source, "scale": known.active.get(each.name, 0.0)}
                for place, each in enumerate(known.adapters)
            ]
        )

    @router.post("/lora-adapters", **scaling)
    async def set_scales(request: Request) -> Response:
        _check_allowed(service)
        change, notes = await reader.prepared(request, LoraScales, _activation)
        await _change(service, request, change)
        return _json(service, request, {"success": True}, notes)


def _check_allowed(service: Service) -> None:
    if service.engine.model.adapters.scaling_axes is not None:
        raise RequestError(
            "the model is an X-LoRA, which mixes its own adapters: they cannot be changed",
            code="adapter_changes_forbidden",
        )
    if not service.settings.allow_adapter_changes:
        raise RequestError(
            "this server does not let clients change its adapters",
            hint="start it with --allow-adapter-changes and --adapter-root FOLDER",
            code="adapter_changes_forbidden",
        )


def _loading(body: LoadAdapterBody, model: ServedModel, policy: Policy) -> tuple[LoadAdapter, AnswerHeaders]:
    notes = _notes(parameter_table.unserved("load_lora_adapter", body), policy)
    if body.lora_name == policy.model_name:
        raise RequestError(f"{body.lora_name} is the model's name", hint="choose another", param="lora_name")
    return LoadAdapter(body.lora_name, body.lora_path, load_inplace=bool(body.load_inplace)), notes


def _unloading(body: UnloadAdapterBody, model: ServedModel, policy: Policy) -> tuple[UnloadAdapter, AnswerHeaders]:
    return UnloadAdapter(body.lora_name), _notes(parameter_table.unserved("unload_lora_adapter", body), policy)


def _activation(body: LoraScales, model: ServedModel, policy: Policy) -> tuple[ActivateAdapters, AnswerHeaders]:
    weights = scales_by_name(body.root, model.adapters, "")
    model.adapters.check(weights, "scale")
    return ActivateAdapters(weights), AnswerHeaders()


def _notes(ignored: Iterable[str], policy: Policy) -> AnswerHeaders:
    names = tuple(ignored)
    if policy.strict:
        parameter_table.refuse_ignored(names)
    return AnswerHeaders(names)


async def _change(service: Service, request: Request, change: AdapterChange) -> KnownAdapters:
    """Makes a change, to its end even if the client leaves, and returns the adapters after it."""
    engine = service.admit()
    await unless_gone(request.receive, engine.change_adapters(change))
    return engine.model.adapters


def _facts(known: KnownAdapters, adapter: KnownAdapter) -> dict[str, object]:
    return {
        "id": adapter.name,
        "object": "adapter",
        "source": adapter.source,
        "rank": adapter.rank,
        "digest": adapter.digest,
        "alora": adapter.is_alora,
        "merged": adapter.name in known.merged,
        "weight": known.active.get(adapter.name, 0.0),
    }


def _json(service: Service, request: Request, body: dict[str, object], notes: AnswerHeaders) -> Response:
    data = to_json(body)
    service.record("response", context_of(request.scope).id, status=200, body=data)
    return JsonResponse(data, headers=notes.headers(service.model_name))
