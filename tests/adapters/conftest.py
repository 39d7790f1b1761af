"""Fixtures of the adapters' tests: tiny models by name, and one thread for torch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from tests.architectures import VARIANTS, Folders, write_folder


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """The folder of a variant, written once."""

    @cache
    def folder(name: str) -> Path:
        return write_folder(tmp_path_factory.mktemp(name), VARIANTS[name])

    return folder
