"""A model with a draft model: the same answers, memory for both, and no foreign vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.local_model import LocalModel
from mistralrs.api.python_api.runner import Runner
from mistralrs.api.selectors.which import Which
from mistralrs.engine.config import SamplingParams
from mistralrs.engine.events import Delta, Stream
from mistralrs.errors import LoadError
from mistralrs.grammar.grammar_text import GrammarText
from tests.gguf_edits import edited
from tests.tiny import DEFAULT, TOKENIZER_SIZE, TinyConfig, write_tiny

GREEDY = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
SAMPLED = replace(GREEDY, temperature=0.9, top_p=0.95, seed=7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The target, a draft model of one layer, and one whose vocabulary is padded."""
    folder = tmp_path_factory.mktemp("draft")
    write_tiny(folder / "target.gguf", TinyConfig(layers=3))
    write_tiny(folder / "small.gguf", TinyConfig(layers=1))
    write_tiny(folder / "padded.gguf", TinyConfig(layers=1, vocab=TOKENIZER_SIZE + 9))
    return folder


def load(folder: Path, draft: str | None = None, *, target: str = "target", **options: Any) -> LocalModel:
    model = None if draft is None else source(folder / f"{draft}.gguf")
    return LocalModel.load(
        source(folder / f"{target}.gguf"), LoadOptions(**{"threads": 2, **options}, draft_model=model)
    )


def source(path: Path) -> ModelSource:
    return ModelSource(None, path, None, None)


def tokens_of(stream: Any) -> list[int]:
    assert isinstance(stream, Stream)
    return [token for event in stream if isinstance(event, Delta) for token in event.tokens]


def answers(model: LocalModel) -> list[list[int]]:
    """Greedy and drawn, one by one and together, with a grammar too."""
    prompts = [model.tokenizer.encode(text * 9, special=False) for text in ("the sea and ", "of one winter, ", "a is ")]
    alone = [tokens_of(model.complete(prompts[0], sampling)) for sampling in (GREEDY, SAMPLED)]
    running = [model.complete(prompt, replace(SAMPLED, seed=seed)) for seed, prompt in enumerate(prompts)]
    grammar = GrammarText("regex", "[a-f ]{25}!")
    running.append(model.chat([{"role": "user", "content": "hi"}], SAMPLED, grammar=grammar))  # type: ignore[arg-type]
    return [*alone, *map(tokens_of, running)]


@pytest.fixture(scope="module")
def expected(folder: Path) -> Iterator[list[list[int]]]:
    with load(folder, max_draft=0, prefix_cache_n=0) as model:
        yield answers(model)


@pytest.mark.native
@pytest.mark.parametrize("draft", ["small", "target", "padded"])
@pytest.mark.parametrize("weighs", [True, False])
def test_answers_have_the_same_bits(
    folder: Path, expected: list[list[int]], draft: str, weighs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not weighs:  # as many draft tokens as there is room for
        monkeypatch.setattr("mistralrs.engine.engine_core.DraftGain", lambda: None)
    with load(folder, draft) as model:
        assert answers(model) == expected
        stats = model.stats()
        assert stats.drafted_tokens > 0
        if draft == "target" and not weighs:
            assert stats.accepted_tokens > 0.9 * stats.drafted_tokens - 20  # the grammar's are others


@pytest.mark.native
def test_a_target_whose_vocabulary_is_padded(folder: Path) -> None:
    """A draft model without the tokens of the padding serves, also where a request names them."""
    biased = replace(SAMPLED, logit_bias=((TOKENIZER_SIZE + 3, 5.0), (40, 1.0)), stop_token_ids=(TOKENIZER_SIZE + 4,))
    found = []
    for draft in (None, "small"):
        with load(folder, draft, target="padded", max_draft=5) as model:
            prompt = model.tokenizer.encode("the sea and the sea", special=False)
            found.append([tokens_of(model.complete(prompt, each)) for each in (SAMPLED, biased)])
    assert found[0] == found[1]


def test_a_foreign_vocabulary_is_refused_by_name(folder: Path) -> None:
    def swap(metadata: dict[str, Any], tensors: dict[str, Any]) -> None:
        tokens = metadata["tokenizer.ggml.tokens"]
        tokens[70], tokens[71] = tokens[71], tokens[70]

    def lacks_last(metadata: dict[str, Any], tensors: dict[str, Any]) -> None:
        for name in ("tokens", "token_type"):
            metadata[f"tokenizer.ggml.{name}"] = metadata[f"tokenizer.ggml.{name}"][:-1]
        metadata["tokenizer.ggml.merges"] = metadata["tokenizer.ggml.merges"][:-1]
        tensors["token_embd.weight"] = tensors["token_embd.weight"][:-1]

    for name, edit, said in (
        (
            "swapped",
            swap,
            r"swapped.gguf has another vocabulary: token 70 is '.' in .*swapped.gguf and '.' in .*target",
        ),
        ("shorter", lacks_last, rf"token {TOKENIZER_SIZE - 1} is missing in .*shorter.gguf and ' b' in .*target"),
    ):
        edited(folder / "small.gguf", folder / f"{name}.gguf", edit)
        with pytest.raises(LoadError, match=said) as refused:
            load(folder, name)
        assert "same family" in str(refused.value.hint)


def test_memory_of_both_is_planned_before_it_is_taken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(folder, kv_memory=1 << 20) as model:
        alone = model.info.kv_bytes
    with load(folder, "small", kv_memory=1 << 20) as model:
        own = model.info.kv_bytes
        drafting = model.engine._core._draft_model
        assert drafting is not None
        blocks = drafting.blocks.num_blocks
    block_bytes = 16 * DEFAULT.kv_heads * 2 * DEFAULT.head_dim * 2  # of one layer, in halves
    assert own < alone <= 1 << 20
    assert 0 < blocks * block_bytes <= (1 << 20) - own
    assert own / (3 * block_bytes) == pytest.approx(blocks, abs=2)  # as many tokens
    monkeypatch.setattr("mistralrs.loading.pipeline.available_bytes", lambda: 600_000)
    with pytest.raises(LoadError, match=r"the weights take .* and the draft model .* of memory are free") as refused:
        load(folder, "small")
    assert "--draft-model" in str(refused.value.hint)


def test_a_runner_takes_a_draft_model(folder: Path) -> None:
    which = Which.Auto(source=str(folder / "target.gguf"))
    with Runner(which, draft_model=folder / "small.gguf", threads=1) as runner:
        assert runner.loaded.model.engine._core._draft_model is not None
    with pytest.raises(LoadError, match="nothing"):
        Runner(which, draft_model=str(folder / "nothing.gguf"))
