"""Tokenizer and template of a model folder: the choice of files, settings of the files beside it, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mistralrs.errors import LoadError
from mistralrs.loading.text_source import TextSource, choose_template
from mistralrs.text.builtin_templates import builtin_template
from mistralrs.text.tokenizer import Tokenizer
from tests.hub import COMMIT, Repository, serving
from tests.text.sentencepiece_bytes import PIECES, model
from tests.text.vocabularies import byte_level

WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>"]
HELLO = [{"role": "user", "content": "hello"}]
OWN = "own {{ messages[0].content }}"


def tokenizer_json() -> dict[str, Any]:
    """A byte-level one with four control tokens, as Hugging Face writes it."""
    fields: dict[str, Any] = json.loads(Tokenizer.from_gguf(byte_level())._backend.to_str())
    fields["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    return fields


def folder(path: Path, **files: object) -> Path:
    """A folder of the named files; ``__`` stands for the dot. Bytes and texts as they are, the rest as JSON."""
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        data = content if isinstance(content, bytes | str) else json.dumps(content)
        (path / name.replace("__", ".")).write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def with_json(path: Path, **files: object) -> Path:
    return folder(path, tokenizer__json=tokenizer_json(), **files)


def rendered(source: TextSource, place: Path, **options: Any) -> str:
    _, template = source.for_model(str(place), **options)
    assert template is not None
    return template.render(HELLO)


def marked(content: object, encoding: str) -> bytes:
    """With a byte-order mark."""
    text = content if isinstance(content, str) else json.dumps(content)
    return ("\ufeff" + text).encode(encoding)


# tokenizer


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be"])
def test_files_with_a_byte_order_mark_are_read(tmp_path: Path, encoding: str) -> None:
    place = folder(
        tmp_path / "model",
        tokenizer__json=marked(tokenizer_json(), encoding),
        tokenizer_config__json=marked({"eos_token": "<|im_sep|>"}, encoding),
        generation_config__json=marked({"eos_token_id": 1}, encoding),
        config__json=marked({"eos_token_id": 2}, encoding),
        chat_template__jinja=marked(OWN, encoding),
        mine__json=marked({"chat_template": "mine {{ messages[0].content }}"}, encoding),
        mine__jinja=marked("other {{ messages[0].content }}", encoding),
    )
    tokenizer, template = TextSource().for_model(str(place))
    assert (tokenizer.eos_id, tokenizer.eos_ids >= {1, 2, 3}) == (3, True)
    assert template is not None
    assert template.render(HELLO) == "own hello"
    for name, expected in (("mine.json", "mine hello"), ("mine.jinja", "other hello")):
        assert rendered(TextSource(chat_template=str(place / name)), place) == expected


def test_a_byte_order_mark_in_a_template_text_is_removed(tmp_path: Path) -> None:
    """As a `tokenizer_config.json` or a GGUF file may have taken it over from a file."""
    place = with_json(tmp_path, tokenizer_config__json={"chat_template": "\ufeff" + OWN})
    assert rendered(TextSource(), place) == "own hello"
    template = TextSource().template("\ufeff" + OWN, Tokenizer.from_gguf(byte_level()))
    assert template is not None
    assert template.render(HELLO) == "own hello"


def test_multimodal_models_may_have_files_of_their_own(tmp_path: Path) -> None:
    place = with_json(
        tmp_path, chat_template__json={"chat_template": OWN}, config__json={"text_config": {"eos_token_id": 2}}
    )
    assert rendered(TextSource(), place) == "own hello"
    tokenizer, _ = TextSource().for_model(str(place))
    assert 2 in tokenizer.eos_ids
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "mine {{ messages[0].content }}"}')
    assert rendered(TextSource(), place) == "mine hello"


def test_a_tokenizer_json_takes_priority_over_a_model(tmp_path: Path) -> None:
    tokenizer, template = TextSource().for_model(str(with_json(tmp_path, tokenizer__model=model())))
    assert tokenizer.vocab_size == 265
    assert template is None


def test_a_model_alone_is_enough(tmp_path: Path) -> None:
    tokenizer, _ = TextSource().for_model(str(folder(tmp_path, tokenizer__model=model())))
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_ids) == (len(PIECES), 1, {2})


def test_the_files_beside_a_model_add_tokens_and_ends(tmp_path: Path) -> None:
    count = len(PIECES)
    place = folder(
        tmp_path,
        tokenizer__model=model(),
        tokenizer_config__json={"eos_token": {"content": "<|end|>"}, "bos_token": "<s>", "add_bos_token": False},
        special_tokens_map__json={"additional_special_tokens": ["<|user|>"]},
        added_tokens__json={"<|end|>": count, "<|user|>": count + 1, "word": count + 2},
        generation_config__json={"eos_token_id": [count, count + 1]},
        config__json={"eos_token_id": 2},
    )
    tokenizer, _ = TextSource().for_model(str(place))
    assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.add_bos) == (count + 3, count, False)
    assert tokenizer.eos_ids == {2, count, count + 1}
    assert count + 1 not in tokenizer.encode("<|user|>", special=False)
    assert count + 2 in tokenizer.encode("word", special=False)


def test_the_named_tokenizer_takes_priority(tmp_path: Path) -> None:
    place = folder(tmp_path / "model", tokenizer__model=model(), tokenizer_config__json={"eos_token": "<|im_sep|>"})
    other = with_json(tmp_path / "other", tokenizer_config__json={"eos_token": "<|im_end|>"})
    by_file, _ = TextSource(tokenizer_json=other / "tokenizer.json").for_model(str(place))
    assert (by_file.vocab_size, by_file.eos_id) == (265, 3)
    by_folder, _ = TextSource(tok_model_id=str(other)).for_model(str(place))
    assert (by_folder.vocab_size, by_folder.eos_id) == (265, 2)


def test_a_gguf_may_take_the_tokenizer_model_of_a_folder(tmp_path: Path) -> None:
    place = folder(tmp_path, tokenizer__model=model(), config__json={"eos_token_id": 5})
    tokenizer = TextSource(tok_model_id=str(place)).tokenizer(byte_level())
    assert tokenizer.vocab_size == len(PIECES)
    assert tokenizer.eos_ids == {2}


@pytest.mark.parametrize("ids", [2, [2, 3], None, []])
def test_ends_come_from_ids_where_no_text_names_them(tmp_path: Path, ids: object) -> None:
    files = {
        "generation_config__json": {"eos_token_id": ids},
        "special_tokens_map__json": {"bos_token": "<|im_start|>"},
    }
    tokenizer, _ = TextSource().for_model(str(with_json(tmp_path, **files)))
    expected_ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
    assert tokenizer.eos_ids == {0, 2, *expected_ids}
    assert tokenizer.eos_id == next(iter(expected_ids), 0)
    assert tokenizer.bos_id == 1


def test_a_named_token_that_is_missing_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = with_json(tmp_path, tokenizer_config__json={"bos_token": "<s>", "eos_token": "<|im_end|>"})
    tokenizer, _ = TextSource().for_model(str(place))
    assert (tokenizer.bos_id, tokenizer.eos_id) == (None, 2)
    assert "has no token '<s>'; it is left out" in caplog.text


REFUSED: list[tuple[str, dict[str, object]]] = [
    ("has no tokenizer.json and no tokenizer.model", {}),
    ("is not a usable tokenizer.json", {"tokenizer__json": "{}"}),
    ("is not JSON", {"tokenizer__model": model(), "tokenizer_config__json": "{"}),
    ("is not JSON", {"tokenizer__model": model(), "tokenizer_config__json": "[" * 100_000}),
    ("is not UTF-8", {"tokenizer__model": model(), "tokenizer_config__json": b"\xff"}),
    ("is not a JSON object", {"tokenizer__model": model(), "generation_config__json": []}),
    ("eos_token_id is 'x'", {"tokenizer__model": model(), "generation_config__json": {"eos_token_id": "x"}}),
    ("eos_token_id is True", {"tokenizer__model": model(), "config__json": {"eos_token_id": True}}),
    (r"eos_token_id is \[-1\]", {"tokenizer__model": model(), "config__json": {"eos_token_id": [-1]}}),
    ("chat_template is not a text", {"tokenizer__model": model(), "tokenizer_config__json": {"chat_template": 3}}),
    ("does not compile", {"tokenizer__model": model(), "chat_template__jinja": "{% if %}"}),
]


@pytest.mark.parametrize(("reason", "files"), REFUSED, ids=[f"{i}" for i in range(len(REFUSED))])
def test_broken_files_are_refused(reason: str, files: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=reason):
        TextSource().for_model(str(folder(tmp_path, **files)))


def test_a_missing_tokenizer_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"none\.json does not exist"):
        TextSource(tokenizer_json=tmp_path / "none.json").for_model(str(with_json(tmp_path)))


# template


def test_the_order_of_templates(tmp_path: Path) -> None:
    config = {"chat_template": "config {{ messages[0].content }}"}
    place = with_json(tmp_path / "model", tokenizer_config__json=config)
    assert rendered(TextSource(), place, builtin="phi-2") == "config hello"
    folder(place, chat_template__jinja="jinja {{ messages[0].content }}")
    assert rendered(TextSource(), place) == "jinja hello"
    other = with_json(tmp_path / "other", tokenizer_config__json={"chat_template": "other {{ messages[0].content }}"})
    assert rendered(TextSource(tok_model_id=str(other)), place) == "other hello"
    assert rendered(TextSource(tok_model_id=str(other), chat_template=OWN), place) == "own hello"
    bare = with_json(tmp_path / "bare")
    assert rendered(TextSource(tok_model_id=str(bare)), place) == "jinja hello"


def test_several_named_templates(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tools, default = {"name": "tool_use", "template": "tools"}, {"name": "default", "template": "default"}
    place = with_json(tmp_path, tokenizer_config__json={"chat_template": [tools, default]})
    assert rendered(TextSource(), place) == "default"
    assert rendered(TextSource(), with_json(tmp_path, tokenizer_config__json={"chat_template": [tools]})) == "tools"
    assert TextSource().for_model(str(with_json(tmp_path, tokenizer_config__json={"chat_template": []})))[1] is None
    two = [tools, {"name": "rag", "template": "rag"}]
    assert TextSource().for_model(str(with_json(tmp_path, tokenizer_config__json={"chat_template": two})))[1] is None
    assert "chat templates named rag, tool_use and none named default" in caplog.text


def test_a_model_without_a_template_may_have_a_shipped_one(tmp_path: Path) -> None:
    place = with_json(tmp_path)
    assert TextSource().for_model(str(place))[1] is None
    assert rendered(TextSource(), place, builtin="phi-2") == "Instruct: hello\nOutput:"
    tokenizer, _ = TextSource().for_model(str(place))
    stand_in = TextSource().template(None, tokenizer, builtin="phi-2")
    assert stand_in is not None
    assert stand_in.source == builtin_template("phi-2")
    own = TextSource().template(OWN, tokenizer, builtin="phi-2")
    assert own is not None
    assert own.source == OWN


def test_a_template_gets_the_texts_of_tokens(tmp_path: Path) -> None:
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_sep|>", "chat_template": "{{ bos_token }}{{ eos_token }}"}
    assert rendered(TextSource(), with_json(tmp_path, tokenizer_config__json=config)) == "<|im_start|><|im_sep|>"


# --chat-template


def test_a_choice_is_a_file_a_name_or_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder(tmp_path, a__json={"chat_template": OWN}, b__jinja="{{ 1 }}"))
    assert choose_template("a.json").source == OWN
    assert choose_template("b.jinja").source == "{{ 1 }}"
    assert choose_template("{{ 2 }}").source == "{{ 2 }}"
    assert choose_template("chatml").source == builtin_template("chatml")
    folder(tmp_path, chatml="{{ 3 }}")
    assert choose_template("chatml").source == "{{ 3 }}"


def test_a_json_file_may_name_the_tokens(tmp_path: Path) -> None:
    fields = {"chat_template": "{{ bos_token }}|{{ eos_token }}", "bos_token": "<go>"}
    folder(tmp_path, a__json=fields)
    source = TextSource(chat_template=str(tmp_path / "a.json"))
    assert (
        rendered(source, with_json(tmp_path, tokenizer_config__json={"eos_token": "<|im_end|>"})) == "<go>|<|im_end|>"
    )


@pytest.mark.parametrize("choice", ["", "lama-2", "some words", "no/such/file", "x" * 5000, "none.json", "none.jinja"])
def test_an_invalid_choice_is_refused(choice: str) -> None:
    with pytest.raises(
        LoadError, match=r"does not exist|is no file, no Jinja text and no template that ships"
    ) as caught:
        choose_template(choice)
    assert "--chat-template takes" in str(caught.value.hint)


@pytest.mark.parametrize("fields", [{}, {"chat_template": 3}, {"chat_template": "{{ 1 }}", "bos_token": {}}])
def test_a_json_file_without_a_template_is_refused(fields: dict[str, object], tmp_path: Path) -> None:
    folder(tmp_path, a__json=fields)
    with pytest.raises(LoadError, match=r"a\.json: "):
        choose_template(str(tmp_path / "a.json"))


# hub


def test_a_repository_is_asked_once_and_only_for_what_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"eos_token": "<|im_end|>", "chat_template": OWN}
    files = {"tokenizer.json": json.dumps(tokenizer_json()), "tokenizer_config.json": json.dumps(config)}
    repository = Repository({name: text.encode() for name, text in files.items()}, revisions=("v1", COMMIT))
    with serving({"owner/chat": repository}, monkeypatch, tmp_path / "hub") as hub:
        assert rendered(TextSource(), Path("owner/chat@v1")) == "own hello"
        asked = {entry.path.rsplit("/", 1)[1] for entry in hub.asked if "/resolve/" in entry.path}
        assert asked == {*files, "chat_template.jinja", "generation_config.json", "config.json"}
        count = len(hub.asked)
        assert rendered(TextSource(), Path("owner/chat@v1")) == "own hello"
        assert len(hub.asked) == count


# response templates


def test_the_own_response_template_counts_most(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    declared = {"start_anchor": "X", "fields": {"thinking": {"open": "<mm>", "close": "</mm>"}}}
    hermes = "{{ messages[0].content }}<tool_call>"
    own = with_json(tmp_path / "own", tokenizer_config__json={"chat_template": hermes, "response_template": declared})
    broken = with_json(tmp_path / "broken", tokenizer_config__json={"chat_template": hermes, "response_template": {}})
    plain = with_json(tmp_path / "plain", tokenizer_config__json={"chat_template": OWN})

    def markers(place: Path, source: TextSource | None = None) -> frozenset[str] | None:
        source = source or TextSource()
        _, template = source.for_model(str(place))
        found = source.responses(template, place=str(place))
        return None if found is None else found.markers

    assert markers(own) == {"<mm>", "</mm>"}
    assert markers(plain) is None
    assert markers(plain, TextSource(tok_model_id=str(own))) == {"<mm>", "</mm>"}
    assert markers(plain, TextSource(chat_template=hermes)) == markers(broken)
    assert "<tool_call>" in (markers(broken) or ())
    assert "response_template: fields is no object" in caplog.text


def test_a_file_with_its_own_tokenizer_has_a_response_template_by_its_chat_template() -> None:
    tokenizer = Tokenizer.from_gguf(byte_level())
    template = TextSource().template("<tool_call>", tokenizer)
    found = TextSource().responses(template)
    assert found is not None
    assert found.has_tool_calls
    assert TextSource().responses(None) is None
