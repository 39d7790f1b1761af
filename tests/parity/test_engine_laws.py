"""Laws from the engine's door down to the kernels: what a request gets does not depend on how it was served.

Answers are compared token by token, with the log-probabilities of the best tokens beside them: two answers are the same
when all of these are, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.local_model import LocalModel
from mistralrs.engine.config import SamplingParams
from mistralrs.engine.events import Delta, Finished, Stream, TokenLogprob, Usage
from mistralrs.loading.gguf_file import GgufFile
from mistralrs.ops.kv_groups import max_blocks_per_seq
from tests.architectures import VARIANTS, WINDOW, write_folder
from tests.tiny import StorageTypes, TinyConfig, write_tiny

pytestmark = pytest.mark.native

GREEDY = SamplingParams(temperature=0.0, max_tokens=24, logprobs=5, ignore_eos=True)
DRAWN = SamplingParams(temperature=0.9, top_p=0.95, seed=11, max_tokens=24, logprobs=5, ignore_eos=True)
QUESTIONS = (
    "What is the capital of France?",
    "Count from one to ten, in words, and say what comes next.",
    "Hi",
    "Tell me in two sentences why the sky is blue and the grass is green, and what a rainbow has to do with it. " * 3,
)
Load = Callable[..., LocalModel]


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    reason: str


def collect(stream: Stream) -> tuple[Answer, Usage]:
    deltas: list[Delta] = []
    for event in stream:
        if isinstance(event, Finished):
            return (
                Answer(
                    "".join(delta.text for delta in deltas),
                    tuple(token for delta in deltas for token in delta.tokens),
                    tuple(logprob for delta in deltas for logprob in delta.logprobs),
                    event.reason,
                ),
                event.usage,
            )
        assert isinstance(event, Delta), event
        deltas.append(event)
    raise AssertionError("the stream ended without an end")


def ask(model: LocalModel, text: str, sampling: SamplingParams) -> tuple[Answer, Usage]:
    return collect(model.chat([{"role": "user", "content": text}], sampling))


def ask_all(model: LocalModel, texts: Sequence[str], sampling: SamplingParams) -> list[Answer]:
    """All at once; the engine batches them."""
    streams = [model.chat([{"role": "user", "content": text}], sampling) for text in texts]
    return [collect(stream)[0] for stream in streams]


@pytest.fixture(scope="module", params=["tiny", "windowed", "mixed", pytest.param("default", marks=pytest.mark.model)])
def model_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A window in no layer, in all, and in half of them."""
    if request.param == "default":
        path: Path = request.getfixturevalue("default_model")
        return path
    if request.param != "tiny":
        variant = VARIANTS[{"windowed": "mistral", "mixed": "qwen2-window"}[request.param]]
        return write_folder(tmp_path_factory.mktemp("laws") / request.param, variant)
    config = TinyConfig(types=StorageTypes.all("Q8_0"), context=1024)
    return write_tiny(tmp_path_factory.mktemp("laws") / "tiny.gguf", config).path


@pytest.fixture(scope="module")
def load(model_path: Path) -> Load:
    def load(**options: Any) -> LocalModel:
        return LocalModel.load(
            ModelSource(None, model_path, None, None),
            replace(LoadOptions(threads=2, prefix_cache_n=0), **options),
        )

    return load


@pytest.fixture(scope="module")
def model(load: Load) -> Iterator[LocalModel]:
    """Without a prefix cache: every request is computed from its first token."""
    with load() as model:
        yield model


