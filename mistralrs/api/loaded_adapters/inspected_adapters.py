"""Adapters that are read for a model which is described and not loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from mistralrs.progress import Progress

if TYPE_CHECKING:
    from mistralrs.api.loaded_adapters.adapter_options import AdapterSource
    from mistralrs.loading.describe import AdapterSizes
    from mistralrs.models.spec import DecoderSpec
    from mistralrs.ops.backend import Backend


def adapter_sizes(
    sources: Sequence[AdapterSource], *, token: Callable[[], str | None], progress: Progress | None = None
) -> AdapterSizes:
    """Returns a function that reads these adapters for a model and gives the bytes that each takes beside it.
    ``token`` yields that of the hub.

    It raises ``LoadError`` and ``FormatError`` as loading them would, so that it also says whether they fit.
    """

    def sizes(architecture: str, spec: DecoderSpec, backend: Backend) -> Iterator[tuple[str, int]]:
        from mistralrs.adapters.adapter_memory import adapter_bytes
        from mistralrs.adapters.adapter_source import AdapterReader, find_adapter

        reader = AdapterReader(architecture, spec, token=token)
        for each in sources:
            found = find_adapter(each.source, each.subfolder, token=token, progress=progress)
            yield each.name, adapter_bytes(reader.read(each.name, found), backend, in_half_precision=True)

    return sizes
