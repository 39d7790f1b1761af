"""Types that the fields of several bodies have. Scalars are strict: ``"1"`` and ``true`` are no numbers."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AllowInfNan, Field, Strict, ValidationError, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import PydanticCustomError

from mistralrs.api.schemas.sentinels import LEAST_MAX_TOKENS, MAX_INT
from mistralrs.engine.admission import MAX_BREAKER_LENGTH, RANGES

MAX_PROMPTS = 2048
"""Prompts of one request, at most."""
MAX_STOPS = 64
MAX_STOP_LENGTH = 1024
"""Characters of one stop string, at most: each string is searched for in every piece of an answer."""

Text = Annotated[str, Strict()]
Flag = Annotated[bool, Strict()]
Int = Annotated[int, Strict()]
Number = Annotated[float, Strict(), AllowInfNan(False)]
Token = Annotated[Int, Field(ge=0, le=MAX_INT)]
Limit = Annotated[Int, Field(ge=LEAST_MAX_TOKENS, le=MAX_INT)]
StopString = Annotated[Text, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
Breaker = Annotated[Text, Field(min_length=1, max_length=MAX_BREAKER_LENGTH)]


def _error_words(words: str) -> WrapValidator:
    """Returns a validator that replaces the errors of all members of a union by one: the field should be ``words``."""

    def validate(value: object, handler: ValidatorFunctionWrapHandler) -> object:
        try:
            return handler(value)
        except ValidationError:
            raise PydanticCustomError("shape", f"Input should be {words}") from None

    return WrapValidator(validate)


def within(name: str) -> Any:
    """Returns the range of one of the engine's parameters."""
    return Field(ge=RANGES[name].least, le=RANGES[name].most)


def no_zero(limit: int) -> int:
    """Returns the limit. Raises pydantic's error for 0."""
    if limit == 0:
        raise PydanticCustomError("limit", "Input should be at least 1, or -1 for no limit")
    return limit


Prompt = Annotated[
    Text
    | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
    | Annotated[list[Token], Field(min_length=1)]
    | Annotated[list[Annotated[list[Token], Field(min_length=1)]], Field(min_length=1, max_length=MAX_PROMPTS)],
    _error_words(f"a string, a list of token ids, or a list of 1 to {MAX_PROMPTS} of either, none of them empty"),
]
Stop = Annotated[
    StopString | Annotated[list[StopString], Field(max_length=MAX_STOPS)],
    _error_words(f"a string of 1 to {MAX_STOP_LENGTH} characters, or a list of at most {MAX_STOPS} of these"),
]
JsonSchema = Annotated[dict[str, Any] | Flag | Text, _error_words("a JSON schema, as an object or as JSON text")]
JsonObject = Annotated[dict[str, Any] | Text, _error_words("an object, or one as JSON text")]
GrammarValue = Annotated[
    Text | dict[str, Any] | list[Text], _error_words("a text, or an object or a list of texts for the kinds in JSON")
]
Samplers = Annotated[
    Text | Annotated[list[Text], Field(max_length=64)], _error_words("a list of names, or names between ;")
]
