"""A chunk of a streamed answer, as an object: the response builder makes it, the server and ``Runner`` read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mistralrs.engine.events import FinishReason

ChoiceEnd = FinishReason | Literal["tool_calls"]


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """An addition to one tool call of a choice."""

    index: int
    """The call's place among those of the choice, from 0."""
    arguments: str = ""
    """Further JSON text of the arguments."""
    id: str | None = None
    """Set only in the first addition, as is ``name``."""
    name: str | None = None


@dataclass(frozen=True, slots=True)
class OutputChunk:
    """An addition to one choice, or the usage of all of them. Every kind of output is a field of its own."""

    index: int | None
    """The index of the chunk's choice; None: the chunk has no choice."""
    text: str | None = None
    """Further text of the choice; None: none, as in the last chunk of a choice."""
    role: Literal["assistant"] | None = None
    """Set only in the first chunk of a chat's choice, which also has a text, perhaps an empty one."""
    reasoning: str | None = None
    """Further text of the model's thinking."""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    """Additions to the choice's tool calls."""
    finish_reason: ChoiceEnd | None = None
    """Set only in the last chunk of a choice."""
    stop_string: str | None = None
    """The stop string that ended the choice, in its last chunk."""
    logprobs: Mapping[str, object] | None = None
    """The log-probabilities of the tokens of ``text``, in the shape of the answer's kind."""
    timings: Mapping[str, object] | None = None
    """The timings of the choice until now; in the last chunk of the last choice those of the whole answer."""
    adapter_generation: int | None = None
    """The generation of names in which the answer's adapters were looked up, in the last chunk of the last choice;
    None: no adapter acts."""
    usage: Mapping[str, object] | None = None
    """Tokens of the whole answer in OpenAI's shape, in the chunk that holds no choice."""
