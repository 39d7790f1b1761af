"""Tools in Python on a model with random weights, which would write anything: the grammar alone makes it call."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import gguf
import jsonschema
import numpy as np
import pytest

from mistralrs import ChatCompletionRequest, RequestError, Runner, Which
from mistralrs.api.schemas.response_bodies import ChatCompletion, ChatCompletionChunk
from tests.api.tooling import HERMES, MARKERS, tool
from tests.gguf_edits import edited
from tests.tiny import TOKENIZER_SIZE, TinyConfig, write_tiny

NUMBERS = {
    "type": "object",
    "properties": {"n": {"enum": [1, 23]}, "on": {"type": "boolean"}},
    "required": ["n", "on"],
    "additionalProperties": False,
}
TOOLS = [tool("sum", parameters=NUMBERS), tool("flag", parameters=NUMBERS)]
FIELDS: dict[str, Any] = {"tools": TOOLS, "temperature": 1.0, "max_tokens": 200}
NAMED = {"type": "function", "function": {"name": "flag"}}


def _with_marks(metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    """Makes the padding of the vocabulary the marks of parts, as control tokens."""
    key = "tokenizer.ggml"
    metadata[f"{key}.tokens"] = [*metadata[f"{key}.tokens"][:TOKENIZER_SIZE], *MARKERS]
    kinds = metadata[f"{key}.token_type"][:TOKENIZER_SIZE]
    metadata[f"{key}.token_type"] = [*kinds, *[int(gguf.TokenType.CONTROL)] * len(MARKERS)]
    metadata["tokenizer.chat_template"] = HERMES


def _with_template(metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    """Gives it the form of Mistral's calls, in which nothing is a control token here."""
    metadata["tokenizer.chat_template"] = HERMES.replace("<tool_call>", "[TOOL_CALLS]").replace("</tool_call>", "")


@pytest.fixture(scope="module", params=["marks are text", "marks are control tokens"])
def runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    marks = request.param == "marks are control tokens"
    folder = tmp_path_factory.mktemp("tools")
    config = TinyConfig(context=2048, vocab=TOKENIZER_SIZE + len(MARKERS) * marks)
    plain = write_tiny(folder / "plain.gguf", config).path
    file = edited(plain, folder / "tiny.gguf", _with_marks if marks else _with_template)
    with Runner(Which.GGUF(quantized_filename=str(file)), threads=1) as runner:
        yield runner


def ask(runner: Runner, **fields: Any) -> ChatCompletion:
    answer = runner.send_chat_completion_request(ChatCompletionRequest("hello", **(FIELDS | fields)))
    assert isinstance(answer, ChatCompletion)
    return answer


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("choice", [NAMED, "required"])
def test_a_call_is_made_that_matches_its_schema(runner: Runner, choice: Any, seed: int) -> None:
    fields = {"tool_choice": choice, "parallel_tool_calls": False, "seed": seed, "logit_bias": _no_thought(runner)}
    [answered] = ask(runner, **fields).choices
    assert answered.finish_reason == "tool_calls"
    assert answered.message.content is None
    assert answered.message.tool_calls is not None
    [call] = answered.message.tool_calls
    assert call.function.name in (("flag",) if choice == NAMED else ("flag", "sum"))
    jsonschema.validate(json.loads(call.function.arguments), NUMBERS)


def test_whole_and_streamed_calls_are_the_same(runner: Runner) -> None:
    fields = {"tool_choice": NAMED, "seed": 5, "logit_bias": _no_thought(runner)}
    whole = ask(runner, **fields)
    stream = runner.send_chat_completion_request(ChatCompletionRequest("hello", stream=True, **(FIELDS | fields)))
    names, arguments, ends = [], "", []
    assert not isinstance(stream, ChatCompletion)
    for chunk in stream:
        assert isinstance(chunk, ChatCompletionChunk)
        delta = chunk.choices[0].delta
        for each in delta.tool_calls or []:
            names += [each.function.name] if each.function.name else []
            arguments += each.function.arguments
        ends += [chunk.choices[0].finish_reason] if chunk.choices[0].finish_reason else []
    [choice] = whole.choices
    assert ends == [choice.finish_reason]
    assert names == [each.function.name for each in choice.message.tool_calls or []]
    assert arguments == "".join(each.function.arguments for each in choice.message.tool_calls or [])


def test_tools_are_refused_as_over_http(runner: Runner) -> None:
    with pytest.raises(RequestError) as raised:
        ask(runner, tools=[{"type": "web_search"}])
    assert raised.value.param == "tools[0].type"
    wrong = tool("f", parameters={**NUMBERS, "not": {}}, strict=True)
    with pytest.raises(RequestError) as raised:
        ask(runner, tools=[wrong])
    assert raised.value.code == "invalid_schema"


def _no_thought(runner: Runner) -> dict[int, float]:
    """Returns a bias against whitespace and the opening of a thought, of which random weights find no end."""
    tokenizer = runner._model.tokenizer
    spaces = [token for token in range(tokenizer.vocab_size) if tokenizer.token_bytes(token).isspace()]
    thought = tokenizer.encode("<think>", special=True)
    return dict.fromkeys([*spaces, *(thought if len(thought) == 1 else ())], -100.0)
