"""The grammar that a body asks for, by whichever of the fields that clients use for that."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mistralrs.api.schemas.grammar_fields import GrammarFields, ResponseFormat, StructuredOutputs
from mistralrs.api.schemas.parameter_table import unknown_within
from mistralrs.errors import RequestError
from mistralrs.grammar.grammar_text import GrammarText
from mistralrs.grammar.translation import reason_in
from mistralrs.parsing import parse_nested

if TYPE_CHECKING:
    from mistralrs.api.served_model import ServedModel

_WHITESPACE_POINTER = "/x-guidance/whitespace_pattern"


@dataclass(frozen=True, slots=True)
class GrammarChoice:
    """The grammar of an answer."""

    text: GrammarText | None = None
    """None: the answer is any text."""
    warnings: tuple[str, ...] = ()
    """Sentences for the caller about it."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A grammar and the path of the field that has it."""

    text: GrammarText
    field: str
    whitespace_field: str = ""
    """The path of the field that has the whitespace; empty: there is none."""


def grammar_choice(body: GrammarFields, model: ServedModel) -> GrammarChoice:
    """Returns the grammar that a body asks for, which is checked. Raises ``RequestError`` for one that cannot be used,
    with the field and the JSON pointer of what is wrong, and where two fields ask for one."""
    asked = _asked(body)
    if asked is None:
        return GrammarChoice()
    try:
        return GrammarChoice(asked.text, model.check_grammar(asked.text))
    except RequestError as error:
        raise _with_field(error, asked) from None


def has_new_grammar(body: object, model: ServedModel) -> bool:
    """Returns whether a body asks for a grammar that has to be checked first, which may take long.

    Raises ``RequestError`` where two fields ask for one.
    """
    asked = _asked(body) if isinstance(body, GrammarFields) else None
    return asked is not None and not model.grammars.knows(asked.text)


def unused_grammar_fields(body: GrammarFields) -> tuple[str, ...]:
    """Returns the paths of members of the fields for grammars that are not read."""
    format = body.response_format
    names = unknown_within("grammar", body.grammar) + unknown_within("structured_outputs", body.structured_outputs)
    if format is None:
        return names
    if format.type in ("text", "structural_tag"):
        members = {"json_schema": format.json_schema, "schema": format.schema_}
        names += tuple(f"response_format.{name}" for name, value in members.items() if value is not None)
    else:
        names += unknown_within("response_format.json_schema", format.json_schema)
    return names if format.type == "structural_tag" else names + unknown_within("response_format", format)


def _asked(body: GrammarFields) -> _Asked | None:
    found = list(_all_asked(body))
    if len(found) > 1:
        message = f"{found[0].field} and {found[1].field} both say what the answer must match"
        raise RequestError(message, hint="send one of them", param=found[1].field)
    return found[0] if found else None


def _all_asked(body: GrammarFields) -> Iterator[_Asked]:
    if body.response_format is not None:
        yield from _of_response_format(body.response_format)
    if body.grammar is not None:
        value = body.grammar.value
        yield _Asked(GrammarText(body.grammar.type, value if isinstance(value, str) else _json(value)), "grammar")
    if body.json_schema is not None:
        yield _of_schema(body.json_schema, "json_schema")
    if body.format == "json":
        yield _Asked(GrammarText("json_object", ""), "format")
    elif body.format not in (None, ""):
        yield _of_schema(body.format, "format")
    if body.structured_outputs is not None:
        yield from _of_structured_outputs(body.structured_outputs, "structured_outputs.")
    older = StructuredOutputs(
        json=body.guided_json,
        json_object=body.guided_json_object,
        regex=body.guided_regex,
        choice=body.guided_choice,
        grammar=body.guided_grammar,
        whitespace_pattern=body.guided_whitespace_pattern,
    )
    yield from _of_structured_outputs(older, "guided_")


def _of_response_format(format: ResponseFormat) -> Iterator[_Asked]:
    if format.type == "structural_tag":
        tag = {"type": format.type, **(format.model_extra or {})}
        yield _Asked(GrammarText("structural_tag", _json(tag)), "response_format")
    elif format.type != "text":
        named = format.json_schema.schema_ if format.json_schema is not None else None
        if named is not None:
            yield _of_schema(named, "response_format.json_schema.schema")
        if format.schema_ is not None:
            yield _of_schema(format.schema_, "response_format.schema")
        if named is None and format.schema_ is None:
            if format.type == "json_object":
                yield _Asked(GrammarText("json_object", ""), "response_format")
                return
            param = "response_format.json_schema.schema"
            raise RequestError(f"{param} is required", param=param)


