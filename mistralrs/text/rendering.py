"""From a conversation to the text of a prompt: renders the model's Jinja template.

Knows the variables that templates expect, and which part of a prompt the template wrote and which the people. Runs in a
process of its own (``worker_process``), since a template is foreign code; does not know where it came from.

A text that people write never becomes a control token. Where a message spells one, its first character is swapped for a
private-use character that occurs nowhere else, so the template still sees one character and its own control tokens
are the only ones left in the rendered text. The text is then cut at these, as a tokenizer does anyway, and the parts
between are put back, to be encoded as plain text: all other tokens are those that any text would give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mistralrs.errors import LoadError, RequestError
from mistralrs.text.conversation import Rendered, TemplateRefusalError, render_conversation
from mistralrs.text.sandbox import TemplateRefusal, compile_template, render_template

if TYPE_CHECKING:
    from mistralrs.text.control import ControlTexts

_PRIVATE_USE = (*range(0xE000, 0xF8FF), *range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE))
_FIELDS = "messages"

Messages = Sequence[Mapping[str, Any]]
Piece = tuple[str, bool]
"""A part of a prompt, and whether control tokens that it spells are such: what the template wrote."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation's prompt, as one text or in pieces."""

    text: str | None
    """None: pieces were asked for."""
    pieces: Sequence[Piece]
    system_moved: bool
    """A system message stands in a user's turn, since the template has no other place for it."""
    unused: Sequence[int]
    """Places of those of the asked paths without which the prompt is the same."""


class Renderer:
    """A compiled template. ``tokens`` are the texts of BOS, EOS and unknown, by the names that templates have for them.

    Raises LoadError when ``source`` does not compile.
    """

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        try:
            self._template = compile_template(source)
        except MemoryError:
            raise
        except Exception as error:  # whatever a broken template makes Jinja or Python say
            raise LoadError(
                f"the chat template does not compile: {_shown(error)}", hint="pass another one with --chat-template"
            ) from error
        self._source = source
        self._tokens = tokens

    def render(self, messages: Messages, variables: Mapping[str, Any], *, add_generation_prompt: bool) -> str:
        """The prompt's text. ``variables`` win over those that every template gets.

        Raises TemplateRefusalError with the template's own words when it refuses the messages, and RequestError that
        says why when it failed on them.
        """
        try:
            return render_template(
                self._template,
                {
                    **self._tokens,
                    "messages": [dict(message) for message in messages],
                    "add_generation_prompt": add_generation_prompt,
                    "tools": None,  # None and not absent: templates ask `tools is not none`
                    "documents": None,
                    **variables,
                },
            )
        except MemoryError:
            raise
        except TemplateRefusal as error:
            raise TemplateRefusalError(
                f"the chat template refuses the messages: {error.message}", param="messages"
            ) from error
        except Exception as error:  # the template is foreign code: anything may come out of it
            raise RequestError(
                f"the chat template failed on the messages: {_shown(error)}",
                hint="check the messages, or pass another template with --chat-template",
                param="messages",
            ) from error

    def prompt(
        self,
        messages: Messages,
        variables: Mapping[str, Any],
        *,
        add_generation_prompt: bool,
        continue_final: bool,
        paths: Sequence[tuple[str, str]],
        controls: ControlTexts | None,
    ) -> Prompt:
        """The prompt of messages that the template may refuse as they are: then of a rewriting.

        ``paths`` are fields of messages and variables that may be useless. With ``controls`` the prompt comes in
        pieces, else as a text. Raises RequestError.
        """
        asked = _Asked(self, add_generation_prompt=add_generation_prompt, continue_final=continue_final)
        unused = asked.unused(messages, variables, paths) if paths else ()
        if controls is None:
            rendered = asked.rendered(messages, variables)
            return Prompt(rendered.text, (), rendered.system_moved, unused)
        pieces, rendered = self._pieces(asked, messages, variables, controls)
        return Prompt(None, pieces, rendered.system_moved, unused)

    def _pieces(
        self, asked: _Asked, messages: Messages, variables: Mapping[str, Any], controls: ControlTexts
    ) -> tuple[list[Piece], Rendered]:
        given = (messages, variables)
        strings = list(_strings(given))
        spelled = {text[at] for text in strings for at in _spelled(controls, text)}
        if not spelled:
            rendered = asked.rendered(*given)
            return [(rendered.text, True)], rendered
        swap = _stand_ins(spelled, unused_in=[self._source, *strings])
        rendered = asked.rendered(
            *(_mapped(part, lambda text: _swapped(controls, text, swap), names=self._source) for part in given)
        )
        text = rendered.text
        back = str.maketrans({stand_in: character for character, stand_in in swap.items()})
        pieces = []
        position = 0
        for start, end in controls.spans(text):
            pieces += [(text[position:start].translate(back), False), (text[start:end], True)]
            position = end
        pieces.append((text[position:].translate(back), False))
        return [(text, special) for text, special in pieces if text], rendered

    @property
    def source(self) -> str:
        return self._source


