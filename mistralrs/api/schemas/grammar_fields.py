"""The fields by which requests ask for a grammar, a schema or a choice, under all the names that clients use."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from mistralrs.api.schemas.body import Body
from mistralrs.api.schemas.field_types import Flag, GrammarValue, JsonObject, JsonSchema, Text
from mistralrs.grammar.grammar_text import GrammarKind

JSON_KINDS: tuple[GrammarKind, ...] = ("json_schema", "choice", "structural_tag")
"""The kinds of grammars whose texts are JSON."""
Choices = Annotated[list[Text], Field(min_length=1)]


class NamedSchema(Body):
    """The schema in a ``response_format``, as OpenAI has it."""

    name: Text | None = None
    description: Text | None = None
    schema_: JsonSchema | None = Field(None, alias="schema")
    strict: Flag | None = None
    """The answer obeys the schema in any case."""


class ResponseFormat(Body):
    """The form of the whole answer. A structural tag's members stand beside its ``type``, as in vLLM."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: NamedSchema | None = None
    schema_: JsonSchema | None = Field(None, alias="schema")
    """The schema of ``json_object`` or ``json_schema``, as llama.cpp reads it."""


class StructuredOutputs(Body):
    """One of these, as vLLM has them."""

    json_: JsonSchema | None = Field(None, alias="json")
    json_object: Flag | None = None
    regex: Text | None = None
    choice: Choices | None = None
    grammar: Text | None = None
    """GBNF where a line of it has ``::=``, otherwise Lark."""
    structural_tag: JsonObject | None = None
    whitespace_pattern: Text | None = None
    """The regular expression of the whitespace between two parts of JSON."""
    disable_any_whitespace: Flag | None = None
    disable_additional_properties: Flag | None = None
    """Only false is accepted."""


class GrammarObject(Body):
    """A grammar and its kind, as mistral.rs has them."""

    type: GrammarKind
    value: GrammarValue

    @field_validator("value")
    @classmethod
    def _check_value(cls, value: object, given: ValidationInfo) -> object:
        kind = given.data.get("type")
        if not isinstance(value, str) and kind not in (None, *JSON_KINDS):
            raise PydanticCustomError("kind", "a {kind} is a text", {"kind": kind})
        return value


def _as_object(grammar: object) -> object:
    """Returns llama.cpp's text as an object; an empty one, which its clients send by default, is no grammar."""
    if isinstance(grammar, str):
        return {"type": "gbnf", "value": grammar} if grammar else None
    return grammar


class GrammarFields(Body):
    """The fields of a request, of which one at most may ask for something."""

    response_format: ResponseFormat | None = None
    grammar: Annotated[
        GrammarObject | None, BeforeValidator(_as_object, json_schema_input_type=Text | GrammarObject | None)
    ] = None
    """A text is GBNF, as in llama.cpp."""
    json_schema: JsonSchema | None = None
    """As llama.cpp has it."""
    format: JsonSchema | None = None
    """``json``, or a schema, as Ollama has it."""
    structured_outputs: StructuredOutputs | None = None
    guided_json: JsonSchema | None = None
    guided_json_object: Flag | None = None
    guided_regex: Text | None = None
    guided_choice: Choices | None = None
    guided_grammar: Text | None = None
    guided_whitespace_pattern: Text | None = None
    """The names before vLLM's ``structured_outputs``."""