def _of_structured_outputs(fields: StructuredOutputs, prefix: str) -> Iterator[_Asked]:
    """Yields what vLLM's fields ask for; ``prefix`` stands before each name."""
    if fields.disable_additional_properties:
        param = f"{prefix}disable_additional_properties"
        raise RequestError(
            f"{param} is not supported", hint="write it into the schema", code="unsupported_parameter", param=param
        )
    whitespace = _whitespace(fields, prefix)
    if fields.json_ is not None:
        yield _of_schema(fields.json_, f"{prefix}json", **whitespace)
    if fields.json_object:
        yield _of_schema({"type": "object"}, f"{prefix}json_object", **whitespace)
    if fields.regex is not None:
        yield _Asked(GrammarText("regex", fields.regex), f"{prefix}regex")
    if fields.choice is not None:
        yield _Asked(GrammarText("choice", _json(fields.choice)), f"{prefix}choice")
    if fields.grammar is not None:
        yield _Asked(GrammarText(_kind_of(fields.grammar), fields.grammar), f"{prefix}grammar")
    if fields.structural_tag is not None:
        tag = fields.structural_tag
        text = tag if isinstance(tag, str) else _json(tag)
        yield _Asked(GrammarText("structural_tag", text), f"{prefix}structural_tag")


def _kind_of(grammar: str) -> str:
    """Returns the kind of a grammar without one, which vLLM takes for Lark unless a rule of it is written ``::=``."""
    return "gbnf" if any("::=" in line.partition("#")[0].partition("//")[0] for line in grammar.split("\n")) else "lark"


def _whitespace(fields: StructuredOutputs, prefix: str) -> dict[str, str]:
    """Returns the arguments of ``_of_schema`` about whitespace. Raises RequestError where there is no schema."""
    pattern = "" if fields.disable_any_whitespace else fields.whitespace_pattern
    if pattern is None:
        return {}
    name = "disable_any_whitespace" if fields.disable_any_whitespace else "whitespace_pattern"
    if fields.json_ is None and not fields.json_object:
        raise RequestError(f"{prefix}{name} needs {prefix}json or {prefix}json_object", param=f"{prefix}{name}")
    return {"whitespace": pattern, "whitespace_field": f"{prefix}{name}"}


def _of_schema(schema: Any, field: str, *, whitespace: str | None = None, whitespace_field: str = "") -> _Asked:
    """Returns a schema as a grammar. ``whitespace``: the expression of it between two parts; None: the default."""
    if whitespace is not None:
        schema = _as_object(schema)
        if isinstance(schema, dict):
            wishes = {"whitespace_pattern": whitespace} if whitespace else {"whitespace_flexible": False}
            schema = {**schema, "x-guidance": wishes}
    text = schema if isinstance(schema, str) else _json(schema)
    return _Asked(GrammarText("json_schema", text), field, whitespace_field)


def _as_object(schema: object) -> object:
    """Returns a schema as an object where it is one, or the text that is none, which is refused later."""
    if isinstance(schema, str):
        try:
            schema = parse_nested(json.loads, schema)
        except ValueError:
            return schema
    return {} if schema is True else schema


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _with_field(error: RequestError, asked: _Asked) -> RequestError:
    """Returns an error that names the field which was used; other errors than the grammar's keep their words."""
    pointer = (error.param or "").removeprefix("grammar")
    if error.code != "invalid_grammar":
        return RequestError(error.message, hint=error.hint, code=error.code, param=asked.field)
    param, reason = f"{asked.field}{pointer}", reason_in(error)
    if asked.whitespace_field and pointer == _WHITESPACE_POINTER:
        param, reason = asked.whitespace_field, reason.removeprefix(f"{pointer}: ")
    code = "invalid_schema" if asked.text.kind == "json_schema" else "invalid_grammar"
    field = asked.whitespace_field if param == asked.whitespace_field else asked.field
    return RequestError(f"{field} cannot be used: {reason}", hint=error.hint, code=code, param=param)
