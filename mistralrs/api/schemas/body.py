"""What all bodies of requests have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Body(BaseModel):
    """A JSON object whose unknown fields are kept."""

    model_config = ConfigDict(extra="allow", frozen=True)
