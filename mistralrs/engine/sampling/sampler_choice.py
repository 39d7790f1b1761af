"""The choice of an engine's sampler, and torch in the engine's thread where something needs it. Imports no torch."""

from __future__ import annotations

from functools import cache

from mistralrs.engine.sampling.sampling_input import TokenSampler
from mistralrs.ops.row_sampler import RowSampler


class SamplerChoice:
    """Makes the sampler of one engine. The engine's thread alone calls it."""

    def __init__(self, row_sampler: RowSampler | None, torch_threads: int) -> None:
        """``row_sampler``: samples tokens; None: torch does. ``torch_threads``: threads for torch's operations in the
        engine's thread; torch in other threads keeps its number."""
        self._row_sampler = row_sampler
        self._torch_threads = torch_threads
        self._has_torch = False

    @property
    def samples_in_pass(self) -> bool:
        """Whether the backend samples, in the call of a forward pass too."""
        return self._row_sampler is not None

    def prepare_torch(self) -> None:
        """Imports torch and limits its threads, before its first use in this thread."""
        if not self._has_torch:
            from mistralrs.ops.torch_threads import limit_torch_here

            limit_torch_here(self._torch_threads)
            self._has_torch = True

    def sampler(self, vocab_size: int) -> TokenSampler:
        """The sampler of the backend, or that of torch."""

        def torch_sampler() -> TokenSampler:
            self.prepare_torch()
            from mistralrs.engine.sampling.sampler import Sampler

            return Sampler(vocab_size)

        if self._row_sampler is None:
            return torch_sampler()
        from mistralrs.engine.sampling.native_sampler import NativeSampler

        return NativeSampler(vocab_size, self._row_sampler, cache(torch_sampler))
