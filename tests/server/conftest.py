"""A server without a socket, and an engine with a test's answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.local_model import LocalModel
from mistralrs.api.served_model import ServedModel
from tests.server.fake import FakeEngine
from tests.server.harness import Served

NO_FILE = ModelSource(None, None, None, None)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def tiny(tiny_llama: Path) -> Iterator[LocalModel]:
    """A tiny model whose engine runs."""
    source = ModelSource(None, tiny_llama, None, None)
    with LocalModel.load(source, LoadOptions(threads=1, isa="torch", max_seqs=4)) as model:
        yield model


@pytest.fixture(scope="session")
def model(tiny: LocalModel) -> ServedModel:
    """The tiny model's data without its engine."""
    return tiny.served


@pytest.fixture
async def engine(model: ServedModel) -> FakeEngine:
    return FakeEngine(model)


@pytest.fixture
async def server(engine: FakeEngine) -> Served:
    """A server with the usual settings that serves with ``engine``."""
    return Served(engine)
