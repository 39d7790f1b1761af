"""The hooks of the server's plugin that a request names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mistralrs.engine.request_hooks import HookNames
from mistralrs.errors import RequestError

if TYPE_CHECKING:
    from mistralrs.api.schemas.request_bodies import SamplingBody
    from mistralrs.api.served_model import ServedModel


def hook_choice(body: SamplingBody, model: ServedModel) -> HookNames | None:
    """Returns the named hooks; None: there are none. Raises RequestError for a name that the plugin does not have."""
    if not body.logits_processors and not body.stopping_rules:
        return None
    names = HookNames(tuple(body.logits_processors or ()), tuple(body.stopping_rules or ()))
    _require("logits_processors", names.logits_processors, model.hooks.logits_processors)
    _require("stopping_rules", names.stopping_rules, model.hooks.stopping_rules)
    return names


def _require(param: str, names: Iterable[str], known: tuple[str, ...]) -> None:
    for name in names:
        if name not in known:
            has = f"this server has: {', '.join(known)}" if known else "this server has none: it starts with --plugin"
            raise RequestError(f"{param} names {name[:64]!r}, which is not there", hint=has, param=param)
