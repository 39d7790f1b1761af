"""Plain answers for the terminal: thinking apart from the text, and no mark in either."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistralrs.api.read_stream import ReadStream, Thought
from mistralrs.api.serving.answers.answer_parts import AnswerParts
from mistralrs.api.serving.engine_requests import chat_request
from mistralrs.engine.config import Request, SamplingParams
from mistralrs.engine.events import Delta, Event, Finished, Stream
from mistralrs.errors import RequestError
from tests.api.served import CHATML, POLICY, served
from tests.api.tooling import HERMES, calling, said, split_at

HI = [{"role": "user", "content": "hi"}]
ALWAYS = HERMES.replace("{% if enable_thinking %}<think>\n{% endif %}", "<think>\n")


def asked(template: str = HERMES, *, thinking: bool | None = None) -> tuple[Request, AnswerParts]:
    request, parts = chat_request(HI, SamplingParams(), calling(template=template), POLICY, thinking=thinking)
    assert parts is not None
    return request, parts


def read(parts: AnswerParts, events: Sequence[Event]) -> tuple[str, str, list[Event | Thought]]:
    """Returns the thinking, the text and all events."""
    stream = Stream(lambda: None)
    for event in events:
        stream.put(event)
    got = [*ReadStream(stream, parts.parser())]
    thoughts = "".join(event.text for event in got if isinstance(event, Thought))
    return thoughts, "".join(event.text for event in got if isinstance(event, Delta)), got


@given(st.lists(st.integers(0, 40), max_size=8))
def test_thinking_comes_apart_from_the_text(cuts: list[int]) -> None:
    text = "<think>Hm, é.</think>\n\nHello </ b> you"
    thoughts, answer, events = read(PARTS, said(*split_at(text, [cut for cut in cuts if cut < len(text)])))
    assert (thoughts, answer) == ("Hm, é.", "Hello </ b> you")
    assert isinstance(events[-1], Finished)
    tokens = [token for event in events if isinstance(event, Delta) for token in event.tokens]
    assert tokens == [*range(len(tokens))]


PARTS = asked()[1]


def test_an_answer_that_is_cut_shows_what_there_was() -> None:
    assert read(PARTS, said("<think>Hm </thi", reason="length"))[:2] == ("Hm </thi", "")
    assert read(PARTS, said("a <thi", reason="length"))[:2] == ("", "a <thi")


def test_thinking_that_the_prompt_began() -> None:
    assert read(asked(thinking=True)[1], said("Hm</think>yes"))[:2] == ("Hm", "yes")
    assert read(asked(ALWAYS)[1], said("Hm</think>yes"))[:2] == ("Hm", "yes")


def test_a_call_is_text_here() -> None:
    assert read(PARTS, said("<tool_call>{}</tool_call>"))[:2] == ("", "<tool_call>{}</tool_call>")


def test_thinking_is_turned_on_and_off_by_the_template() -> None:
    assert asked(thinking=True)[0].prompt != asked(thinking=False)[0].prompt == asked()[0].prompt
    assert asked(ALWAYS, thinking=True)[0] == asked(ALWAYS)[0]


@pytest.mark.parametrize("thinking", [False, True])
def test_what_a_template_cannot_do_is_refused(thinking: bool) -> None:
    with pytest.raises(RequestError, match="cannot turn thinking off") as raised:
        asked(ALWAYS, thinking=False)
    assert raised.value.hint
    model = served(CHATML)
    if thinking:
        with pytest.raises(RequestError, match="does not think"):
            chat_request(HI, SamplingParams(), model, POLICY, thinking=True)
    else:
        assert chat_request(HI, SamplingParams(), model, POLICY, thinking=False)[1] is None
