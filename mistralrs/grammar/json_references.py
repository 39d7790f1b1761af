"""References within one JSON schema: JSON pointers and anchors."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from mistralrs.grammar.json_values import Schema, as_schema, schema_error, shown


class References:
    """The places of one schema that its references may name."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        identity = root.get("$id", root.get("id", "")) if isinstance(root, dict) else ""
        self._identity = identity.rstrip("#") if isinstance(identity, str) else ""
        self._anchors: dict[str, str] = {}
        self._find_anchors(root, "", depth=0)

    def pointer_of(self, reference: object, pointer: str) -> str:
        """The JSON pointer that a reference at ``pointer`` names. Raises RequestError if it leads out of the schema."""
        if not isinstance(reference, str):
            raise schema_error(pointer, f"{shown(reference)} is not a reference")
        address, _, fragment = reference.partition("#")
        if address not in ("", self._identity):
            raise schema_error(pointer, f"{shown(reference)} leads out of the schema", hint="copy it into $defs")
        fragment = unquote(fragment)
        if fragment and not fragment.startswith("/"):
            if fragment not in self._anchors:
                raise schema_error(pointer, f"{shown(reference)} names nothing in the schema")
            return self._anchors[fragment]
        return fragment

    def at(self, target: str, pointer: str) -> Schema:
        """The schema at the JSON pointer ``target``, which a reference at ``pointer`` names."""
        place: Any = self._root
        for part in target.split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if isinstance(place, dict) and name in place:
                place = place[name]
            elif isinstance(place, list) and name.isdecimal() and int(name) < len(place):
                place = place[int(name)]
            else:
                raise schema_error(pointer, f"{shown('#' + target)} names nothing in the schema")
            if isinstance(place, dict) and place is not self._root and isinstance(place.get("$id"), str):
                raise schema_error(pointer, "references through a schema with an $id of its own are not supported")
        return as_schema(place, target)

    def _find_anchors(self, place: Any, pointer: str, *, depth: int) -> None:
        if depth > 64:
            return
        if isinstance(place, dict):
            anchor = place.get("$anchor")
            if isinstance(anchor, str):
                self._anchors.setdefault(anchor, pointer)
        members = place.items() if isinstance(place, dict) else enumerate(place) if isinstance(place, list) else ()
        for name, member in members:
            if name not in ("const", "enum", "default", "examples"):
                self._find_anchors(member, f"{pointer}/{escaped(str(name))}", depth=depth + 1)


def escaped(name: str) -> str:
    """A member's name as a part of a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")
