"""The tool calls of a region, from its text as it grows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from mistralrs.parsing import parse_nested
from mistralrs.text.response.argument_types import ArgumentWriter, Types, in_types, json_text
from mistralrs.text.response.call_plan import CallPlan
from mistralrs.text.response.delimiters import MatchClock
from mistralrs.text.response.json_reader import JsonEvent, JsonReader, What, decoded_string
from mistralrs.text.response.pieces import Content, Piece, ToolCallArguments, ToolCallStart
from mistralrs.text.response.region_values import read_content, transformed
from mistralrs.text.response.response_template import Region

_NAME, _ARGUMENTS, _OTHER = "name", "arguments", "other"


class CallNumbers:
    """Counts the calls of an answer."""

    def __init__(self) -> None:
        self.count = 0

    def start(self, name: str) -> ToolCallStart:
        """The start of the next call."""
        self.count += 1
        return ToolCallStart(self.count - 1, name)


class CallReader(Protocol):
    """Reads one region. Text that is no call comes back as ``Content``."""

    def push(self, text: str) -> list[Piece]:
        """Further text of the region."""
        ...

    def close(self, captures: Mapping[str, str]) -> list[Piece]:
        """Ends the region; ``captures`` are of its closing pattern."""
        ...


def call_reader(
    region: Region, captures: Mapping[str, str], *, types: Mapping[str, Types], numbers: CallNumbers, clock: MatchClock
) -> CallReader:
    """A reader for a region that opened with these captures."""
    if region.plan is None:
        return WholeCalls(region, captures, types=types, numbers=numbers, clock=clock)
    return GrowingCalls(region.plan, captures, types=types, numbers=numbers)


class WholeCalls:
    """Calls that are known when their region is complete."""

    def __init__(
        self,
        region: Region,
        captures: Mapping[str, str],
        *,
        types: Mapping[str, Types],
        numbers: CallNumbers,
        clock: MatchClock,
    ) -> None:
        self._region = region
        self._captures = dict(captures)
        self._types = types
        self._numbers = numbers
        self._clock = clock
        self._body: list[str] = []

    def push(self, text: str) -> list[Piece]:
        """Keeps the text."""
        self._body.append(text)
        return []

    def close(self, captures: Mapping[str, str]) -> list[Piece]:
        """All calls of the region, or its text if one of them is malformed."""
        body = "".join(self._body)
        try:
            calls = list(self._calls(self._value(body, {**self._captures, **captures})))
        except (ValueError, RecursionError):
            return [Content(body)] if body else []
        pieces: list[Piece] = []
        for name, arguments in calls:
            start = self._numbers.start(name)
            pieces += [start, ToolCallArguments(start.index, arguments)]
        return pieces

    def _value(self, body: str, scope: Mapping[str, str]) -> Any:
        region = self._region
        value = read_content(body, region.kind, region.arguments, clock=self._clock)
        if region.transform is None:
            return value
        if not region.transforms_each:
            return transformed(region.transform, {**scope, "content": value})
        if not isinstance(value, list) or not all(isinstance(member, dict) for member in value):
            raise ValueError("the value is no array of objects")
        return [transformed(region.transform, {**scope, **member}) for member in value]

    def _calls(self, value: object) -> Iterator[tuple[str, str]]:
        if isinstance(value, list):
            for member in value:
                yield from self._calls(member)
            return
        function = value.get("function", value) if isinstance(value, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(name, str) or not is_name(name):
            raise ValueError("the value is no call")
        yield name, arguments_text(function.get("arguments"), self._types.get(name, {}))


def arguments_text(arguments: object, types: Types) -> str:
    """The JSON text of a call's arguments: an object, the text of one, or None. Raises ValueError for others."""
    if arguments is None:
        return "{}"
    if isinstance(arguments, str):
        if not isinstance(parse_nested(json.loads, arguments), dict):
            raise ValueError("the arguments are no object")
        return arguments
    if not isinstance(arguments, dict):
        raise ValueError("the arguments are no object")
    return json_text({key: in_types(value, types[key]) if key in types else value for key, value in arguments.items()})


def is_name(name: str) -> bool:
    """Whether the text can be a tool's name: not empty, on one line, Unicode."""
    return bool(name.strip()) and not any(
        character in "\r\n" or "\ud800" <= character <= "\udfff" for character in name
    )