class _Asked:
    """One way to ask for a prompt."""

    def __init__(self, renderer: Renderer, *, add_generation_prompt: bool, continue_final: bool) -> None:
        self._renderer = renderer
        self._add_generation_prompt = add_generation_prompt
        self._continue_final = continue_final

    def rendered(self, messages: Messages, variables: Mapping[str, Any]) -> Rendered:
        """As ``render_conversation`` says.

        Where the last message is to be continued, the text ends with its content. As in `transformers`, space at its
        end is lost with a template that trims contents. Raises RequestError where it has no text or the template does
        not show it.
        """

        def render(candidate: Messages) -> str:
            return self._renderer.render(candidate, variables, add_generation_prompt=self._add_generation_prompt)

        marks = _unused([self._renderer.source, *_strings(messages)])  # looks for them when one is wanted
        if not self._continue_final:
            return render_conversation(render, messages, marks)
        mark = next(marks)
        rendered = render_conversation(render, _marked(messages, mark), marks)
        return Rendered(_before(mark, rendered.text), rendered.system_moved)

    def unused(
        self, messages: Messages, variables: Mapping[str, Any], paths: Sequence[tuple[str, str]]
    ) -> Sequence[int]:
        """Places of the paths without which the prompt is the same."""
        whole = self.rendered(messages, variables).text
        places: Sequence[int] = range(len(paths))
        if self._without(messages, variables, paths) != whole:
            places = [place for place in places if self._without(messages, variables, [paths[place]]) == whole]
        return list(places)

    def _without(
        self, messages: Messages, variables: Mapping[str, Any], paths: Sequence[tuple[str, str]]
    ) -> str | None:
        """The prompt without these; None where the template does not do without."""
        fields = {name for where, name in paths if where == _FIELDS}
        others = {name for where, name in paths if where != _FIELDS}
        try:
            return self.rendered(
                [{key: value for key, value in message.items() if key not in fields} for message in messages],
                {key: value for key, value in variables.items() if key not in others},
            ).text
        except RequestError:
            return None


def _spelled(controls: ControlTexts, text: str) -> list[int]:
    """Where a text spells a control token, or ends in the beginning of one that what comes next could complete."""
    unfinished = controls.unfinished(text)
    return [*controls.starts(text), *([] if unfinished is None else [unfinished])]


def _swapped(controls: ControlTexts, text: str, swap: Mapping[str, str]) -> str:
    characters = list(text)
    for position in _spelled(controls, text):
        characters[position] = swap[text[position]]
    return "".join(characters)


def _stand_ins(characters: set[str], *, unused_in: list[str]) -> dict[str, str]:
    return dict(zip(sorted(characters), _unused(unused_in), strict=False))


def _unused(texts: Sequence[str]) -> Iterator[str]:
    """Private-use characters that are in none of the texts."""
    used = set().union(*texts)
    yield from (character for code in _PRIVATE_USE if (character := chr(code)) not in used)
    raise RequestError("the messages use every private-use character of Unicode", param="messages")


def _marked(messages: Sequence[Mapping[str, object]], mark: str) -> list[Mapping[str, object]]:
    """The messages with the mark and a space at the end of the last one's text."""
    *earlier, last = messages
    content = last.get("content")
    if isinstance(content, str):
        return [*earlier, {**last, "content": f"{content}{mark} "}]
    if isinstance(content, list) and content and isinstance(content[-1].get("text"), str):
        part = {**content[-1], "text": f"{content[-1]['text']}{mark} "}
        return [*earlier, {**last, "content": [*content[:-1], part]}]
    raise RequestError("the last message has no text that could be continued", param="continue_final_message")


def _before(mark: str, text: str) -> str:
    """The text before the mark. The space behind it tells whether the template keeps that of contents."""
    start = text.rfind(mark)
    if start < 0:
        raise RequestError(
            "the chat template does not show the last message, so it cannot be continued",
            param="continue_final_message",
        )
    return text[:start] if text.startswith(" ", start + 1) else text[:start].rstrip()


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _mapped(value: Any, change: Callable[[str], str], *, names: str) -> Any:
    """The value with every string in it changed, but for keys that are identifiers in ``names``, the template."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {
            key if key.isidentifier() and key in names else change(key): _mapped(item, change, names=names)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_mapped(item, change, names=names) for item in value]
    return value


def _shown(error: Exception) -> str:
    return str(error) or type(error).__name__
