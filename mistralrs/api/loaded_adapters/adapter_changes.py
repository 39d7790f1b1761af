"""Changes of a served model's adapters, as clients ask for them. They can be pickled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mistralrs.api.loaded_adapters.model_adapters import ModelAdapters


@dataclass(frozen=True, slots=True)
class LoadAdapter:
    """Loads an adapter from what clients may name; see ``ModelAdapters.load_allowed``."""

    name: str
    source: str
    load_inplace: bool = False

    def make(self, adapters: ModelAdapters) -> None:
        """Makes the change; raises RequestError."""
        adapters.load_allowed(self.name, self.source, load_inplace=self.load_inplace)


@dataclass(frozen=True, slots=True)
class UnloadAdapter:
    """Lets no new request name an adapter."""

    name: str

    def make(self, adapters: ModelAdapters) -> None:
        """Makes the change; raises RequestError."""
        adapters.unload(self.name)


@dataclass(frozen=True, slots=True)
class ActivateAdapters:
    """Makes adapters act on later requests that choose none."""

    weights: Mapping[str, float]

    def make(self, adapters: ModelAdapters) -> None:
        """Makes the change; raises RequestError."""
        adapters.activate(self.weights)


AdapterChange = LoadAdapter | UnloadAdapter | ActivateAdapters
