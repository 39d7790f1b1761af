"""JSON Schema's keywords, by what becomes of them: kept, checked, annotations, or refused."""

from __future__ import annotations

import difflib

SCHEMAS = ("items", "additionalProperties", "additionalItems")
"""Keywords whose value is a schema, or in older drafts of ``items`` a list of them."""
SCHEMA_LISTS = ("prefixItems", "allOf", "anyOf", "oneOf")
SCHEMA_MAPS = ("properties", "patternProperties")
COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
OTHERS = ("type", "const", "enum", "required", "pattern", "format", "multipleOf", "$ref", "uniqueItems")
HELD = frozenset({*SCHEMAS, *SCHEMA_LISTS, *SCHEMA_MAPS, *COUNTS, *BOUNDS, *OTHERS})
"""Keywords that generated text obeys to the letter, within the bounds that ``json_grammar`` checks."""
REFUSED = frozenset(
    {
        "contains", "minContains", "maxContains", "unevaluatedItems", "unevaluatedProperties", "propertyNames",
        "dependentRequired", "dependentSchemas", "dependencies", "not", "if", "then", "else", "$dynamicRef",
        "$recursiveRef", "extends", "disallow", "divisibleBy", "nullable", "formatMinimum", "formatMaximum",
        "formatExclusiveMinimum", "formatExclusiveMaximum", "$data", "patternRequired",
    }
)  # fmt: skip
"""Keywords of some draft, of OpenAPI or of a common validator that generated text does not obey."""
NEUTRAL: dict[str, object] = {
    "uniqueItems": False,
    "nullable": False,
    "unevaluatedProperties": True,
    "unevaluatedItems": True,
}
"""Values with which a keyword demands nothing."""
ANNOTATIONS = frozenset(
    {
        "title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "$comment",
        "$schema", "$vocabulary", "$anchor", "$dynamicAnchor", "$recursiveAnchor", "$defs", "definitions", "$id", "id",
        "contentMediaType", "contentEncoding", "contentSchema", "discriminator", "xml", "externalDocs", "x-guidance",
    }
)  # fmt: skip
"""Keywords that demand nothing of a text. Any other unknown keyword is one too, as the standard has it."""
TYPES = ("null", "boolean", "object", "array", "number", "integer", "string")
_DAYS = (
    r"(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8])"
)
_YEAR = "(?:000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"
_FOURTH = "(?:0[48]|[2468][048]|[13579][26])"
_DATE = f"(?:{_YEAR}-(?:{_DAYS})|(?:[0-9]{{2}}{_FOURTH}|{_FOURTH}00)-02-29)"
_HOURS_MINUTES = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_HOURS_MINUTES}:[0-5][0-9](?:\.[0-9]+)?(?:[Zz]|[+-]{_HOURS_MINUTES})"
OWN_FORMATS = {"date": f"^(?:{_DATE})$", "time": f"^(?:{_TIME})$", "date-time": f"^(?:{_DATE}[Tt]{_TIME})$"}
"""Expressions for formats that the library holds too loosely: days that a month has, and no leap seconds."""
FORMATS = frozenset({"duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", *OWN_FORMATS})
"""Formats that generated text obeys."""
ANNOTATION_FORMATS = frozenset(
    {
        "int32", "int64", "uint32", "uint64", "float", "double", "decimal", "binary", "byte", "password", "path",
        "file-path", "directory-path", "color", "textarea", "markdown", "html", "json-string",
    }
)  # fmt: skip
"""Formats of OpenAPI and of pydantic that say how a value is stored or shown."""
_CLOSE = 0.85


def misspelt(keyword: str) -> str | None:
    """The keyword that an unknown one probably stands for; None if it is an annotation of the caller's own."""
    if keyword in ANNOTATIONS or keyword.startswith(("x-", "$")):
        return None
    close = difflib.get_close_matches(keyword, sorted(HELD | REFUSED), n=1, cutoff=_CLOSE)
    return close[0] if close else None
