"""Settings for all requests of a server, of one of its keys, or of a program."""

from __future__ import annotations

from dataclasses import dataclass, field

from mistralrs.engine.config import SamplingParams
from mistralrs.errors import RequestError

DEFAULT_MODEL = "default"
"""A name that means the served model, whichever that is."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings for requests that are decided before they come."""

    model_name: str
    """The model's id in answers."""
    strict: bool = False
    """Refuse parameters that would be ignored."""
    strict_model: bool = False
    """Refuse requests for other models."""
    truncate: bool = False
    """Cut prompts that are too long instead of refusing them."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    """The parameters that a request does not give; the seed is not used."""
    cache_salt: str = ""
    """Requests share the prefix cache only with those of the same salt."""
    deadline_s: float | None = None
    template_hint: str | None = None
    """The hint for a chat with a model that has no template; None: the terminal's."""


def check_model(name: str | None, policy: Policy) -> str | None:
    """Returns the name if it is not the served model's, else None. Raises RequestError where such names are refused."""
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
