"""X-LoRA's scalings in an answer: what a body may ask for, and their shape."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from mistralrs.errors import RequestError

if TYPE_CHECKING:
    from mistralrs.api.loaded_adapters.known_adapters import ScalingAxes
    from mistralrs.api.schemas.request_bodies import SamplingBody
    from mistralrs.api.served_model import ServedModel
    from mistralrs.engine.config import Request
    from mistralrs.engine.events import Scalings


class Speller(Protocol):
    """Knows the text of a token."""

    def token_text(self, token: int) -> str: ...


@dataclass(frozen=True, slots=True)
class ScalingNames:
    """The names beside an answer's scalings."""

    axes: ScalingAxes
    tokenizer: Speller


def scaling_names(body: SamplingBody, model: ServedModel) -> ScalingNames | None:
    """Returns the names for the scalings that a body asks for; None: it asks for none.

    Raises RequestError for a model that is no X-LoRA, and for a stream.
    """
    if not body.scalings:
        return None
    axes = model.adapters.require_scalings()
    if body.stream:
        raise RequestError(
            "scalings come with the whole answer: they cannot be streamed", hint="leave stream out", param="scalings"
        )
    return ScalingNames(axes, model.tokenizer)


def with_scalings(requests: Sequence[Request], names: ScalingNames | None) -> tuple[Request, ...]:
    """Returns the requests, which ask for scalings if there are ``names``. Their tokens are then all computed.

    Raises RequestError if that are several answers.
    """
    if names is None:
        return tuple(requests)
    if len(requests) > 1:
        raise RequestError(
            f"scalings are those of one answer; this would generate {len(requests)}",
            hint="ask for one answer to one prompt at a time",
            param="scalings",
        )
    return tuple(replace(request, wants_scalings=True, reuse=False) for request in requests)


def rows(scalings: Scalings) -> Iterator[list[list[float]]]:
    """Yields each token's weights: for each layer one for each adapter."""
    layers, adapters = scalings.shape
    values = struct.iter_unpack(f"{adapters}f", scalings.data)
    for _ in scalings.tokens:
        yield [list(next(values)) for _ in range(layers)]


def choice_scalings(scalings: Scalings, names: ScalingNames) -> dict[str, object]:
    """Returns a choice's ``scalings``; their weights have six digits behind the point."""
    tokens = [
        {
            "position": scalings.start + place,
            "id": token,
            "text": names.tokenizer.token_text(token),
            "weights": [[round(weight, 6) for weight in layer] for layer in weights],
        }
        for place, (token, weights) in enumerate(zip(scalings.tokens, rows(scalings), strict=True))
    ]
    return {
        "adapters": list(names.axes.adapters),
        "layers": list(names.axes.layers),
        "tokens": tokens,
        "omitted_tokens": scalings.omitted_tokens,
    }
