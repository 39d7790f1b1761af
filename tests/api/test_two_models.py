"""Two models in one process: they share threads and nothing else, and leave the caller's torch alone."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.local_model import LocalModel
from mistralrs.engine.config import SamplingParams
from mistralrs.engine.events import Delta
from tests.tiny import StorageTypes, TinyConfig, write_tiny

SAMPLING = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
HANGS = 120
"""Seconds."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = TinyConfig(types=StorageTypes.all("Q8_0"), context=1024)
    return write_tiny(tmp_path_factory.mktemp("two") / "tiny.gguf", config).path


def load(path: Path, threads: int) -> LocalModel:
    options = LoadOptions(threads=threads, max_seqs=4, prefix_cache_n=0)
    return LocalModel.load(ModelSource(None, path, None, None), options)


@pytest.fixture(scope="module")
def models(path: Path) -> Iterator[tuple[LocalModel, LocalModel]]:
    with load(path, 1) as first, load(path, 3) as second:
        yield first, second


def ask(model: LocalModel, text: str, sampling: SamplingParams = SAMPLING) -> str:
    stream = model.chat([{"role": "user", "content": text}], sampling)
    return "".join(event.text for event in stream if isinstance(event, Delta))


def test_answers_are_those_of_one_alone(models: tuple[LocalModel, LocalModel]) -> None:
    texts = [f"the tale of the {n} winters and what came of it " * n for n in range(1, 5)]
    expected = [ask(models[0], text) for text in texts]
    found: dict[int, list[str]] = {}

    def talk(index: int) -> None:
        found[index] = [ask(models[index], text) for text in texts * 2]

    threads = [threading.Thread(target=talk, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANGS)
    assert found == {0: expected * 2, 1: expected * 2}


def test_none_starves_beside_long_prompts(models: tuple[LocalModel, LocalModel]) -> None:
    """One works without a pause until the other has answered; were it the other way round, this would not end."""
    busy, other = models[1], models[0]
    answered = threading.Event()
    turns = 0

    def work() -> None:
        nonlocal turns
        while not answered.is_set():
            ask(busy, "and the winter of the other " * 30, replace(SAMPLING, max_tokens=1))
            turns += 1

    worker = threading.Thread(target=work)
    worker.start()
    try:
        while turns == 0:
            assert worker.is_alive()
        assert ask(other, "hello") == ask(other, "hello")
    finally:
        answered.set()
        worker.join(HANGS)
    assert not worker.is_alive()
    assert turns > 0


CALLER = """
import sys, threading
from pathlib import Path
from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.local_model import LocalModel
from mistralrs.engine.config import Request, SamplingParams

if sys.argv[2] == "before":
    import torch
    torch.set_num_threads(3)
isa = None if sys.argv[3] == "kernels" else "torch"
inside, elsewhere = set(), []
with LocalModel.load(ModelSource(None, Path(sys.argv[1]), None, None), LoadOptions(threads=2, isa=isa)) as model:
    import torch
    list(model.engine.submit(Request((1, 2, 3), SamplingParams(), pooling="mean")))  # pools with torch
    model.engine.between_steps(lambda: inside.add(torch.get_num_threads())).result()
    thread = threading.Thread(target=lambda: elsewhere.append(torch.get_num_threads()))
    thread.start()
    thread.join()
print(*inside, *elsewhere, torch.get_num_threads())
"""


def printed(*arguments: str) -> list[str]:
    """Returns the words that a Python program writes."""
    done = subprocess.run([sys.executable, "-c", *arguments], capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("imported", ["before", "after"])
@pytest.mark.parametrize(("backend", "inside"), [pytest.param("kernels", 1, marks=pytest.mark.native), ("torch", 2)])
def test_torch_keeps_its_threads_in_the_callers_code(path: Path, imported: str, backend: str, inside: int) -> None:
    """The engine's thread takes what suits its backend; the others keep the caller's number, or torch's own."""
    [own] = ["3"] if imported == "before" else printed("import torch; print(torch.get_num_threads())")
    assert printed(CALLER, str(path), imported, backend) == [str(inside), own, own]
