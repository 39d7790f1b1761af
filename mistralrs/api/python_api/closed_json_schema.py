"""JSON schemas of Python types, for a model to write values of."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema


class ClosedJsonSchema(GenerateJsonSchema):
    """Schemas whose objects have only the fields that their classes name, as OpenAI's clients make them.

    A class that ignores other fields would let a model write any of them, and go on for ever. A class that keeps them
    (``extra="allow"``) stays open.
    """

    def model_schema(self, schema: Any) -> dict[str, Any]:
        """Returns the schema of a model class."""
        return _closed(super().model_schema(schema))

    def dataclass_schema(self, schema: Any) -> dict[str, Any]:
        """Returns the schema of a dataclass."""
        return _closed(super().dataclass_schema(schema))

    def typed_dict_schema(self, schema: Any) -> dict[str, Any]:
        """Returns the schema of a typed dict."""
        return _closed(super().typed_dict_schema(schema))


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    if "properties" in schema:  # otherwise it is the schema of a root value
        schema.setdefault("additionalProperties", False)
    return schema