class GrowingCalls:
    """Calls in JSON whose arguments are passed on as they grow, once their name is known.

    A key that comes again in a call is left out, as the first one's value has been passed on. Text that is no JSON
    becomes content; a call that has begun keeps the arguments before it.
    """

    def __init__(
        self, plan: CallPlan, captures: Mapping[str, str], *, types: Mapping[str, Types], numbers: CallNumbers
    ) -> None:
        self._plan = plan
        self._types = types
        self._numbers = numbers
        self._reader = JsonReader()
        name = plan.name if plan.name_group is None else captures.get(plan.name_group)
        self._known_name = name if name is not None and is_name(name) else None
        self._root: tuple[str | None, ...] | None = None
        """Path to the object of a call, once the text has begun."""
        self._raw: list[str] = []
        """Text since the last call, which is content if no other comes of it."""
        self._lost = ""
        """Text up to the last malformed call."""
        self._failed = False
        self._call = _Call(self._known_name)

    def push(self, text: str) -> list[Piece]:
        """The pieces that the text completes."""
        pieces: list[Piece] = []
        place = 0
        while not self._failed:
            event = self._reader.read(text, place)
            end = len(text) if event is None else event.place
            self._take(text[place:end], pieces)
            place = end
            if event is None:
                return pieces
            self._failed = not self._on(event, pieces)
        lost = self._lost + "".join(self._raw) + text[place:]
        self._lost, self._raw = "", []
        return [*pieces, Content(lost)] if lost else pieces

    def close(self, captures: Mapping[str, str]) -> list[Piece]:
        """The pieces that are left: text that became no call."""
        pieces: list[Piece] = []
        if self._call.index is not None:
            self._send(self._call.writer.finish(), pieces)
        raw = "".join(self._raw)
        whole = self._reader.finish()
        if self._lost or (not whole and raw.strip(" \t\r\n,[")):
            pieces.append(Content(self._lost + raw))
        return pieces

    def _take(self, text: str, pieces: list[Piece]) -> None:
        call = self._call
        if call.index is None:
            self._raw.append(text)
        if call.reading is None:
            return
        if call.reading == _ARGUMENTS and call.index is not None:
            self._send(call.writer.write(text), pieces)
        else:
            call.read += text

    def _send(self, text: str, pieces: list[Piece]) -> None:
        if text and self._call.index is not None:
            pieces.append(ToolCallArguments(self._call.index, text))

    def _on(self, event: JsonEvent, pieces: list[Piece]) -> bool:
        """Goes on after an event; returns whether the text can still have calls."""
        if event.what is What.ERROR:
            return False
        if self._root is None:
            in_array = event.first == "["
            if event.first not in ("[", "{") or self._plan.in_array not in (None, in_array):
                return False
            self._root = (None,) if in_array else ()
        depth = len(self._root)
        if len(event.path) < depth:
            return True
        path = event.path[depth:]
        if event.what is What.BEGIN:
            if not path and event.first != "{":
                return False
            self._on_begin(event.first, path, pieces)
        else:
            if path == self._call.reading_path:
                self._on_end(pieces)
            if not path:
                self._end_call(pieces)
        return True

    def _on_begin(self, first: str, path: tuple[str | None, ...], pieces: list[Piece]) -> None:
        call = self._call
        if call.reading is not None:
            return
        if path in self._plan.name_paths and call.name is None and first == '"':
            call.begin(_NAME, path)
        elif path in self._plan.arguments_paths and not call.has_arguments:
            call.has_arguments = True
            call.begin(_ARGUMENTS if first == "{" else _OTHER, path)
            if first == "{" and call.name is not None:
                self._start(call.name, pieces)

    def _on_end(self, pieces: list[Piece]) -> None:
        """Ends the name, or the arguments."""
        call = self._call
        reading, read = call.end()
        if reading == _NAME:
            name = decoded_string(read)
            call.name = name if name is not None and is_name(name) else None
        elif reading == _OTHER:
            try:
                call.text = arguments_text(parse_nested(json.loads, read), {})
            except (ValueError, RecursionError):
                call.text = None
        elif call.index is None:
            call.early = read
        if call.name is None or call.index is not None:
            return
        if call.early is not None:
            writer = self._start(call.name, pieces)
            self._send(writer.write(call.early), pieces)
        elif call.text is not None:
            self._start(call.name, pieces)
            self._send(call.text, pieces)

    def _start(self, name: str, pieces: list[Piece]) -> ArgumentWriter:
        if self._lost:
            pieces.append(Content(self._lost))
        self._lost, self._raw = "", []
        start = self._numbers.start(name)
        pieces.append(start)
        self._call.index = start.index
        self._call.writer = ArgumentWriter(self._types.get(name, {}))
        return self._call.writer

    def _end_call(self, pieces: list[Piece]) -> None:
        call = self._call
        if call.index is None:
            if call.name is not None and not call.has_arguments and not self._plan.needs_arguments:
                self._start(call.name, pieces)
                self._send("{}", pieces)
            else:
                self._lost += "".join(self._raw)
                self._raw = []
        self._call = _Call(self._known_name)


class _Call:
    """The call that is being read."""

    def __init__(self, name: str | None) -> None:
        self.name = name
        self.index: int | None = None
        """Its number, once it has started."""
        self.writer = ArgumentWriter({})
        self.has_arguments = False
        self.early: str | None = None
        """Arguments that came before the name."""
        self.text: str | None = None
        """Arguments that are no object, but the text of one, or null."""
        self.reading: str | None = None
        self.reading_path: tuple[str | None, ...] | None = None
        self.read = ""

    def begin(self, reading: str, path: tuple[str | None, ...]) -> None:
        """Begins a value that is kept."""
        self.reading, self.reading_path, self.read = reading, path, ""

    def end(self) -> tuple[str, str]:
        """Ends it; returns what it is, and its text."""
        reading, read = self.reading or "", self.read
        self.reading, self.reading_path, self.read = None, None, ""
        return reading, read
