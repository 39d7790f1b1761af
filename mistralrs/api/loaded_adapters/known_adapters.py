"""The adapters of a model as the preparation of requests sees them: plain facts at one moment. Can be pickled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mistralrs.errors import RequestError

if TYPE_CHECKING:
    from mistralrs.adapters.lora.lora import LoraAdapter


@dataclass(frozen=True, slots=True)
class KnownAdapter:
    """An adapter that requests can name."""

    name: str
    source: str
    """Where it came from: a path or a hub id."""
    rank: int
    digest: str
    """Hash of its content, as hexadecimal digits."""
    is_alora: bool = False
    """It acts from its invocation tokens on."""
    acts_alone: str | None = None
    """Why it can be neither mixed nor weighted; None: it can be."""


@dataclass(frozen=True, slots=True)
class ScalingAxes:
    """Names along the axes of X-LoRA's scalings."""

    adapters: tuple[str, ...]
    """The adapters, in the order of their training."""
    layers: tuple[str, ...]
    """Paths of the modules on which they act, such as ``model.layers.0.self_attn.q_proj``."""


@dataclass(frozen=True, slots=True)
class KnownAdapters:
    """All adapters of a model, and those that act on requests that choose none."""

    adapters: tuple[KnownAdapter, ...] = ()
    """In the order in which their names were first loaded."""
    active: Mapping[str, float] = field(default_factory=dict)
    """Names and weights of those that act on requests that choose none."""
    merged: Mapping[str, float] = field(default_factory=dict)
    """Names and weights of those that are merged into the weights; the model can then do neither without them nor with
    others."""
    max_adapters: int = 0
    """Adapters that can act at once."""
    generation: int = 0
    """Grows whenever a name comes to mean another adapter, or none."""
    memory: int = 0
    """Bytes that the KV cache leaves to adapters beside the weights."""
    requantized: bool = False
    """The weights into which they are merged are quantized, and were quantized again."""
    mixture: str | None = None
    """X-LoRA, which weighs its own adapters for each token, in words; requests then choose none."""
    scaling_axes: ScalingAxes | None = None
    """Names along the scalings of X-LoRA; None: the model is none."""

    def require_scalings(self) -> ScalingAxes:
        """The names along the scalings. Raises ``RequestError`` for a model that is no X-LoRA."""
        if self.scaling_axes is None:
            raise RequestError(
                "scalings are those of X-LoRA, and this model is none",
                hint="load one with --xlora SOURCE or an x-lora row",
                code="unsupported_parameter",
                param="scalings",
            )
        return self.scaling_axes

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(adapter.name for adapter in self.adapters)

    @property
    def are_possible(self) -> bool:
        """Whether the model has adapters, or can get some."""
        return bool(self.adapters) or self.max_adapters > 0

    def find(self, name: str) -> KnownAdapter | None:
        """The adapter of this name."""
        return next((adapter for adapter in self.adapters if adapter.name == name), None)

    def check(self, weights: Mapping[str, float], param: str = "adapters") -> None:
        """Raises ``RequestError`` for a mix that cannot act; it names ``param``."""
        if self.mixture is not None:
            raise RequestError(
                f"the model is an {self.mixture}, which it weighs for each token itself: requests choose none",
                hint="to choose adapters for each request, load them with --lora",
                param=param,
            )
        acting = {self._known(name, param): weight for name, weight in weights.items()}
        acting = {known: weight for known, weight in acting.items() if weight != 0}
        for known, weight in acting.items():
            if not math.isfinite(weight):
                message = f"adapter {known.name} has weight {weight}; it must be a finite number"
                raise RequestError(message, param=param)
        if self.merged:
            self._check_merged({known.name: weight for known, weight in acting.items()}, param)
            return
        for known, weight in acting.items():
            if known.acts_alone is not None and (len(acting) > 1 or weight != 1):
                message = f"adapter {known.name} has {known.acts_alone}: it can be neither mixed nor weighted"
                raise RequestError(message, hint="ask for it alone, with weight 1", param=param)
        if len(acting) > self.max_adapters:
            message = f"{param} names {len(acting)} adapters; at most {self.max_adapters} can act at once"
            raise RequestError(message, hint="raise --max-adapters", param=param)

    def describe(self) -> str:
        """One line about the adapters; empty if there are none."""
        memory = f"; {_size(self.memory)} of memory" if self.memory else ""
        if self.mixture is not None:
            return f"{self.mixture}{memory}"
        if self.merged:
            how = (
                "merged into the weights, which are quantized again" if self.requantized else "merged into the weights"
            )
            return f"{described(self.merged)}: {how}"
        if not self.adapters:
            return f"none yet{memory} for those that may come" if self.memory else ""
        active = described(self.active) if self.active else "none"
        return f"{', '.join(self.names)}; active unless a request says otherwise: {active}{memory}"

    def _known(self, name: str, param: str) -> KnownAdapter:
        known = self.find(name)
        if known is None:
            hint = f"known are {', '.join(self.names)}" if self.adapters else "no adapter is loaded"
            raise RequestError(f"there is no adapter {name[:64]!r}", hint=hint, code="adapter_not_found", param=param)
        return known

    def _check_merged(self, acting: Mapping[str, float], param: str) -> None:
        if acting != dict(self.merged):
            raise RequestError(
                f"{described(self.merged)} is merged into the model's weights: it acts on every request, alone",
                hint="to choose adapters for each request, load the model with --no-merge",
                param=param,
            )


def known_adapter(adapter: LoraAdapter) -> KnownAdapter:
    """The facts of an adapter that was read."""
    return KnownAdapter(
        adapter.name,
        adapter.source,
        adapter.rank,
        adapter.digest.hex(),
        is_alora=bool(adapter.invocation_tokens),
        acts_alone=adapter.acts_alone,
    )


def _size(nbytes: int) -> str:
    return f"{nbytes / 2**10:.0f} KiB" if nbytes < 2**20 else f"{nbytes / 2**20:.0f} MiB"


def described(weights: Mapping[str, float]) -> str:
    """Names and weights in a line, such as ``style, law:0.5``."""
    return ", ".join(name if weight == 1 else f"{name}:{weight:g}" for name, weight in weights.items())
