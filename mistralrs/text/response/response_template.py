"""Reads response templates: declarations of how a model writes reasoning, content and tool calls.

The format is that of `response_template` in `tokenizer_config.json`, which transformers defines in
`chat_response_parsing.md`, version 1. Parts of it that have no place in an answer are refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any

from mistralrs.errors import LoadError
from mistralrs.text.response.call_plan import CallPlan, call_plan
from mistralrs.text.response.delimiters import MAX_PATTERN, Delimiter, compiled, literal_texts, shown, token_names
from mistralrs.text.response.region_values import PLACEHOLDER, TYPES

MAX_CHARACTERS = 64 << 10
"""Characters of a template as JSON, at most."""
MAX_FIELDS = 32
MAX_LITERALS = 64
MAX_DEPTH = 32
_REASONING = ("thinking", "reasoning_content", "reasoning")
_TOP = {"version", "defaults", "fields", "start_anchor", "start_anchor_pattern"}
_FIELD = {
    *("open", "open_pattern", "close", "close_pattern", "content", "content_args", "repeats", "join", "optional"),
    *("transform", "transform_each"),
}
_HINT = "mend response_template in the model's tokenizer_config.json, or remove it there"


class Part(Enum):
    """The part of an answer that a region's text belongs to."""

    CONTENT = "content"
    REASONING = "reasoning"
    TOOL_CALLS = "tool_calls"


@dataclass(frozen=True, slots=True)
class Region:
    """One field of a response template."""

    name: str
    part: Part
    open: Delimiter | None
    """None: the region is open wherever no other is."""
    close: Delimiter | None
    """None: it goes on to the answer's end."""
    kind: str = "text"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    join: str | None = None
    """Text between two regions of this field; None: a line's end, or the space that the model wrote."""
    transform: Any = None
    transforms_each: bool = False
    plan: CallPlan | None = None
    """Places of a call's name and arguments in a body of JSON, so that they can be read as they grow; None: the value
    is read when the region closes."""

    @property
    def strips(self) -> bool:
        """Whether space around the region's text is left out."""
        return bool(self.arguments.get("strip", True))


@dataclass(frozen=True, slots=True)
class ResponseTemplate:
    """How a model's answers are split into their parts. Immutable; can be pickled; loads patterns on first use."""

    anchor: Delimiter
    """The last one in a prompt is where the answer begins."""
    regions: tuple[Region, ...]
    markers: frozenset[str]
    """Literal texts by which parts are recognised: the literals, the literal runs of the patterns, and each part of
    these that looks like a token's name. A control token with such a name has to be spelled in the answer's text."""
    begins_with_join: frozenset[str] = frozenset()
    """Regions whose first text has ``join`` before it too, because the defaults have an empty text."""

    @property
    def has_tool_calls(self) -> bool:
        """Whether a region has tool calls."""
        return any(region.part is Part.TOOL_CALLS for region in self.regions)

    @property
    def has_reasoning(self) -> bool:
        """Whether a region has reasoning."""
        return any(region.part is Part.REASONING for region in self.regions)

    @property
    def implicit(self) -> Region | None:
        """The region that is open where no other is; None: such text is left out."""
        return next((region for region in self.regions if region.open is None), None)

    def without_tool_calls(self) -> ResponseTemplate:
        """The template for a request without tools: text that would be a call is content as it stands."""
        return _template(
            self.anchor,
            [region for region in self.regions if region.part is not Part.TOOL_CALLS],
            self.begins_with_join,
        )

    @classmethod
    def parse(cls, declared: Mapping[str, object]) -> ResponseTemplate:
        """The template of a declaration. Raises LoadError for one that is broken, too large or not supported."""
        try:
            return _parsed(declared)
        except LoadError as error:
            raise LoadError(f"response_template: {error.message}", hint=error.hint or _HINT) from None


