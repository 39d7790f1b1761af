"""Tokenizers run in this process only if they are known to be fast; worker processes give the same ids."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from mistralrs.errors import LoadError, RequestError
from mistralrs.text.components import QUICK_BYTES, QUICK_BYTES_SQUARED, Components
from mistralrs.text.pretokenizers import PRETOKENIZERS
from mistralrs.text.tokenizer import Tokenizer
from tests.text.test_token_bound import hostile_texts
from tests.text.vocabularies import byte_level, sentence_piece

HANG_S = 20.0
RUNS = ("7", " ", "a", "!", "\n", " \n", "A", "一", "'s", "\t", "e\u0301", "a ", "Aa", "7.", "IMGIMGA", "가")


def fields(**parts: Any) -> dict[str, Any]:
    own: dict[str, Any] = json.loads(Tokenizer.from_gguf(byte_level())._backend.to_str())
    own["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    return {**own, **parts}


def split(pattern: str) -> dict[str, Any]:
    letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [cut, letters]}


def framed(**specials: Any) -> dict[str, Any]:
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    single = [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, sequence]
    pair = [sequence, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": specials}


BOS = {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}}
NESTED: dict[str, Any] = {"type": "Sequence", "normalizers": []}
for _ in range(20):
    NESTED = {"type": "Sequence", "normalizers": [NESTED]}


@pytest.mark.parametrize("pre", {row.patterns: name for name, row in PRETOKENIZERS.items()}.values())
def test_the_known_patterns_are_fast_on_runs_of_characters(pre: str) -> None:
    tokenizer = Tokenizer.from_gguf(byte_level(pre=pre))
    size = tokenizer.quick_bytes
    assert size == (QUICK_BYTES_SQUARED if pre in ("tiny_aya", "cohere2moe", "deepseek-llm") else QUICK_BYTES)
    for run in (*RUNS, " " * (size - 1) + "x"):
        started = time.process_time()
        text = (run * (size // len(run) + 1)).encode()[:size].decode("utf-8", "ignore")
        tokenizer.encode(text, special=False)
        assert time.process_time() - started < HANG_S


@pytest.mark.parametrize(
    ("parts", "size"),
    [
        ({}, QUICK_BYTES),
        ({"normalizer": {"type": "NFC"}}, QUICK_BYTES),
        ({"normalizer": {"type": "Prepend", "prepend": "▁"}}, QUICK_BYTES),
        ({"normalizer": {"type": "Prepend", "prepend": "a" * 10**6}}, 0),
        ({"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 10**6}}, 0),
        ({"normalizer": {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}}, 0),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAA="}}, 0),
        ({"normalizer": NESTED}, 0),
        ({"normalizer": {"type": "Sequence", "normalizers": [7]}}, 0),
        ({"pre_tokenizer": split("(a+)+$")}, 0),
        ({"pre_tokenizer": split("")}, 0),
        ({"pre_tokenizer": split(r"\p{N}{1,3}")}, QUICK_BYTES),
        ({"pre_tokenizer": split(r"\s+$")}, QUICK_BYTES_SQUARED),
        ({"post_processor": framed()}, 0),
        ({"post_processor": framed(**BOS)}, QUICK_BYTES),
        ({"decoder": {"type": "Replace", "pattern": {"Regex": "a"}, "content": "b"}}, 0),
        ({"model": {"type": "Unigram", "vocab": []}}, 0),
        ({"model": None}, 0),
    ],
)
def test_known_components(parts: dict[str, Any], size: int) -> None:
    assert Components.of_json(fields(**parts)).quick_bytes == size


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAA="}}, "precompiled_charsmap"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "CAAAAP////////8AYWJj"}}, "out of bounds"),
        ({"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "a" * 1000}}, "out of bounds"),
        ({"pre_tokenizer": split("(")}, "parenthesis"),
        ({"post_processor": framed()}, "no entry found for key"),
        (
            {"normalizer": {"type": "Prepend", "prepend": "a" * 100_000}, "pre_tokenizer": split("a+c")},
            "took more than 2 s",
        ),
        ({"model": 7}, ""),
    ],
)
def test_a_tokenizer_that_panics_is_refused_and_nothing_is_printed(
    parts: dict[str, Any], reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(LoadError, match=f"not a usable tokenizer.json: .*{reason}"):
        Tokenizer.from_json(json.dumps(fields(**parts)))
    assert capfd.readouterr() == ("", "")


def test_a_text_that_panics_is_refused_and_the_next_is_not(capfd: pytest.CaptureFixture[str]) -> None:
    tokenizer = Tokenizer.from_json(json.dumps(fields(pre_tokenizer=split("(a+)+$"))))
    with pytest.raises(RequestError, match=r"the text cannot be tokenized: .*retry-limit-in-match over"):
        tokenizer.encode("a" * 1000 + "b", special=False)
    assert tokenizer.encode("hell", special=False) == Tokenizer.from_gguf(byte_level()).encode("hell", special=False)
    assert capfd.readouterr() == ("", "")


def test_a_panic_in_this_process_is_an_error_of_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer.from_json(json.dumps(fields(pre_tokenizer=split("(a+)+$"))))
    monkeypatch.setitem(tokenizer.__dict__, "quick_bytes", QUICK_BYTES)
    with pytest.raises(RequestError, match="retry-limit-in-match over"):
        tokenizer.encode("a" * 1000 + "b", special=False)


@pytest.mark.parametrize("gguf", [byte_level, sentence_piece])
def test_a_worker_process_gives_the_same_ids(gguf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer.from_gguf(gguf())
    there = Tokenizer.from_gguf(gguf())
    monkeypatch.setitem(there.__dict__, "quick_bytes", 0)
    for text in ("", "<s>hello</s> <|im_end|>wö\ud800\x00", *hostile_texts(tokenizer, 40)):
        for special in (False, True):
            assert there.encode(text, special=special, bos=True) == tokenizer.encode(text, special=special, bos=True)


def test_a_long_text_lets_other_threads_run() -> None:
    tokenizer = Tokenizer.from_gguf(byte_level())
    text = "7" * (QUICK_BYTES - 1)
    gaps = []
    ended = threading.Event()

    def tick() -> None:
        last = time.perf_counter()
        while not ended.is_set():
            time.sleep(0.0005)
            last, gap = time.perf_counter(), time.perf_counter() - last
            gaps.append(gap)

    thread = threading.Thread(target=tick)
    thread.start()
    for _ in range(3):
        tokenizer.encode(text, special=False)
    ended.set()
    thread.join()
    assert len(gaps) > 20  # the library's own ``encode`` would leave time for three


def test_a_fork_after_tokenizing_warns_of_nothing() -> None:
    program = (
        "import os\n"
        "from tests.text.test_token_bound import tokenizer\n"
        "tokenizer('byte level').encode('hello', special=False)\n"
        "child = os.fork()\n"
        "if not child: os._exit(0)\n"
        "os.waitpid(child, 0)\n"
    )
    root = Path(__file__).parents[2]
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment, cwd=root, check=True)
    assert done.stderr == b""


def test_parts_are_those_that_the_library_has() -> None:
    text = json.dumps(fields(normalizer={"type": "NFC"}, post_processor=framed(**BOS)))
    assert Components.of_backend(tokenizers.Tokenizer.from_str(text)) == Components.of_json(json.loads(text))
