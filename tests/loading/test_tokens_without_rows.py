"""Tokens of a tokenizer that the model's embedding lacks: Gemma 3 1B's for images, padding added by fine-tuning.

`transformers` runs such models, and so does this project: the tokens are never sampled, and a prompt with one is
refused.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.local_model import LocalModel
from mistralrs.engine.config import Request, SamplingParams
from mistralrs.engine.events import Delta, Finished
from mistralrs.errors import LoadError, RequestError
from mistralrs.loading.describe import describe
from mistralrs.loading.quantize_model import quantize_model
from tests.architectures import VARIANTS, greedy, reference, write_folder
from tests.gguf_edits import edited
from tests.gguf_of import write_gguf
from tests.parity.running import Running, random_tokens
from tests.tiny import TOKENIZER_SIZE

EXTRA = "<image_soft_token>"
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
HELLO = [{"role": "user", "content": "the cat"}]

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def add_token(path: Path, text: str, *, id: int = TOKENIZER_SIZE, special: bool = True) -> None:
    """Appends tokens to a `tokenizer.json`, as fine-tuning does."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    fields["added_tokens"].append(fields["added_tokens"][0] | {"id": id, "content": text, "special": special})
    path.write_text(json.dumps(fields), encoding="utf-8")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("rows") / "plain", VARIANTS["gemma3"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With one token more than rows."""
    path = write_folder(tmp_path / "model", VARIANTS["gemma3"])
    add_token(path / "tokenizer.json", EXTRA)
    return path


def loaded(path: Path, **options: Any) -> LocalModel:
    source = ModelSource(architecture=None, path=path, repo=None, filename=None)
    return LocalModel.load(source, LoadOptions(threads=1, max_seqs=2, **options))


def answer(model: LocalModel, prompt: list[int], sampling: SamplingParams = GREEDY) -> list[int]:
    events = list(model.complete(prompt, sampling))
    assert isinstance(events[-1], Finished), events[-1]
    return [token for event in events if isinstance(event, Delta) for token in event.tokens]


def assert_refused_by_name(model: LocalModel, prompt: list[int]) -> None:
    with pytest.raises(RequestError, match=f"holds token {TOKENIZER_SIZE}, '{EXTRA}', for which this model") as refused:
        model.complete(prompt, GREEDY)
    assert refused.value.hint


def test_a_folder_runs_as_in_transformers(folder: Path) -> None:
    with loaded(folder, precision="f32") as model:
        assert (model.vocab_size, model.tokenizer.vocab_size) == (TOKENIZER_SIZE, TOKENIZER_SIZE + 1)
        prompt = list(model.tokens_of(HELLO))
        assert answer(model, prompt) == greedy(reference(folder), prompt, count=12)
        assert_refused_by_name(model, [1, TOKENIZER_SIZE])
        assert_refused_by_name(model, model.tokenizer.encode(f"a {EXTRA} b", special=True))
        # a user's words never become control tokens
        assert answer(model, list(model.tokens_of([{"role": "user", "content": EXTRA}])))


def test_a_template_that_writes_it_is_refused_by_name(folder: Path) -> None:
    message = f"holds token {TOKENIZER_SIZE}, '{EXTRA}'"
    template = "{{ messages[0].content }}" + EXTRA
    with loaded(folder, chat_template=template) as model, pytest.raises(RequestError, match=message):
        model.chat(HELLO, GREEDY)


def test_it_is_never_sampled(folder: Path) -> None:
    with loaded(folder) as model:
        for seed in range(4):
            tokens = answer(model, [1, 5], SamplingParams(temperature=50.0, max_tokens=60, ignore_eos=True, seed=seed))
            assert max(tokens) < TOKENIZER_SIZE
        with pytest.raises(RequestError, match="logit_bias names token"):
            model.engine.submit(Request((1,), SamplingParams(logit_bias=((TOKENIZER_SIZE, 50.0),))))


def test_an_end_without_a_row_is_ignored(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also with ``min_tokens``, which bans end tokens at first."""
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"eos_token": EXTRA}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 10**6}))
    with loaded(folder) as model:
        assert model.tokenizer.eos_ids >= {TOKENIZER_SIZE, 10**6}
        assert answer(model, [1, 5], SamplingParams(temperature=0.0, max_tokens=5, min_tokens=5))
    assert "none ends before its limit" not in caplog.text  # <|im_end|> has a row


