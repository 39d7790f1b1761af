"""Tokens of texts, texts of tokens, and prompts of conversations."""

from __future__ import annotations

import pytest

from mistralrs.api.schemas import response_bodies
from mistralrs.api.served_model import ServedModel
from mistralrs.server.settings import ServerSettings
from tests.server.fake import FakeEngine
from tests.server.harness import Served, fault

pytestmark = pytest.mark.anyio

TEXT = "the <|im_end|> end äß"
HI = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize("source", ["content", "prompt"])
async def test_a_text_is_what_its_tokens_are(server: Served, model: ServedModel, source: str) -> None:
    response = await server.post("/tokenize", {source: TEXT})
    answer = response_bodies.Tokens.model_validate(response.json())
    assert answer.tokens == model.tokenizer.encode(TEXT, special=True)
    assert answer.count == len(answer.tokens)
    back = response_bodies.Detokenized.model_validate(
        (await server.post("/detokenize", {"tokens": answer.tokens})).json()
    )
    assert back.content == back.prompt == TEXT


async def test_control_tokens_can_be_left_unread(server: Served, model: ServedModel) -> None:
    response = await server.post("/tokenize", {"content": TEXT, "parse_special": False})
    assert response.json()["tokens"] == model.tokenizer.encode(TEXT, special=False)


async def test_pieces_are_texts_or_bytes(server: Served) -> None:
    pieces = (await server.post("/tokenize", {"content": "the ß", "with_pieces": True})).json()["tokens"]
    assert [piece["piece"] for piece in pieces][-2:] == [[0xC3], [0x9F]]
    response_bodies.Tokens.model_validate({"tokens": pieces, "count": 1, "max_model_len": 1})


async def test_messages_are_tokenized_as_a_chat_would(server: Served, engine: FakeEngine) -> None:
    tokens = (await server.post("/tokenize", {"messages": HI})).json()["tokens"]
    await server.chat(messages=HI)
    assert tuple(tokens) == engine.submitted[0].prompt


async def test_the_template_can_be_looked_at(server: Served) -> None:
    prompt = (await server.post("/apply-template", {"messages": HI})).json()
    assert response_bodies.AppliedTemplate.model_validate(prompt).prompt == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    open_end = await server.post("/apply-template", {"messages": HI, "add_generation_prompt": False})
    assert not open_end.json()["prompt"].endswith("assistant\n")


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "content"),
        ("/tokenize", {"content": "a", "prompt": "b"}, "prompt"),
        ("/detokenize", {"tokens": [5, 10**6]}, "tokens[1]"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/apply-template", {}, "messages"),
    ],
)
async def test_what_cannot_be_is_refused(server: Served, path: str, body: object, param: str) -> None:
    response = await server.post(path, body)
    assert (response.status_code, fault(response)["param"]) == (400, param)


async def test_what_means_nothing_is_named(server: Served) -> None:
    for body, name in (
        ({"content": "a", "add_generation_prompt": True}, "add_generation_prompt"),
        ({"messages": HI, "parse_special": True}, "parse_special"),
        ({"content": "a", "made_up": 1}, "made_up"),
    ):
        response = await server.post("/tokenize", body)
        assert (response.status_code, response.headers["x-mistralrs-ignored"]) == (200, name)


async def test_a_strict_server_refuses_it(engine: FakeEngine) -> None:
    server = Served(engine, ServerSettings(strict=True))
    response = await server.post("/tokenize", {"messages": HI, "parse_special": True})
    assert (response.status_code, fault(response)["param"]) == (400, "parse_special")
