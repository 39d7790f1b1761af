"""The words in which users name adapters and weights: on the command line and in the chat."""

from __future__ import annotations

from collections.abc import Iterable

from mistralrs.api.loaded_adapters.adapter_options import NO_ADAPTER
from mistralrs.engine.admission import MAX_ADAPTER_WEIGHT
from mistralrs.errors import UsageError


def parse_weights(words: Iterable[str], *, written: str) -> dict[str, float]:
    """Returns the weights of the adapters that ``NAME[:W]`` name, in their order; ``none`` alone is none.

    ``written``: the option or command, for errors. An adapter with weight 0 does not act, and is left out. Raises
    ``UsageError`` for an empty or repeated name and for a weight that is no finite float32.
    """
    parts = [word.strip() for word in words]
    if parts == [NO_ADAPTER]:
        return {}
    weights: dict[str, float] = {}
    for part in parts:
        name, colon, text = part.partition(":")
        if not name or name == NO_ADAPTER:
            reason = "an empty name" if not name else f"{NO_ADAPTER} beside others"
            raise UsageError(
                f"{written}: {reason}", hint=f"write it as {written} NAME or NAME:0.5, or {NO_ADAPTER} alone"
            )
        if name in weights:
            raise UsageError(f"{written}: {name} is there twice", hint="give each adapter once")
        weights[name] = _weight(text, part, written) if colon else 1.0
    return {name: weight for name, weight in weights.items() if weight != 0}


def _weight(text: str, part: str, written: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = float("nan")
    if not abs(weight) <= MAX_ADAPTER_WEIGHT:
        raise UsageError(f"{written}: {part[:100]}: {text[:32]!r} is no weight", hint="write NAME:0.5")
    return weight
