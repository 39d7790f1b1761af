"""The parts of an answer as they stream: content, reasoning, tool calls."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Content:
    """Further text for the reader."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Further text of the model's thinking."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """A tool call begins."""

    index: int
    """The call's place among those of the answer, from 0."""
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """Further JSON text of a call's arguments; the texts of one call add up to one JSON object."""

    index: int
    text: str


Piece = Content | Reasoning | ToolCallStart | ToolCallArguments
