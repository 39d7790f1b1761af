"""The fields that the Responses API and the Messages API share here: they are those of a chat, under the same names."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from mistralrs.api.schemas.adapter_bodies import AdapterFields
from mistralrs.api.schemas.field_types import Flag, Int, Number, within
from mistralrs.api.schemas.sentinels import LARGEST_SEED, LEAST_SEED, MAX_INT


class TranslatedBody(AdapterFields):
    """A body that becomes a chat."""

    chat_template_kwargs: dict[str, Any] | None = None
    """Variables for the chat template."""


class TranslatedSampling(TranslatedBody):
    """The sampling of an answer; numbers mean what they mean in a chat."""

    stream: Flag | None = None
    seed: Annotated[Int, Field(ge=LEAST_SEED, le=LARGEST_SEED)] | None = None
    """null and -1 are a random seed."""
    temperature: Annotated[Number, within("temperature")] | None = None
    top_k: Annotated[Int, Field(ge=-1, le=MAX_INT)] | None = None
    top_p: Annotated[Number, within("top_p")] | None = None
    min_p: Annotated[Number, within("min_p")] | None = None
    presence_penalty: Annotated[Number, within("presence_penalty")] | None = None
    frequency_penalty: Annotated[Number, within("frequency_penalty")] | None = None
    repetition_penalty: Annotated[Number, within("repetition_penalty")] | None = None
