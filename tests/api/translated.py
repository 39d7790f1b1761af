"""Chunks of answers that think, speak and call tools, in random pieces, for the APIs that chats are translated into."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

from mistralrs.api.schemas.output_chunk import ChoiceEnd, OutputChunk, ToolCallDelta
from mistralrs.api.serving.prepare import Prepared
from tests.api.served import byte_tokenizer


def spelled(prepared: Prepared) -> str:
    """Returns the prompt of the only request, control tokens spelled out."""
    [request] = prepared.requests
    tokenizer = byte_tokenizer()
    pieces = (tokenizer.token_bytes(token) or tokenizer.token_text(token).encode() for token in request.prompt)
    return b"".join(pieces).decode()


USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 5,
    "total_tokens": 14,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 2},
}


@dataclass(frozen=True)
class Said:
    """A part of an answer: its kind, its text, and the name of a tool."""

    kind: str
    text: str
    name: str = ""


TEXTS = st.text(min_size=1, max_size=12)
ARGUMENTS = st.sampled_from(("{}", '{"city":"Zürich"}', '{"a":{"b":[1,2,"}"]},"c":"\\u2028\\n"}'))
PARTS = st.one_of(
    st.builds(Said, st.just("reasoning"), TEXTS),
    st.builds(Said, st.just("text"), TEXTS),
    st.builds(Said, st.just("call"), ARGUMENTS, st.sampled_from(("f", "get_weather"))),
)


@st.composite
def answers(draw: st.DrawFn) -> tuple[list[Said], list[OutputChunk]]:
    """Draws an answer, whose neighbouring parts are of different kinds or calls, and the chunks of its stream."""
    parts: list[Said] = []
    for part in draw(st.lists(PARTS, max_size=5)):
        if part.kind == "call" or not parts or parts[-1].kind != part.kind:
            parts.append(part)
    pieces = [[*cut(part.text, draw(st.lists(st.integers(0, 12), max_size=4)))] for part in parts]
    reason: ChoiceEnd = draw(st.sampled_from(("stop", "length")))
    return parts, chunks(parts, pieces, "tool_calls" if any(part.kind == "call" for part in parts) else reason)


def cut(text: str, places: Sequence[int]) -> list[str]:
    """Returns the text in pieces, some of them empty."""
    bounds = [0, *sorted(min(place, len(text)) for place in places), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(bounds)]


def chunks(parts: Sequence[Said], pieces: Sequence[Sequence[str]], reason: ChoiceEnd) -> list[OutputChunk]:
    """Returns the chunks of a stream."""
    made = [OutputChunk(0, "", role="assistant")]
    calls = -1
    for part, texts in zip(parts, pieces, strict=True):
        if part.kind == "call":
            calls += 1
            made.append(OutputChunk(0, tool_calls=(ToolCallDelta(calls, id=f"call_{calls}", name=part.name),)))
        for text in texts:
            if part.kind == "reasoning":
                made.append(OutputChunk(0, reasoning=text))
            elif part.kind == "text":
                made.append(OutputChunk(0, text))
            else:
                made.append(OutputChunk(0, tool_calls=(ToolCallDelta(calls, text),)))
    return [*made, OutputChunk(0, finish_reason=reason), OutputChunk(None, usage=USAGE)]
