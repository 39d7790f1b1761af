"""Fixtures that every package's tests may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from mistralrs_kernels import cpu

from mistralrs.api.options.declarations import DECLARED
from tests import redzones
from tests.tiny import write_tiny

if TYPE_CHECKING:
    from tests.architectures import Folders

if redzones.watched():
    redzones.install()
for _option in DECLARED.values():  # a developer's own settings must not change a test
    os.environ.pop(_option.variable or "", None)
os.environ["MISTRALRS_CONFIG"] = os.devnull
# Before torch is imported. Its threads spin while they wait for each other: beside other work, tests of small tensors
# took ten times as long with two.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# no test fails because the machine is busy
settings.register_profile("any speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any speed")

DEFAULT_MODEL = Path(__file__).parents[1] / ".models" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests that use the default model, and skips native ones if the compiled kernels are missing."""
    try:
        cpu.load()
        missing = None
    except cpu.KernelError as reason:
        missing = pytest.mark.skip(reason=f"the compiled kernels cannot be used: {reason}")
    for item in items:
        if missing is not None and item.get_closest_marker("native"):
            item.add_marker(missing)
        if isinstance(item, pytest.Function) and "default_model" in item.fixturenames:
            item.add_marker(pytest.mark.model)


@pytest.fixture(scope="session")
def default_model() -> Path:
    """The default model's file: MISTRALRS_TEST_MODEL where that is set, else where `make model` puts it."""
    named = os.environ.get("MISTRALRS_TEST_MODEL")
    if named:
        if not Path(named).is_file():
            pytest.fail(f"MISTRALRS_TEST_MODEL names no file: {named}")
        return Path(named)
    if not DEFAULT_MODEL.is_file():
        pytest.skip("the default model is not here; to get it: make model")
    return DEFAULT_MODEL


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama of two layers, all F32, with tokenizer and chat template."""
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny-llama.gguf").path


@pytest.fixture(scope="module")
def one_torch_thread() -> Iterator[None]:
    """One thread for torch, which is fastest for small tensors beside the kernels' threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """The folder of a tiny model by the name of its variant, written once."""
    from tests.architectures import VARIANTS, write_folder

    @cache
    def folder(name: str) -> Path:
        return write_folder(tmp_path_factory.mktemp(name), VARIANTS[name])

    return folder
