"""A browser for all tests of the page, and servers whose model does as it is told."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.loaded_adapters.known_adapters import KnownAdapter, KnownAdapters
from mistralrs.api.local_model import LocalModel
from mistralrs.api.served_model import ServedModel
from mistralrs.text.response.shipped_templates import shipped_template
from tests.browser.pages import Browser, Page, missing
from tests.server.process import ServerProcess

ADAPTERS = KnownAdapters(
    (KnownAdapter("style", "/adapters/style", 8, "0a" * 16),), active={"style": 1.0}, max_adapters=1
)
KEEP_ALIVE_MS = 200


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts this folder's tests into one group, and skips them where there is no browser; the hook gets the tests of
    other folders too."""
    reason = missing()
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)
            if reason is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def model(tiny_llama: Path) -> ServedModel:
    """A model that thinks and has an adapter."""
    with LocalModel.load(ModelSource(None, tiny_llama, None, None), LoadOptions(threads=1, isa="torch")) as loaded:
        return replace(loaded.served, max_len=100_000, responses=shipped_template("think"), adapters=ADAPTERS)


@pytest.fixture
def serve(model: ServedModel, tmp_path: Path) -> Callable[..., ServerProcess]:
    """Makes a server, which serves while it is entered; the keywords are its settings."""

    def make(**settings: Any) -> ServerProcess:
        return ServerProcess(
            model, tmp_path, program="tests.browser.scripted_server", keep_alive_ms=KEEP_ALIVE_MS, **settings
        )

    return make


@pytest.fixture(scope="session")
def server(model: ServedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server for tests that leave it as it is."""
    folder = tmp_path_factory.mktemp("server")
    with ServerProcess(model, folder, program="tests.browser.scripted_server", keep_alive_ms=KEEP_ALIVE_MS) as process:
        yield process


@pytest.fixture(scope="session")
def address(server: ServerProcess) -> str:
    """The page's address."""
    return address_of(server)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """The page, with storage of its own. At the end no script of it has failed, and only the server was asked."""
    page = browser.open(address)
    page.wait("#message")
    yield page
    seen = page.do("seen")
    page.close()
    assert seen["faults"] == []
    assert [url for url in seen["requests"] if not url.startswith(address.removesuffix("ui"))] == []


def address_of(server: ServerProcess) -> str:
    return f"http://127.0.0.1:{server.port}/ui"


def free_port() -> int:
    """Returns a port that nothing listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
