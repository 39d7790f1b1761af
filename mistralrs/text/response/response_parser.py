"""Splits an answer into content, reasoning and tool calls while it grows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mistralrs.errors import EngineError
from mistralrs.text.response.argument_types import declared_types
from mistralrs.text.response.call_reader import CallNumbers, CallReader, call_reader
from mistralrs.text.response.delimiters import PUSH_S, Found, MatchClock
from mistralrs.text.response.pieces import Content, Piece, Reasoning, ToolCallArguments
from mistralrs.text.response.response_template import Part, Region, ResponseTemplate
from mistralrs.text.response.text_writer import TextWriter

PROMPT_CHARACTERS = 64 << 10
"""The end of a prompt in which the answer's beginning is searched."""
_KEPT = 1024
"""Characters before the place of reading that a look-behind sees."""
_SLICE = 1024
"""Characters that are searched at once: after each delimiter, the rest is searched again."""
_MAX_STILL = 64
"""Regions that may open and close at one place; a pattern that matches the empty text could do so for ever."""


class ResponseParser:
    """Splits one answer by its model's response template. The pieces do not depend on how the text is cut up.

    ``prompt_end`` is the end of the prompt, or all of it. Its text after the last start anchor belongs to the answer,
    such as an opened thought; it is read, but gives no pieces but those of a call that it leaves open. ``tools`` are
    the request's: a call's arguments that are texts take the types that its tool declares.

    The results equal those of transformers' `ResponseParser` but here: a field that comes again does not replace the
    text, or calls, that were sent before; a region of calls that cannot be read is content; a prompt without the start
    anchor is not read; text outside of all regions is content if the template has no field for it; declared types count
    also where a template gives a call's name and arguments without ``function`` around them.
    """

    def __init__(
        self, template: ResponseTemplate, *, prompt_end: str = "", tools: Sequence[Mapping[str, object]] = ()
    ) -> None:
        self._template = template
        self._implicit = template.implicit
        self._opening = tuple(region for region in template.regions if region.open is not None)
        contents = [region for region in template.regions if region.part is Part.CONTENT]
        self._content = contents[0] if contents else Region("content", Part.CONTENT, None, None)
        self._clock = MatchClock()
        self._types = declared_types(tools)
        self._text = ""
        self._place = 0
        self._still = 0
        self._finished = False
        self._writers: dict[str, TextWriter] = {}
        self._numbers = CallNumbers()
        self._region = self._implicit
        self._captures: Mapping[str, str] = {}
        self._is_open = False
        """Whether the region has begun; the implicit one has when it has text."""
        self._opened_at = 0
        self._calls: CallReader | None = None
        self._kept: list[Piece] = []
        if prompt_end:
            self._read_prompt(prompt_end[-PROMPT_CHARACTERS:])

    @property
    def is_thinking(self) -> bool:
        """Whether a region of reasoning is open."""
        return self._region is not None and self._region.part is Part.REASONING

    def push(self, text: str) -> list[Piece]:
        """The pieces that further text decides. Raises EngineError if the template's patterns take too long."""
        pieces: list[Piece] = []
        for start in range(0, len(text), _SLICE):
            self._clock.left_s += PUSH_S
            self._forget()
            self._text += text[start : start + _SLICE]
            pieces += self._advance(final=False)
        return merged(pieces)

    def finish(self, *, is_cut: bool = False) -> list[Piece]:
        """Ends the answer; returns the pieces that were held back. Regions that are open end here.

        ``is_cut``: the model would have gone on. The beginning of a part, with one whole mark of it, is then no text.
        """
        if self._finished:
            raise RuntimeError("the answer has ended")
        self._finished = True
        if is_cut and self._calls is None and self._text[self._place :].lstrip().startswith(self._marks()):
            self._text = self._text[: self._place]
        return self._advance(final=True)

    def _marks(self) -> tuple[str, ...]:
        """The markers that look like tokens' names."""
        return tuple(each for each in self._template.markers if len(each) > 2 and each[0] + each[-1] in ("<>", "[]"))

    def _read_prompt(self, prompt: str) -> None:
        end = self._template.anchor.last_end(prompt, self._clock)
        if end is None or end == len(prompt):
            return
        self._text = prompt[end:]
        self._advance(final=False)
        self._numbers.count = 0
        if self._region is not None and self._calls is not None:
            # The answer goes on with the arguments, so that it has to have their beginning.
            self._calls = self._call_reader(self._region)
            self._add(self._calls.push(self._text[self._opened_at : self._place]), self._kept)

    def _advance(self, *, final: bool) -> list[Piece]:
        pieces, self._kept = self._kept, []
        while True:
            found, end = self._next(final=final)
            if found is None:
                if final and self._calls is not None:
                    end = self._place  # the beginning of a mark that the answer's end cut off, and no argument
                self._pass_on(end, pieces)
                if final:
                    self._close({}, pieces)
                return merged(pieces)
            if found.place.end == self._place:
                self._count_still()
            self._pass_on(found.place.start, pieces)
            self._place = found.place.end
            if found.opens:
                self._close({}, pieces)
                self._open(found.region, found.place.captures)
            elif self._is_open or found.place.end > found.place.start:
                self._close(found.place.captures, pieces)
            else:
                # The pattern closes nothing, and would again: the text goes on after the next character.
                self._pass_on(self._place + 1, pieces)

    def _next(self, *, final: bool) -> tuple[_Delimiting | None, int]:
        """The delimiter to act on, if it is decided, and where the text ends that is decided."""
        best: _Delimiting | None = None
        hold = len(self._text)
        for region, opens in self._watched():
            delimiter = region.open if opens else region.close
            if delimiter is None:
                continue
            place = delimiter.find(self._text, self._place, self._clock, final=final)
            if isinstance(place, int):
                hold = min(hold, place)
            elif place is not None:
                found = _Delimiting(place, region, opens)
                if best is None or found.order < best.order:
                    best = found
        return (best if best is not None and best.place.start < hold else None), hold

    def _watched(self) -> Iterator[tuple[Region, bool]]:
        """The regions whose delimiters count now, each with whether it is the opening one."""
        if self._region is not None and self._region is not self._implicit:
            yield self._region, False
            return
        for region in self._opening:
            yield region, True
        if self._implicit is not None:
            yield self._implicit, False

    def _count_still(self) -> None:
        self._still += 1
        if self._still > _MAX_STILL:
            raise EngineError(
                "the patterns of the model's response template open and close regions without end",
                hint="mend response_template in the model's tokenizer_config.json, or remove it there",
                code="response_template_endless",
            )

    def _open(self, region: Region, captures: Mapping[str, str]) -> None:
        self._region, self._captures = region, captures
        self._opened_at = self._place
        self._is_open = True
        if region.part is Part.TOOL_CALLS:
            self._calls = self._call_reader(region)
        else:
            self._writer(region).open()

    def _call_reader(self, region: Region) -> CallReader:
        return call_reader(region, self._captures, types=self._types, numbers=self._numbers, clock=self._clock)

    def _pass_on(self, end: int, pieces: list[Piece]) -> None:
        """Gives the open region the text up to ``end``."""
        text = self._text[self._place : end]
        region = self._region
        if not text:
            return
        self._still = 0
        if region is not None:
            if not self._is_open:
                self._open(region, {})
            if self._calls is not None:
                self._add(self._calls.push(text), pieces)
            else:
                self._write(region, text, pieces)
        self._place = end

    def _close(self, captures: Mapping[str, str], pieces: list[Piece]) -> None:
        if self._region is not None and self._is_open:
            if self._calls is not None:
                self._add(self._calls.close(captures), pieces)
                for writer in self._writers.values():  # text of malformed calls is a region of its own
                    writer.end()
            else:
                self._emit(self._region.part, self._writer(self._region).end(), pieces)
        self._region, self._captures = self._implicit, {}
        self._is_open, self._calls = False, None

    def _add(self, read: list[Piece], pieces: list[Piece]) -> None:
        """Adds the pieces of a region of calls."""
        for piece in read:
            if isinstance(piece, Content):
                self._write(self._content, piece.text, pieces)
            else:
                pieces.append(piece)

    def _write(self, region: Region, text: str, pieces: list[Piece]) -> None:
        self._emit(region.part, self._writer(region).write(text), pieces)

    def _emit(self, part: Part, text: str, pieces: list[Piece]) -> None:
        if text:
            pieces.append(Content(text) if part is Part.CONTENT else Reasoning(text))

    def _writer(self, region: Region) -> TextWriter:
        if region.name not in self._writers:
            first = region.name in self._template.begins_with_join
            self._writers[region.name] = TextWriter(strips=region.strips, join=region.join, begins_with_join=first)
        return self._writers[region.name]

    def _forget(self) -> None:
        """Drops text that no pattern can need."""
        if self._place > 4 * _KEPT:
            self._text = self._text[self._place - _KEPT :]
            self._place = _KEPT


@dataclass(frozen=True, slots=True)
class _Delimiting:
    """A region's opening or closing delimiter in the text."""

    place: Found
    region: Region
    opens: bool

    @property
    def order(self) -> tuple[int, int, bool, str]:
        """The first one counts, then the longest; an opening one before a closing one."""
        return self.place.start, -self.place.end, not self.opens, self.region.name


def merged(pieces: Iterable[Piece]) -> list[Piece]:
    """The pieces with neighbours joined that go on with the same text."""
    found: list[Piece] = []
    for piece in pieces:
        last = found[-1] if found else None
        if isinstance(piece, Content) and isinstance(last, Content):
            found[-1] = Content(last.text + piece.text)
        elif isinstance(piece, Reasoning) and isinstance(last, Reasoning):
            found[-1] = Reasoning(last.text + piece.text)
        elif isinstance(piece, ToolCallArguments) and isinstance(last, ToolCallArguments) and piece.index == last.index:
            found[-1] = ToolCallArguments(piece.index, last.text + piece.text)
        else:
            found.append(piece)
    return found