def test_the_tokenizer_may_be_named(plain: Path, folder: Path, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "plain.gguf", plain)
    for path in (plain, file):
        with loaded(path, tokenizer_json=folder / "tokenizer.json") as model:
            assert_refused_by_name(model, model.tokenizer.encode(EXTRA, special=True))
            assert answer(model, [1, 5])


def test_a_gguf_file_may_have_a_token_too_many(plain: Path, tmp_path: Path) -> None:
    def more(metadata: dict[str, Any], tensors: dict[str, Any]) -> None:
        metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], EXTRA]
        metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], gguf.TokenType.CONTROL]

    path = edited(write_gguf(tmp_path / "plain.gguf", plain), tmp_path / "more.gguf", more)
    with loaded(path) as model:
        assert_refused_by_name(model, model.tokenizer.encode(EXTRA, special=True))
        assert answer(model, [1, 5])


def test_quantize_leaves_it_out(folder: Path, plain: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """llama.cpp reads a file only if it has as many tokens as rows."""
    add_token(folder / "tokenizer.json", "word", id=TOKENIZER_SIZE + 1, special=False)
    quantize_model(folder, tmp_path / "out.gguf", "q8_0")
    assert f"the model has no embedding for '{EXTRA}', 'word': the GGUF file does not have these" in caplog.text
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    rows = next(tensor for tensor in reader.tensors if tensor.name == "token_embd.weight").shape[1]
    assert len(reader.fields["tokenizer.ggml.tokens"].contents()) == rows == TOKENIZER_SIZE
    tokens = random_tokens(TOKENIZER_SIZE, 40, seed=3)
    found = Running.load(tmp_path / "out.gguf")
    assert torch.equal(found.whole(tokens), Running.load(folder, isq="q8_0").whole(tokens))
    assert found.model.tokenizer.encode("the cat", special=True) == found.model.tokenizer.encode(
        "the cat", special=False
    )


def test_inspect_checks_as_loading_does(folder: Path) -> None:
    model = describe(folder)
    assert (model.vocab_size, model.text.size) == (TOKENIZER_SIZE, TOKENIZER_SIZE + 1)
    fields = json.loads((folder / "tokenizer.json").read_text())
    fields["added_tokens"].pop()
    fields["model"]["vocab"]["thein"] = TOKENIZER_SIZE
    (folder / "tokenizer.json").write_text(json.dumps(fields))
    for load in (describe, loaded):
        with pytest.raises(LoadError, match="1 of the others are words or pieces of words") as refused:
            load(folder)
        assert refused.value.hint == "the tokenizer belongs to another model"


def test_a_model_without_any_end_logs_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    fields = json.loads((folder / "tokenizer.json").read_text())
    for token in fields["added_tokens"]:
        token["content"] = token["content"].replace("<|im_end|>", "<|stop|>").replace("<|endoftext|>", "<|none|>")
    fields["model"]["vocab"] = {
        text.replace("<|im_end|>", "<|stop|>").replace("<|endoftext|>", "<|none|>"): id
        for text, id in fields["model"]["vocab"].items()
    }
    (folder / "tokenizer.json").write_text(json.dumps(fields))
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"eos_token": EXTRA, "unk_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = json.loads((folder / "config.json").read_text()) | {"eos_token_id": TOKENIZER_SIZE}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").unlink()
    with caplog.at_level(logging.WARNING), loaded(folder) as model:
        assert answer(model, [1, 5])
    assert "none ends before its limit" in caplog.text