def _parsed(declared: Mapping[str, object]) -> ResponseTemplate:
    if not isinstance(declared, Mapping):
        raise LoadError("it is no object")
    _check_size(declared)
    if declared.get("version", 1) != 1:
        raise LoadError(f"version {declared['version']!r} is not known; 1 is")
    _refuse_others(declared, _TOP)
    fields = declared.get("fields")
    if not isinstance(fields, Mapping) or not fields or len(fields) > MAX_FIELDS:
        raise LoadError(f"fields is no object with one to {MAX_FIELDS} members")
    anchor = _delimiter(declared, "start_anchor")
    if anchor is None:
        raise LoadError("there is no start_anchor and no start_anchor_pattern")
    regions = [_named(f"fields.{name}", partial(_region, name, each)) for name, each in fields.items()]
    implicit = [region.name for region in regions if region.open is None]
    if len(implicit) > 1:
        raise LoadError(f"the fields {' and '.join(implicit)} have no open and no open_pattern; only one may")
    parts = [region.part for region in regions]
    if parts.count(Part.REASONING) > 1:
        raise LoadError(f"more than one of the fields {', '.join(_REASONING)} is declared")
    empty = _empty_defaults(declared.get("defaults", {}), {region.name: region for region in regions})
    return _template(anchor, regions, empty)


def _template(anchor: Delimiter, regions: list[Region], begins_with_join: frozenset[str]) -> ResponseTemplate:
    if all(region.open is not None and region.part is not Part.CONTENT for region in regions):
        # Without a field for it, transformers leaves an answer's plain text out.
        regions = [*regions, Region("content", Part.CONTENT, None, None)]
    markers = frozenset(name for text in _literals(regions) for name in token_names(text))
    return ResponseTemplate(anchor, tuple(regions), markers, begins_with_join)


def _named(place: str, read: Callable[[], Region]) -> Region:
    try:
        return read()
    except LoadError as error:
        raise LoadError(f"{place}: {error.message}") from None


def _check_size(declared: Mapping[str, object]) -> None:
    try:
        characters = len(json.dumps(declared))
    except (TypeError, ValueError, RecursionError):
        raise LoadError("it is no JSON value") from None
    if characters > MAX_CHARACTERS:
        raise LoadError(f"it has {characters} characters; more than {MAX_CHARACTERS} are refused")
    level: list[object] = [declared]
    for _ in range(MAX_DEPTH):
        level = [member for each in level for member in _members(each)]
    if level:
        raise LoadError(f"it has more than {MAX_DEPTH} objects and arrays inside each other")


def _members(value: object) -> Iterable[object]:
    return value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()


def _refuse_others(given: Mapping[str, object], known: set[str] | frozenset[str]) -> None:
    if others := [str(key) for key in given if key not in known]:
        raise LoadError(f"{', '.join(sorted(others))}: not known; {', '.join(sorted(known)) or 'nothing'} would be")


def _region(name: str, given: object) -> Region:
    if not isinstance(given, Mapping):
        raise LoadError("it is no object")
    _refuse_others(given, _FIELD)
    part = _part(name)
    if not _flag(given, "optional", default=True):
        raise LoadError("optional is false, but an answer may end before any part; leave it out")
    repeats = _flag(given, "repeats", default=False)
    join = given.get("join")
    if join is not None and (not isinstance(join, str) or not repeats or part is Part.TOOL_CALLS):
        raise LoadError("join is a text, of a field of text whose repeats is true")
    kind = given.get("content", "text")
    if not isinstance(kind, str) or kind not in TYPES:
        raise LoadError(f"the content type {kind!r} is not known; {', '.join(sorted(TYPES))} are")
    arguments = given.get("content_args", {})
    _check_arguments(kind, arguments)
    opening, closing = _delimiter(given, "open"), _delimiter(given, "close")
    groups = tuple(each.groups if each else frozenset() for each in (opening, closing))
    transform = given.get("transform")
    each = _flag(given, "transform_each", default=False)
    _check_transform(transform, groups[0] | groups[1], each=each)
    plan = None
    if part is not Part.TOOL_CALLS:
        if kind != "text" or transform not in (None, "{content}") or each:
            raise LoadError(f"{part.value} is text; other content types and transform are for tool_calls")
    elif kind == "json" and not any(arguments.get(key) for key in TYPES["json"] - {"strip"}):
        plan = call_plan(transform, each=each, opening=groups[0], closing=groups[1])
    return Region(name, part, opening, closing, kind, dict(arguments), join, transform, each, plan)


def _part(name: str) -> Part:
    if name in _REASONING:
        return Part.REASONING
    if name in ("content", "tool_calls"):
        return Part(name)
    raise LoadError(f"an answer has no such part; {', '.join(('content', *_REASONING, 'tool_calls'))} are known")


def _flag(given: Mapping[str, object], key: str, *, default: bool) -> bool:
    value = given.get(key, default)
    if not isinstance(value, bool):
        raise LoadError(f"{key} is {value!r}, not true or false")
    return value


