"""Renders a conversation to the text of a prompt by a model's Jinja template. Runs in ``worker_process``.

Text that people write never becomes a control token. Where a message spells one, its first character is replaced by a
private-use character that occurs nowhere else. The template still sees one character, and its own control tokens are
the only ones in the rendered text. The text is then split at these, as a tokenizer does anyway; in the parts between,
the characters are put back, and the parts are encoded as plain text. All other tokens stay the same.
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
"""A part of a prompt, and whether control tokens in it are special, because the template wrote them."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation's prompt, as one text or in pieces."""

    text: str | None
    """None if the prompt is in pieces."""
    pieces: Sequence[Piece]
    system_moved: bool
    """Whether a system message was moved into a user's turn, because the template has no other place for it."""
    unused: Sequence[int]
    """Indices of the given paths that do not change the prompt."""


class Renderer:
    """A compiled template. ``tokens`` are the texts of BOS, EOS and unknown, by their names in templates.

    Raises LoadError when ``source`` does not compile.
    """

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        try:
            self._template = compile_template(source)
        except MemoryError:
            raise
        except Exception as error:  # a broken template may make Jinja or Python raise anything
            raise LoadError(
                f"the chat template does not compile: {_describe(error)}", hint="pass another one with --chat-template"
            ) from error
        self._source = source
        self._tokens = tokens

    def render(self, messages: Messages, variables: Mapping[str, Any], *, add_generation_prompt: bool) -> str:
        """The prompt's text. ``variables`` take priority over those that every template gets.

        Raises TemplateRefusalError with the template's own message when it refuses the messages, and RequestError with
        the reason when it fails on them.
        """
        try:
            return render_template(
                self._template,
                {
                    **self._tokens,
                    "messages": [dict(message) for message in messages],
                    "add_generation_prompt": add_generation_prompt,
                    "tools": None,  # not left out, because templates test `tools is not none`
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
        except Exception as error:  # the template is foreign code, which may raise anything
            raise RequestError(
                f"the chat template failed on the messages: {_describe(error)}",
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
        """The prompt of messages, which are rewritten if the template refuses them as they are.

        ``paths`` are fields of messages and variables to check for effect. With ``controls`` the prompt comes in
        pieces, else as a text. Raises RequestError.
        """
        attempt = _RenderOptions(self, add_generation_prompt=add_generation_prompt, continue_final=continue_final)
        unused = attempt.unused(messages, variables, paths) if paths else ()
        if controls is None:
            rendered = attempt.rendered(messages, variables)
            return Prompt(rendered.text, (), rendered.system_moved, unused)
        pieces, rendered = self._pieces(attempt, messages, variables, controls)
        return Prompt(None, pieces, rendered.system_moved, unused)

    def _pieces(
        self, attempt: _RenderOptions, messages: Messages, variables: Mapping[str, Any], controls: ControlTexts
    ) -> tuple[list[Piece], Rendered]:
        given = (messages, variables)
        strings = list(_strings(given))
        spelled = {text[at] for text in strings for at in _spelled(controls, text)}
        if not spelled:
            rendered = attempt.rendered(*given)
            return [(rendered.text, True)], rendered
        swap = _replacements(spelled, unused_in=[self._source, *strings])
        rendered = attempt.rendered(
            *(_mapped(part, lambda text: _swapped(controls, text, swap), names=self._source) for part in given)
        )
        text = rendered.text
        back = str.maketrans({replacement: character for character, replacement in swap.items()})
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


class _RenderOptions:
    """A renderer with options, which renders variants of a conversation."""

    def __init__(self, renderer: Renderer, *, add_generation_prompt: bool, continue_final: bool) -> None:
        self._renderer = renderer
        self._add_generation_prompt = add_generation_prompt
        self._continue_final = continue_final

    def rendered(self, messages: Messages, variables: Mapping[str, Any]) -> Rendered:
        """The prompt by ``render_conversation``.

        If the last message is to be continued, the text ends with its content. As in `transformers`, whitespace at its
        end is lost with a template that trims contents. Raises RequestError if the message has no text or the template
        does not show it.
        """

        def render(candidate: Messages) -> str:
            return self._renderer.render(candidate, variables, add_generation_prompt=self._add_generation_prompt)

        markers = _unused(
            [self._renderer.source, *_strings(messages)]
        )  # a generator: searches only when a marker is needed
        if not self._continue_final:
            return render_conversation(render, messages, markers)
        marker = next(markers)
        rendered = render_conversation(render, _with_marker(messages, marker), markers)
        return Rendered(_before(marker, rendered.text), rendered.system_moved)

    def unused(
        self, messages: Messages, variables: Mapping[str, Any], paths: Sequence[tuple[str, str]]
    ) -> Sequence[int]:
        """Indices of the paths that do not change the prompt."""
        whole = self.rendered(messages, variables).text
        places: Sequence[int] = range(len(paths))
        if self._without(messages, variables, paths) != whole:
            places = [place for place in places if self._without(messages, variables, [paths[place]]) == whole]
        return list(places)

    def _without(
        self, messages: Messages, variables: Mapping[str, Any], paths: Sequence[tuple[str, str]]
    ) -> str | None:
        """The prompt without these fields and variables; None if the template needs them."""
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
    """Positions where a text spells a control token, or ends with the start of one that later text could complete."""
    unfinished = controls.unfinished(text)
    return [*controls.starts(text), *([] if unfinished is None else [unfinished])]


def _swapped(controls: ControlTexts, text: str, swap: Mapping[str, str]) -> str:
    characters = list(text)
    for position in _spelled(controls, text):
        characters[position] = swap[text[position]]
    return "".join(characters)


def _replacements(characters: set[str], *, unused_in: list[str]) -> dict[str, str]:
    return dict(zip(sorted(characters), _unused(unused_in), strict=False))


def _unused(texts: Sequence[str]) -> Iterator[str]:
    """Private-use characters that occur in none of the texts."""
    used = set().union(*texts)
    yield from (character for code in _PRIVATE_USE if (character := chr(code)) not in used)
    raise RequestError("the messages use every private-use character of Unicode", param="messages")


def _with_marker(messages: Sequence[Mapping[str, object]], marker: str) -> list[Mapping[str, object]]:
    """The messages with the marker and a space at the end of the last one's text."""
    *earlier, last = messages
    content = last.get("content")
    if isinstance(content, str):
        return [*earlier, {**last, "content": f"{content}{marker} "}]
    if isinstance(content, list) and content and isinstance(content[-1].get("text"), str):
        part = {**content[-1], "text": f"{content[-1]['text']}{marker} "}
        return [*earlier, {**last, "content": [*content[:-1], part]}]
    raise RequestError("the last message has no text that could be continued", param="continue_final_message")


def _before(marker: str, text: str) -> str:
    """The text before the marker. The space behind it shows whether the template keeps whitespace of contents."""
    start = text.rfind(marker)
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
    """The value with every string changed, except for keys that are identifiers in ``names``, the template."""
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


def _describe(error: Exception) -> str:
    return str(error) or type(error).__name__
