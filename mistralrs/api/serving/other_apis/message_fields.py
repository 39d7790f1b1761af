"""The fields of messages beside their text, as chat templates expect them: calls of tools, their results, thoughts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

if TYPE_CHECKING:
    from mistralrs.api.schemas.request_bodies import MessageBody
    from mistralrs.text.chat_template import ChatTemplate

CALL_ID_LENGTH = 9
"""Characters of a call's id. Mistral's templates refuse other lengths; other models' do not mind."""
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""The names that clients and templates have for an earlier answer's thinking."""
_CALL_ID = re.compile(rf"[A-Za-z0-9]{{{CALL_ID_LENGTH}}}")
_CHECKS_LENGTH = re.compile(rf"length\s*!=\s*{CALL_ID_LENGTH}\b")


class MessageFields:
    """Writes the messages of one conversation for one template."""

    def __init__(self, template: ChatTemplate) -> None:
        source = template.source
        self._thoughts = tuple(name for name in THOUGHTS if re.search(rf"\b{name}\b", source))
        thoughts = THOUGHTS if self._thoughts else ()
        self.unasked = frozenset((*thoughts, "tool_call_id"))
        """Fields that the prompt need not show: a template that knows thoughts drops those of earlier turns on purpose,
        and most have a call's result behind the call in place of its id."""
        self._knows_calls = "tool_calls" in source
        self._short_ids = _CHECKS_LENGTH.search(source) is not None
        self._num_legacy = 0

    def of(self, message: MessageBody, text: str) -> dict[str, object]:
        """Returns a message as templates expect it: a role, a text, and other fields that have a value."""
        extra = dict(message.model_extra or {})
        plain: dict[str, object] = {"role": message.role, "content": text}
        thoughts = {name: extra.pop(name) for name in THOUGHTS if isinstance(extra.get(name), str)}
        calls = [self._call(call) for call in message.tool_calls or ()]
        call_id = message.tool_call_id
        if self._knows_calls and not calls and isinstance(extra.get("function_call"), dict):
            self._num_legacy += 1
            calls = [self._call({"type": "function", "id": self._legacy_id, "function": extra.pop("function_call")})]
        if self._knows_calls and message.role == "function":
            plain["role"], call_id = "tool", self._legacy_id
        for key, value in {
            "name": message.name,
            "tool_calls": calls,
            "tool_call_id": None if call_id is None else self._id(call_id),
            **extra,
        }.items():
            # a message that a client copied from an answer holds nulls and empty lists without a meaning
            if value is not None and value != []:
                plain[key] = value
        thought = next((text for text in thoughts.values() if text), None)
        if thought is not None:  # a client sends it as it got it, which need not be the template's name
            plain.update(dict.fromkeys((*thoughts, *self._thoughts), thought))
        return plain

    @property
    def _legacy_id(self) -> str:
        """Returns the id of the last call in the older form, which has none."""
        return f"call{self._num_legacy:05d}"

    def _id(self, given: str) -> str:
        """Returns a call's id, in the length that the template wants."""
        if not self._short_ids or _CALL_ID.fullmatch(given):
            return given
        return hashlib.sha256(given.encode("utf-8", "surrogatepass")).hexdigest()[:CALL_ID_LENGTH]

    def _call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a tool call with its arguments as an object, which templates expect; the API has them as JSON."""
        written = dict(call)
        if isinstance(written.get("id"), str):
            written["id"] = self._id(written["id"])
        function = written.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
            return written
        try:
            arguments = from_json(function["arguments"])  # this bounds the nesting, as for all JSON that is read
        except ValueError:
            return written  # a model wrote these arguments and they need not be JSON: the template gets the text
        if not isinstance(arguments, dict):
            return written
        return {**written, "function": {**function, "arguments": arguments}}
