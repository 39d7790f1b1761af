"""One choice's content, reasoning and tool calls, as they come; streams and whole answers have the same."""

from __future__ import annotations

import secrets
import string
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mistralrs.api.schemas.output_chunk import OutputChunk, ToolCallDelta
from mistralrs.api.serving.other_apis.message_fields import CALL_ID_LENGTH
from mistralrs.text.response.pieces import Content, Piece, Reasoning, ToolCallArguments, ToolCallStart
from mistralrs.text.response.response_parser import merged

if TYPE_CHECKING:
    from mistralrs.engine.events import Delta
    from mistralrs.text.response.response_parser import ResponseParser

_ALPHABET = string.ascii_letters + string.digits


@dataclass(slots=True)
class ToolCall:
    """A tool call as far as it has come."""

    id: str
    name: str
    texts: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> str:
        """Returns the arguments as JSON; text that is not complete, if the answer was cut."""
        return "".join(self.texts)


class ChoiceParts:
    """The parts of one choice. Without a parser all of its text is content."""

    def __init__(self, place: int, parser: ResponseParser | None) -> None:
        self.calls: list[ToolCall] = []
        self.reasoning_tokens = 0
        """Tokens drawn while the model was thinking, the mark of its end among them."""
        self.news: list[OutputChunk] = []
        """Additions of the last text, without log-probabilities and timings."""
        self._place = place
        self._parser = parser
        self._content: list[str] = []
        self._reasoning: list[str] = []

    @property
    def content(self) -> str:
        return "".join(self._content)

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)

    def push(self, delta: Delta) -> None:
        """Adds the text of new tokens."""
        if self._parser is None:
            self._add([Content(delta.text)] if delta.text else [])
            return
        # token by token, so that the count does not depend on how many of them came in one step
        pieces = [
            piece
            for text, num_tokens in delta.by_token()
            for piece in self._read(self._parser, text, num_tokens=num_tokens)
        ]
        self._add(merged(pieces))

    def _read(self, parser: ResponseParser, text: str, *, num_tokens: int) -> list[Piece]:
        was_thinking = parser.is_thinking
        pieces = parser.push(text) if text else []
        if isinstance(pieces[0], Reasoning) if pieces else was_thinking:
            self.reasoning_tokens += num_tokens
        return pieces

    def finish(self, *, is_cut: bool = False) -> None:
        """Adds the text that was held back, at the end. ``is_cut``: the model would have gone on."""
        self._add([] if self._parser is None else self._parser.finish(is_cut=is_cut))

    def _add(self, pieces: Iterable[Piece]) -> None:
        self.news = []
        for piece in pieces:
            match piece:
                case Content(text):
                    self._content.append(text)
                    self.news.append(OutputChunk(self._place, text))
                case Reasoning(text):
                    self._reasoning.append(text)
                    self.news.append(OutputChunk(self._place, reasoning=text))
                case ToolCallStart(index, name):
                    assert index == len(self.calls)
                    self.calls.append(ToolCall(new_call_id(), name))
                    self._add_call(ToolCallDelta(index, id=self.calls[index].id, name=name))
                case ToolCallArguments(index, text):
                    self.calls[index].texts.append(text)
                    self._add_call(ToolCallDelta(index, text))

    def _add_call(self, delta: ToolCallDelta) -> None:
        self.news.append(OutputChunk(self._place, tool_calls=(delta,)))


def new_call_id() -> str:
    """Returns a random id of a call, which every chat template accepts in a later turn."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(CALL_ID_LENGTH))