@pytest.fixture(scope="module")
def expected(model: LocalModel) -> dict[SamplingParams, list[Answer]]:
    """Every question asked alone."""
    return {sampling: [ask(model, text, sampling)[0] for text in QUESTIONS] for sampling in (GREEDY, DRAWN)}


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_in_a_batch_is_alone(
    model: LocalModel, expected: dict[SamplingParams, list[Answer]], sampling: SamplingParams
) -> None:
    assert ask_all(model, QUESTIONS, sampling) == expected[sampling]
    assert ask_all(model, [*QUESTIONS[::-1], *QUESTIONS], sampling) == [*expected[sampling][::-1], *expected[sampling]]


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_drafts_change_no_answer(
    load: Load, model: LocalModel, sampling: SamplingParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone and in company, with right and wrong draft tokens; the questions make the answers repeat themselves."""
    monkeypatch.setattr("mistralrs.engine.engine_core.DraftGain", lambda: None)  # by measured times there may be none
    monkeypatch.setattr("mistralrs.engine.multi_step.MAX_STEPS", 1)  # steps in a row miss them
    texts = [f"{text} Say it again: {text}" for text in QUESTIONS[:3]]
    longer = replace(sampling, max_tokens=80)
    expected = [ask(model, text, longer)[0] for text in texts]
    # others leave the way that earlier answers propose
    others = [replace(DRAWN, temperature=heat, max_tokens=80) for heat in (0.3, 2.0)]
    expected_others = [[ask(model, text, other)[0] for text in texts] for other in others]
    for max_draft in (1, 15):
        with load(max_draft=max_draft) as drafting:
            assert [ask(drafting, text, longer)[0] for text in texts] == expected
            assert ask_all(drafting, texts, longer) == expected
            assert [ask_all(drafting, texts, other) for other in others] == expected_others
            stats = drafting.stats()
            assert stats.drafted_tokens > stats.accepted_tokens
            assert stats.accepted_tokens > 0 or sampling is DRAWN


def test_asked_again_is_asked_once(model: LocalModel, expected: dict[SamplingParams, list[Answer]]) -> None:
    assert [ask(model, text, GREEDY)[0] for text in QUESTIONS] == expected[GREEDY]


def test_seeds_differ(model: LocalModel, expected: dict[SamplingParams, list[Answer]]) -> None:
    """Checks that drawn answers differ at all, which gives their equality a meaning."""
    answers = {ask(model, QUESTIONS[1], replace(DRAWN, seed=seed))[0].tokens for seed in range(4)}
    assert len(answers) > 1


def test_in_chunks_is_whole(load: Load, expected: dict[SamplingParams, list[Answer]]) -> None:
    with load(max_batch_tokens=17) as model:
        assert ask_all(model, QUESTIONS, GREEDY) == expected[GREEDY]


def test_without_a_cache_is_with_one(load: Load, expected: dict[SamplingParams, list[Answer]]) -> None:
    with load(no_kv_cache=True) as model:
        assert [ask(model, text, GREEDY)[0] for text in QUESTIONS[:2]] == expected[GREEDY][:2]


def test_a_hit_is_a_miss(load: Load, expected: dict[SamplingParams, list[Answer]]) -> None:
    with load(prefix_cache_n=16) as model:
        for sampling in (GREEDY, DRAWN):
            for text, answer in zip(QUESTIONS, expected[sampling], strict=True):
                ask(model, text, sampling)
                again, usage = ask(model, text, sampling)
                assert again == answer
                assert usage.cached_tokens == (usage.prompt_tokens - 1) // 16 * 16


def test_what_a_stopped_engine_computed_is_computed(
    load: Load, expected: dict[SamplingParams, list[Answer]], tmp_path: Path
) -> None:
    """Also where some of what it left is damaged."""
    for damage in (False, False, True):
        with load(prefix_cache_n=16, kv_dir=tmp_path) as model:
            results = [ask(model, text, GREEDY) for text in QUESTIONS]
        assert [answer for answer, _ in results] == expected[GREEDY]
        files = sorted(tmp_path.glob("*/*.kv"))
        assert files
        for path in files[:: 2 if damage else len(files)]:
            path.write_bytes(path.read_bytes()[:-1])
    assert sum(usage.cached_tokens for _, usage in results) > 0
    with load(prefix_cache_n=16, kv_dir=tmp_path, precision="high") as other:  # what it left is not for this one
        assert ask(other, QUESTIONS[3], GREEDY)[1].cached_tokens == 0


def test_what_another_model_left_is_not_found(tmp_path: Path) -> None:
    """Also where it differs in one byte of a key projection, far from both ends of it; its answers were wrong."""
    paths = [tmp_path / name for name in ("one.gguf", "two.gguf")]
    config = TinyConfig(hidden=256, head_dim=64, feed_forward=256, context=1024)
    data = bytearray(write_tiny(paths[0], config).path.read_bytes())
    with GgufFile.open(paths[0]) as file:
        _, start = file.place("blk.0.attn_k.weight")
    data[start + 65536 + 3] ^= 0x40  # the exponent of a float
    paths[1].write_bytes(data)

    def answers(path: Path, **options: Any) -> list[tuple[Answer, Usage]]:
        with LocalModel.load(ModelSource(None, path, None, None), LoadOptions(threads=2, **options)) as model:
            return [ask(model, QUESTIONS[3], GREEDY) for _ in range(2)]

    [first, hit], [second, _] = (answers(path, kv_dir=tmp_path / "kv") for path in paths)
    assert hit[1].cached_tokens > 64
    assert second[1].cached_tokens == 0
    assert second[0] == answers(paths[1])[0][0]
    assert second[0] != first[0]
    again = answers(paths[0], kv_dir=tmp_path / "kv")[0]
    assert (again[0], again[1].cached_tokens) == (first[0], hit[1].cached_tokens)


def test_what_is_asked_at_once_is_computed_once(load: Load, expected: dict[SamplingParams, list[Answer]]) -> None:
    with load(prefix_cache_n=16, max_batch_tokens=17) as model:
        streams = [model.chat([{"role": "user", "content": QUESTIONS[3]}], GREEDY) for _ in range(4)]
        results = [collect(stream) for stream in streams]
    assert [answer for answer, _ in results] == [expected[GREEDY][3]] * 4
    shared = (results[0][1].prompt_tokens - 1) // 16 * 16
    assert [usage.cached_tokens for _, usage in results] == [0, shared, shared, shared]


def test_the_second_turn_computes_what_is_new(load: Load, model: LocalModel) -> None:
    messages = [{"role": "user", "content": QUESTIONS[0]}]
    with load(prefix_cache_n=16) as cached:
        answer, usage = collect(cached.chat(messages, GREEDY))
        assert usage.cached_tokens == 0
        messages += [{"role": "assistant", "content": answer.text}, {"role": "user", "content": QUESTIONS[2]}]
        second, usage_of_second = collect(cached.chat(messages, GREEDY))
        assert usage_of_second.cached_tokens >= (usage.prompt_tokens - 1) // 16 * 16
        assert usage_of_second.cached_tokens > 0
    assert second == collect(model.chat(messages, GREEDY))[0]


with_windows = pytest.mark.parametrize("model_path", ["windowed", "mixed"], indirect=True)


@with_windows
def test_a_long_answer_needs_few_blocks(load: Load, model: LocalModel) -> None:
    """Twenty times as long as the window, in a pool that holds three times the window."""
    sampling = replace(GREEDY, max_tokens=20 * WINDOW)
    answer = ask(model, QUESTIONS[0], sampling)[0]
    assert len(answer.tokens) == 20 * WINDOW
    with load(max_seqs=1, max_batch_tokens=17) as small:
        blocks = [group.num_blocks for group in small.engine.config.kv_groups if group.window]
        assert blocks == [max_blocks_per_seq(512, window=WINDOW, step=17, block_size=16)] == [4]
        assert ask(small, QUESTIONS[0], sampling)[0] == answer


@with_windows
def test_a_long_answer_without_a_cache(load: Load, model: LocalModel) -> None:
    sampling = replace(GREEDY, max_tokens=4 * WINDOW)
    with load(max_seqs=1, max_batch_tokens=17, no_kv_cache=True) as small:
        assert ask(small, QUESTIONS[1], sampling)[0] == ask(model, QUESTIONS[1], sampling)[0]


@with_windows
def test_clients_share_a_long_beginning(load: Load, model: LocalModel) -> None:
    """Many windows long; while the first of them is at work, and after it."""
    system = {"role": "system", "content": QUESTIONS[3]}
    chats = [[system, {"role": "user", "content": f"{number} {QUESTIONS[0]}"}] for number in range(8)]
    sampling = replace(GREEDY, max_tokens=3 * WINDOW)
    with load(prefix_cache_n=4, max_batch_tokens=17) as sharing:
        streams = [sharing.chat(chat, sampling) for chat in chats]
        results = [collect(stream) for stream in streams]
        again, usage = collect(sharing.chat(chats[0], sampling))
    expected = [collect(model.chat(chat, sampling))[0] for chat in chats]
    assert [*(answer for answer, _ in results), again] == [*expected, expected[0]]
    # The second may come while the first computes the end of what they share.
    shared = len(model.tokens_of([system])) - 3 * 16
    assert shared > 9 * WINDOW
    first, *others = [usage.cached_tokens for _, usage in results]
    assert first == 0
    assert min(*others, usage.cached_tokens) >= shared


def test_streamed_text_is_the_text_of_the_tokens(
    model: LocalModel, expected: dict[SamplingParams, list[Answer]]
) -> None:
    for answer in expected[GREEDY] + expected[DRAWN]:
        assert answer.reason == "length"
        assert len(answer.tokens) == 24
        assert answer.text == model.tokenizer.decode(answer.tokens)


@pytest.mark.parametrize("precision", ["default", "high"])
def test_loaded_again_is_loaded_once(load: Load, precision: str) -> None:
    """In every precision, and with another number of threads."""
    answers = []
    for threads in (2, 1):
        with load(precision=precision, threads=threads) as model:
            answers.append(ask_all(model, QUESTIONS[:2], GREEDY))
    assert answers[0] == answers[1]


@pytest.mark.parametrize("model_path", ["tiny", "mixed"], indirect=True)
def test_the_laws_hold_in_q8_0(load: Load, expected: dict[SamplingParams, list[Answer]], tmp_path: Path) -> None:
    """Alone on one thread, in a batch, in chunks, with draft tokens, and with blocks that another engine wrote."""
    with load(kv_cache_dtype="q8_0", max_draft=0, threads=1) as model:
        alone = [ask(model, text, GREEDY)[0] for text in QUESTIONS]
    assert alone != expected[GREEDY]
    kept = {"prefix_cache_n": 16, "kv_dir": tmp_path}
    for options in ({"max_batch_tokens": 17}, {"max_draft": 7}, kept):
        with load(kv_cache_dtype="q8_0", **options) as model:
            assert ask_all(model, QUESTIONS, GREEDY) == alone
    for dtype, is_hit in (("q8_0", True), ("f16", False)):
        with load(kv_cache_dtype=dtype, **kept) as model:
            answer, usage = ask(model, QUESTIONS[3], GREEDY)
        assert (usage.cached_tokens > 0, answer == alone[3]) == (is_hit, is_hit)


def test_the_default_model_names_paris(default_model: Path) -> None:
    """With the sampling that the command line asks for when nobody says otherwise."""
    sampling = SamplingParams(
        temperature=0.1, top_k=32, top_p=0.1, frequency_penalty=0.1, presence_penalty=0.1, max_tokens=128, seed=1
    )
    with LocalModel.load(ModelSource(None, default_model, None, None), LoadOptions(threads=2)) as model:
        answer, usage = ask(model, "What is the capital of France?", sampling)
    assert "Paris" in answer.text
    assert answer.reason == "stop"
    assert usage.completion_tokens == len(answer.tokens) + 1