def _delimiter(given: Mapping[str, object], key: str) -> Delimiter | None:
    pattern_key = f"{key}_pattern"
    if key in given and pattern_key in given:
        raise LoadError(f"there are both {key} and {pattern_key}")
    if pattern_key in given:
        return Delimiter(pattern=_pattern(pattern_key, given[pattern_key]))
    if key not in given:
        return None
    value = given[key]
    given_literals = value if isinstance(value, list) else [value]
    literals = [each for each in given_literals if isinstance(each, str) and each]
    if not literals or len(literals) < len(given_literals) or len(literals) > MAX_LITERALS:
        raise LoadError(f"{key} is no text, and no list of one to {MAX_LITERALS} texts")
    if any(len(each) > MAX_PATTERN for each in literals):
        raise LoadError(f"{key} has a text of more than {MAX_PATTERN} characters")
    return Delimiter(tuple(dict.fromkeys(literals)))


def _pattern(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise LoadError(f"{key} is no text")
    if len(value) > MAX_PATTERN:
        raise LoadError(f"{key} has {len(value)} characters; more than {MAX_PATTERN} are refused")
    try:
        compiled(value)
    except LoadError as error:
        raise LoadError(f"{key}: {error.message}") from None
    return value


def _check_arguments(kind: str, arguments: object) -> None:
    if not isinstance(arguments, Mapping):
        raise LoadError("content_args is no object")
    _refuse_others(arguments, TYPES[kind])
    for key in ("strip", "unquoted_keys", "allow_non_json", "merge_duplicates"):
        _flag(arguments, key, default=False)
    for key in ("line_sep", "kv_sep"):
        if not isinstance(text := arguments.get(key, ":"), str) or not text:
            raise LoadError(f"content_args.{key} is no text")
    pairs = arguments.get("string_delims", [])
    if not isinstance(pairs, list) or not all(map(_is_pair, pairs)):
        raise LoadError("content_args.string_delims is no list of pairs of texts")
    if kind == "xml-inline":
        pattern = _pattern("content_args.tag_pattern", arguments.get("tag_pattern"))
        if "key" not in compiled(pattern).groupindex:
            raise LoadError(f"content_args.tag_pattern {shown(pattern)} has no group named key")
    inner = arguments.get("value_parser")
    if inner is not None:
        _check_inner(inner)


def _check_inner(inner: object) -> None:
    if not isinstance(inner, Mapping):
        raise LoadError("content_args.value_parser is no object")
    _refuse_others(inner, {"name", "args"})
    kind = inner.get("name", "text")
    if not isinstance(kind, str) or kind not in TYPES:
        raise LoadError(f"content_args.value_parser: the content type {kind!r} is not known")
    _check_arguments(kind, inner.get("args", {}))


def _is_pair(pair: object) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) and text for text in pair)


def _check_transform(transform: object, groups: frozenset[str], *, each: bool) -> None:
    if transform is None:
        if each:
            raise LoadError("transform_each is true, but there is no transform")
        if groups:
            raise LoadError(f"only a transform can use the named groups {', '.join(sorted(groups))}; there is none")
    for text in _texts(transform):
        if PLACEHOLDER.search(text) and not PLACEHOLDER.fullmatch(text):
            raise LoadError(f"transform: {shown(text)} has other text beside a placeholder")


def _texts(shape: object) -> Iterator[str]:
    if isinstance(shape, str):
        yield shape
    for member in _members(shape):
        yield from _texts(member)


def _empty_defaults(defaults: object, regions: Mapping[str, Region]) -> frozenset[str]:
    if not isinstance(defaults, Mapping):
        raise LoadError("defaults is no object")
    for name, value in defaults.items():
        known = value == "assistant" if name == "role" else name in regions and value in (None, "", [])
        if not known:
            raise LoadError(f"defaults.{name} is {shown(str(value))}, which has no place in an answer")
    return frozenset(name for name, region in regions.items() if region.join is not None and defaults.get(name) == "")


def _literals(regions: list[Region]) -> Iterator[str]:
    for region in regions:
        for delimiter in filter(None, (region.open, region.close)):
            yield from delimiter.literals
            yield from literal_texts(delimiter.pattern or "")
        yield from _argument_literals(region.arguments)


def _argument_literals(arguments: Mapping[str, Any]) -> Iterator[str]:
    yield from literal_texts(arguments.get("tag_pattern") or "")
    for pair in arguments.get("string_delims", ()):
        yield from pair
    inner = arguments.get("value_parser")
    if inner is not None:
        yield from _argument_literals(inner.get("args", {}))
