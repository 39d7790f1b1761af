"""Response templates for answers in which text that has the form of a tool call is text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from mistralrs.text.response.delimiters import Delimiter, literal_texts, token_names
from mistralrs.text.response.response_template import Part, Region, ResponseTemplate


def without_tool_calls(template: ResponseTemplate) -> ResponseTemplate | None:
    """The template that splits off reasoning alone; None if it has none, since an answer is then content.

    A caller without tools may have told the model itself to write calls, and reads them in the content.
    """
    if not template.has_reasoning:
        return None
    own = _names(region for region in template.regions if region.part is Part.TOOL_CALLS)
    own -= _names(region for region in template.regions if region.part is Part.REASONING)
    regions = tuple(
        replace(region, close=_without(region.close, own)) if region.part is Part.CONTENT else region
        for region in template.regions
        if region.part is not Part.TOOL_CALLS
    )
    return replace(template, regions=regions, markers=template.markers - own)


def _names(regions: Iterable[Region]) -> frozenset[str]:
    """Tokens' names that the delimiters of regions have."""
    found: set[str] = set()
    for region in regions:
        for delimiter in filter(None, (region.open, region.close)):
            for text in (*delimiter.literals, *literal_texts(delimiter.pattern or "")):
                found.update(name for name in token_names(text) if name != text or _is_name(name))
    return frozenset(found)


def _is_name(text: str) -> bool:
    return [*token_names(text)] == [text, text]


def _without(delimiter: Delimiter | None, names: frozenset[str]) -> Delimiter | None:
    """The delimiter that does not match these names."""
    if delimiter is None or not names:
        return delimiter
    if delimiter.pattern is None:
        literals = tuple(each for each in delimiter.literals if each not in names)
        return Delimiter(literals) if literals else None
    others = "|".join(sorted(map(re.escape, names)))
    return Delimiter(pattern=rf"(?!\s*(?:{others})){delimiter.pattern}")
