"""Functions of the caller that take part in sampling, in the engine's process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from mistralrs.errors import EngineError, RequestError

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

LogitsProcessor: TypeAlias = "Callable[[Sequence[int], NDArray[numpy.float32]], None]"
"""Gets the known tokens, prompt included, and the logits (vocab_size,) of the next one, which it changes in place."""
StoppingRule: TypeAlias = Callable[[Sequence[int]], bool]
"""Gets the known tokens, prompt included. Returns whether the answer ends with the last of them."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """The hooks of one request. The engine's thread calls them, so that all requests wait for them.

    Whatever one raises fails its request alone, with the code ``hook_failed``. A request with hooks has no draft
    tokens: hooks see the tokens of the answer only, each once.
    """

    logits_processors: tuple[LogitsProcessor, ...] = ()
    """They come in order after penalties and bias, and before the mask of a grammar, which they cannot widen. They are
    not asked about tokens that a grammar forces, and log-probabilities are those before them."""
    stopping_rules: tuple[StoppingRule, ...] = ()
    """Asked after each token in order, until one ends the answer with the reason "stop". The token is part of it."""

    def stops(self, tokens: Sequence[int]) -> bool:
        """Whether a rule ends the answer. Raises EngineError if one fails."""
        for rule in self.stopping_rules:
            try:
                if rule(tokens):
                    return True
            except BaseException as error:  # SystemExit too: it would end the engine's thread
                raise hook_error("the stopping rule", rule, error=error) from error
        return False


@dataclass(frozen=True, slots=True)
class HookNames:
    """Names of hooks that the engine's process knows; unlike functions they cross to it."""

    logits_processors: tuple[str, ...] = ()
    stopping_rules: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NamedHooks:
    """The hooks that requests may name."""

    logits_processors: Mapping[str, LogitsProcessor] = field(default_factory=dict)
    stopping_rules: Mapping[str, StoppingRule] = field(default_factory=dict)

    @property
    def names(self) -> HookNames:
        """All names, in the order in which they were declared."""
        return HookNames(tuple(self.logits_processors), tuple(self.stopping_rules))

    def find(self, names: HookNames) -> Hooks:
        """The hooks of these names. Raises RequestError for a name that is not there."""
        try:
            return Hooks(
                tuple(self.logits_processors[name] for name in names.logits_processors),
                tuple(self.stopping_rules[name] for name in names.stopping_rules),
            )
        except KeyError as error:
            raise RequestError(f"the engine has no hook {error}", param="hook_names") from None


def hook_error(kind: str, hook: Callable[..., object], *, error: BaseException) -> EngineError:
    """The error of a request whose ``hook`` raised ``error``."""
    name = getattr(hook, "__name__", type(hook).__name__)
    return EngineError(f"{kind} {name} failed: {type(error).__name__}: {error}", hint="mend it", code="hook_failed")
