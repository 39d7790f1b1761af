"""What all bodies of requests, and all parts of answers, have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Body(BaseModel):
    """A JSON object whose unknown fields are kept."""

    model_config = ConfigDict(extra="allow", frozen=True)


class Part(BaseModel):
    """A part of an answer; undeclared fields are not sent."""

    model_config = ConfigDict(extra="forbid")
