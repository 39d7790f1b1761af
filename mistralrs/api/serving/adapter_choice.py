"""The adapters that a body chooses, by whichever of the names that clients use for that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mistralrs.api.loaded_adapters.adapter_options import NO_ADAPTER
from mistralrs.api.serving.policy import Policy, check_model
from mistralrs.errors import RequestError

if TYPE_CHECKING:
    from mistralrs.api.loaded_adapters.known_adapters import KnownAdapters
    from mistralrs.api.schemas.adapter_bodies import AdapterFields, LoraScale

Weights = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class AdapterChoice:
    """The adapters and the model that a body names."""

    weights: Weights | None
    """By name; empty: none is to act; None: those that act by default."""
    other_model: str | None
    """The model that it names, if that is neither the served one nor an adapter."""
    model_name: str | None
    """The adapter that it names as its model, which is then the answer's model; None: the served one."""


def adapter_choice(body: AdapterFields, known: KnownAdapters, policy: Policy) -> AdapterChoice:
    """Returns the choice of a body. Raises ``RequestError`` for unknown names, for mixes that cannot act, and where two
    fields choose different ones."""
    as_model, other_model = named_model(body.model, known, policy)
    choices: dict[str, Weights] = {} if as_model is None else {"model": {as_model: 1.0}}
    for field, name in (("adapter", body.adapter), ("adapter_id", body.adapter_id)):
        if name is not None:
            choices[field] = {} if name in ("", NO_ADAPTER) else {name: 1.0}
    if body.adapters is not None:
        choices["adapters"] = body.adapters
    if body.lora is not None:
        choices["lora"] = scales_by_name(body.lora, known, "lora")
    chosen = {field: {name: weight for name, weight in each.items() if weight != 0} for field, each in choices.items()}
    for field, weights in choices.items():
        known.check(weights, field)
    if not chosen:
        return AdapterChoice(None, other_model, None)
    (first, weights), *others = chosen.items()
    for field, each in others:
        if each != weights:
            message = f"{first} and {field} choose different adapters"
            raise RequestError(message, hint="send one of them", param=field)
    return AdapterChoice(weights, other_model, as_model)


def named_model(name: str | None, known: KnownAdapters, policy: Policy) -> tuple[str | None, str | None]:
    """Returns the adapter that a body names as its model, and the name if it is neither an adapter nor the model.

    Raises ``RequestError`` for such a name where only known ones are answered, which is always so where there are
    adapters: the base must not answer under the name of an adapter that is gone.
    """
    if name and name != policy.model_name and known.find(name) is not None:
        return name, None
    other_model = check_model(name, policy)
    if other_model is not None and known.are_possible:
        raise RequestError(
            f"there is neither a model nor an adapter {other_model[:64]!r} here",
            hint=f"known are {', '.join([policy.model_name, *known.names])}",
            code="model_not_found",
            param="model",
        )
    return None, other_model


def scales_by_name(scales: list[LoraScale], known: KnownAdapters, param: str) -> dict[str, float]:
    """Returns llama.cpp's list of ids and scales as weights by name; adapters that it leaves out do not act.

    Raises ``RequestError`` for an id that is unknown or there twice.
    """
    weights: dict[str, float] = {}
    for place, scale in enumerate(scales):
        if scale.id >= len(known.adapters):
            raise RequestError(
                f"there is no adapter {scale.id}",
                hint="GET /lora-adapters lists them with their ids",
                code="adapter_not_found",
                param=f"{param}[{place}].id",
            )
        name = known.adapters[scale.id].name
        if name in weights:
            raise RequestError(f"the adapter {scale.id} is there twice", param=f"{param}[{place}].id")
        weights[name] = scale.scale
    return weights
