"""X-LoRA behind the doors of the API: loading, answers, refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.loaded_adapters.adapter_options import AdapterOptions, AdapterSource
from mistralrs.api.local_model import LocalModel
from mistralrs.engine.config import SamplingParams
from mistralrs.errors import LoadError, RequestError, UsageError
from tests.adapters.xlora_files import axis_of, write_xlora
from tests.architectures import VARIANTS, write_folder
from tests.parity.test_engine_laws import Answer, collect

pytestmark = pytest.mark.native

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, logprobs=3, ignore_eos=True)
PROMPTS = [[5 + (7 * place + start) % 250 for place in range(length)] for start, length in ((0, 30), (3, 47), (9, 5))]
Load = Callable[..., LocalModel]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("xlora") / "base", VARIANTS["llama"])


@pytest.fixture(scope="module")
def mixture(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    axis = axis_of("llama", targets=("q_proj", "v_proj", "down_proj"))
    return write_xlora(tmp_path_factory.mktemp("mixture"), base, axis, layerwise_scalings=True)


@pytest.fixture(scope="module")
def load(base: Path) -> Load:
    def load(adapters: AdapterOptions, **options: Any) -> LocalModel:
        source = ModelSource(None, base, None, None)
        return LocalModel.load(source, replace(LoadOptions(threads=2, adapters=adapters), **options))

    return load


def answers(model: LocalModel) -> list[Answer]:
    """All prompts at once."""
    streams = [model.complete(prompt, GREEDY) for prompt in PROMPTS]
    return [collect(stream)[0] for stream in streams]


@pytest.mark.parametrize("index", [None, 0, 3])
def test_answers_do_not_depend_on_how_they_are_served(load: Load, mixture: Path, index: int | None) -> None:
    options = AdapterOptions(xlora=str(mixture), non_granular_index=index)
    with load(options, prefix_cache_n=0, max_draft=0) as model:
        alone = [collect(model.complete(prompt, GREEDY))[0] for prompt in PROMPTS]
        assert answers(model) == alone
    with load(options, max_batch_tokens=16) as model:
        assert answers(model) == alone
        assert answers(model) == alone  # from the prefix cache
        assert model.stats().cached_tokens > 0
    if index is None:
        with load(options, no_kv_cache=True) as model:
            assert answers(model) == alone


def test_the_mixture_acts_and_says_so(load: Load, mixture: Path) -> None:
    with load(AdapterOptions()) as plain, load(AdapterOptions(xlora=str(mixture))) as mixed:
        assert answers(plain) != answers(mixed)
        assert mixed.known_adapters().describe() == f"X-LoRA of 3 adapters from {mixture}"


def test_requests_choose_no_adapters(load: Load, mixture: Path) -> None:
    with load(AdapterOptions(xlora=str(mixture))) as model:
        for choice in ({"music": 1.0}, {"jazz": 1.0}, {}):
            with pytest.raises(RequestError, match=r"is an X-LoRA of 3 adapters .* requests choose none"):
                model.complete(PROMPTS[0], GREEDY, adapters=choice)


@pytest.mark.parametrize(
    "changes",
    [
        {"adapters": (AdapterSource("a", "x"),)},
        {"merge": True},
        {"max_adapters": 2},
        {"root": Path("/")},
    ],
)
def test_other_adapters_are_excluded(load: Load, mixture: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="X-LoRA has its own adapters: it excludes "):
        load(replace(AdapterOptions(xlora=str(mixture)), **changes))


def test_an_index_without_a_mixture_is_refused(load: Load) -> None:
    with pytest.raises(UsageError, match="means nothing without X-LoRA"):
        load(AdapterOptions(non_granular_index=1))


def test_a_missing_classifier_is_named(load: Load, mixture: Path, tmp_path: Path) -> None:
    for path in mixture.rglob("*"):
        if path.is_file() and path.name != "xlora_classifier.safetensors":
            target = tmp_path / path.relative_to(mixture)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
    with pytest.raises(LoadError, match=r"has no xlora_classifier.safetensors, the classifier of"):
        load(AdapterOptions(xlora=str(tmp_path)))
