"""A model in this process: what it says of itself, what it refuses, and that it ends when it is asked to."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mistralrs.api.engine_start import MAX_DRAFT
from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.local_model import LocalModel
from mistralrs.engine.config import SamplingParams
from mistralrs.engine.events import Delta, Finished
from mistralrs.errors import ContextLengthError, LoadError, MistralrsError, RequestError, UsageError
from tests.tiny import TinyConfig, write_tiny

HELLO = [{"role": "user", "content": "hello"}]
GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)


def source(path: Path, architecture: str | None = None) -> ModelSource:
    return ModelSource(architecture, path, None, None)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("local") / "tiny.gguf", TinyConfig(context=128)).path


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[LocalModel]:
    with LocalModel.load(source(path), LoadOptions(threads=1)) as model:
        yield model


@pytest.mark.native
def test_info(model: LocalModel, path: Path) -> None:
    info = model.info
    assert (info.name, info.architecture, info.quantization, info.context_length) == ("tiny", "llama", "F32", 128)
    assert (info.threads, info.unavailable_backends) == (1, ())
    assert info.backend.startswith("cpu ")
    assert info.file_bytes == path.stat().st_size
    assert info.load_s > 0
    assert (
        info.kv_bytes == 16 * 128 * 2 * 2 * 2 * 16 * 2
    )  # sequences, tokens, layers, KV heads, k and v, head_dim, half
    assert info.kv_token_bytes == 2 * 2 * 2 * 16 * 2
    assert info.kv_cache_dtype in ("f16", "bf16")
    assert model.has_template


@pytest.mark.native
def test_drafts_are_made_where_they_cannot_change_an_answer(model: LocalModel, path: Path) -> None:
    """The reference backend adds up in an order that depends on the batch, so there they must be asked for."""
    assert model.engine.config.max_draft == MAX_DRAFT > 0
    for isa, asked, made in (("torch", None, 0), ("torch", 3, 3), (None, 0, 0)):
        with LocalModel.load(source(path), LoadOptions(threads=1, isa=isa, max_draft=asked)) as other:
            assert other.engine.config.max_draft == made


def test_count_is_what_chat_sends(model: LocalModel) -> None:
    events = list(model.chat(HELLO, GREEDY))
    end = events[-1]
    assert isinstance(end, Finished)
    assert end.usage.prompt_tokens == model.count(HELLO) == len(model.tokens_of(HELLO))
    assert sum(len(event.tokens) for event in events if isinstance(event, Delta)) == 8


def test_complete_continues_ids(model: LocalModel) -> None:
    *deltas, end = model.complete(model.tokens_of(HELLO), GREEDY)
    chatted = [event for event in model.chat(HELLO, GREEDY) if isinstance(event, Delta)]
    assert [t for d in deltas if isinstance(d, Delta) for t in d.tokens] == [t for d in chatted for t in d.tokens]
    assert isinstance(end, Finished)
    assert end.reason == "length"


def test_the_context_is_a_limit(model: LocalModel) -> None:
    long = [{"role": "user", "content": "x" * 200}]
    with pytest.raises(ContextLengthError, match="128 tokens"):
        model.chat(long, GREEDY)
    *_, end = model.chat(long, GREEDY, truncate=True)
    assert isinstance(end, Finished)
    assert end.usage.prompt_tokens < 128
    with pytest.raises(RequestError):
        model.complete([], GREEDY)
    with pytest.raises(RequestError):
        model.complete([10**6], GREEDY)


def test_cancelling_ends_the_stream(tmp_path: Path) -> None:
    # an answer that lasts for seconds: on a busy machine a short one is over before its first piece is read
    file = write_tiny(tmp_path / "tiny.gguf", TinyConfig(context=8192)).path
    with LocalModel.load(source(file), LoadOptions(threads=1)) as model:
        *_, end = _cancelled_after_one(model.chat(HELLO, SamplingParams(temperature=0.0, ignore_eos=True)))
    assert isinstance(end, Finished)
    assert end.reason == "cancelled"


def _cancelled_after_one(stream: object) -> list[object]:
    events: list[object] = []
    for event in stream:  # type: ignore[attr-defined]
        events.append(event)
        stream.cancel()  # type: ignore[attr-defined]
    return events


def test_threads_may_ask_at_once(model: LocalModel) -> None:
    answers: list[list[int]] = []

    def ask() -> None:
        answers.append([t for e in model.chat(HELLO, GREEDY) if isinstance(e, Delta) for t in e.tokens])

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == 6
    assert all(answer == answers[0] for answer in answers)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (LoadOptions(isa="sse9"), UsageError, "sse9"),
        (LoadOptions(chat_template="absent.jinja"), LoadError, "absent.jinja does not exist"),
        (LoadOptions(tokenizer_json=Path("absent.json")), LoadError, "absent.json does not exist"),
        (LoadOptions(token_source="nonsense"), MistralrsError, "--token-source"),
    ],
)
def test_what_cannot_be_loaded(path: Path, options: LoadOptions, error: type[MistralrsError], message: str) -> None:
    with pytest.raises(error, match=message):
        LocalModel.load(source(path), options)


def test_the_architecture_must_be_the_one_asked_for(path: Path) -> None:
    with pytest.raises(LoadError, match="not 'gemma'"):
        LocalModel.load(source(path, "gemma"), LoadOptions(threads=1))
    for name in ("llama", "mistral"):  # GGUF files call both llama
        LocalModel.load(source(path, name), LoadOptions(threads=1)).close()


def test_a_source_must_name_something() -> None:
    with pytest.raises(LoadError, match="neither a file nor a repository"):
        LocalModel.load(ModelSource(None, None, None, None), LoadOptions())


def test_without_a_template_there_is_no_chat(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf").path
    data = path.read_bytes()
    assert data.count(b"tokenizer.chat_template") == 1
    path.write_bytes(data.replace(b"tokenizer.chat_template", b"tokenizer.chat_templatE"))
    with LocalModel.load(source(path), LoadOptions(threads=1)) as model:
        assert not model.has_template
        with pytest.raises(RequestError, match="tiny has no chat template") as caught:
            model.chat(HELLO, GREEDY)
        assert "--chat-template" in (caught.value.hint or "")
        assert isinstance(list(model.complete([1, 2, 3], GREEDY))[-1], Finished)


def test_progress_is_told(path: Path) -> None:
    seen: list[str] = []
    LocalModel.load(source(path), LoadOptions(threads=1), progress=lambda what, done, total: seen.append(what)).close()
    assert "weights" in seen


def test_a_closed_model_leaves_no_thread(path: Path) -> None:
    before = set(threading.enumerate())
    model = LocalModel.load(source(path), LoadOptions(threads=1))
    list(model.chat(HELLO, GREEDY))
    model.close()
    model.close()
    del model
    gc.collect()
    deadline = time.monotonic() + 60
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(threading.enumerate()) <= before
