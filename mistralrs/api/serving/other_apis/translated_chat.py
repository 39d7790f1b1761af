"""Prepares bodies of other APIs as chats; errors and notes have the names of the body's own fields."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import ValidationError

from mistralrs.api.schemas import parameter_table
from mistralrs.api.schemas.adapter_bodies import AdapterFields
from mistralrs.api.schemas.request_bodies import ChatCompletionBody, validation_error
from mistralrs.api.schemas.translated.translated_bodies import TranslatedBody, TranslatedSampling
from mistralrs.api.serving.prepare import Prepared, prepare_chat
from mistralrs.errors import RequestError

if TYPE_CHECKING:
    from mistralrs.api.served_model import ServedModel
    from mistralrs.api.serving.policy import Policy

Names = Mapping[str, str]
"""The body's names by those of the chat, both as beginnings of paths; names of a chat are patterns of ``re``."""


def shared_fields(body: TranslatedBody) -> dict[str, object]:
    """Returns the fields that a chat has under the same names."""
    kind = TranslatedSampling if isinstance(body, TranslatedSampling) else TranslatedBody
    return {name: getattr(body, name) for name in (*AdapterFields.model_fields, *kind.model_fields)}


def translated(fields: Mapping[str, object], names: Names) -> ChatCompletionBody:
    """Returns the chat with ``fields``, of which None is the same as not there. Raises RequestError for wrong ones."""
    given = {name: value for name, value in fields.items() if value is not None}
    with renamed(names):
        try:
            return ChatCompletionBody.model_validate(given)
        except ValidationError as error:
            raise validation_error(error.errors(include_url=False, include_input=False)) from None


def prepare_translated(
    chat: ChatCompletionBody, ignored: Iterable[str], model: ServedModel, policy: Policy, *, names: Names
) -> Prepared:
    """Returns the requests of a chat; ``ignored`` are fields of the body that change nothing. The chunks of a stream
    have the usage. Raises RequestError and ContextLengthError.
    """
    with renamed(names):
        prepared = prepare_chat(chat, model, replace(policy, strict=False))
    unserved = tuple(dict.fromkeys((*ignored, *(client_name(name, names) for name in prepared.ignored))))
    if policy.strict:
        parameter_table.refuse_ignored(unserved)
    return replace(prepared, ignored=unserved, include_usage=True)


@contextlib.contextmanager
def renamed(names: Names) -> Iterator[None]:
    """Gives errors about a chat's fields the names of the body's."""
    try:
        yield
    except RequestError as error:
        if error.param is not None:
            field = error.param.partition("/")[0]  # a JSON pointer stands elsewhere in the message
            error.message = error.message.replace(field, client_name(field, names), 1)
            error.args = (error.message,)
            error.param = client_name(error.param, names)
        raise


def client_name(path: str, names: Names) -> str:
    """Returns the body's name of a chat's field or of a path in it."""
    for pattern, name in names.items():
        found = re.match(rf"{pattern}(?=$|[.\[/])", path)
        if found is not None:
            return found.expand(name) + path[found.end() :]
    return path
