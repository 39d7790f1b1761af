"""Decisions about all requests of a server, of one of its keys, or of a program."""

from __future__ import annotations

from dataclasses import dataclass, field

from mistralrs.engine.config import SamplingParams
from mistralrs.errors import RequestError

DEFAULT_MODEL = "default"
"""A name for whichever model is served."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What is decided about requests before they come."""

    model_name: str
    """The model's id in answers."""
    strict: bool = False
    """Refuse what would be ignored."""
    strict_model: bool = False
    """Refuse requests for other models."""
    truncate: bool = False
    """Cut prompts that are too long instead of refusing them."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    """Of requests that do not say; its seed is not used."""
    cache_salt: str = ""
    """Requests share the prefix cache only with those of the same."""
    deadline_s: float | None = None
    template_hint: str | None = None
    """The way out for a chat with a model that has no template; None: that of the terminal."""


def check_model(name: str | None, policy: Policy) -> str | None:
    """The name, if it is not the served model's. Raises RequestError for such a name where these are refused."""
    if name in (None, "", DEFAULT_MODEL, policy.model_name):
        return None
    if policy.strict_model:
        raise RequestError(
            f"the model {(name or '')[:200]!r} does not exist here",
            hint=f"{policy.model_name} does",
            code="model_not_found",
            param="model",
        )
    return name
