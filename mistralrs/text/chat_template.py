"""From a conversation to the ids of a prompt: renders the model's Jinja template and tokenizes what comes out.

Knows the variables that templates expect, and which part of a prompt the template wrote and which the people. Does not
know where the template came from.

What people write never becomes a control token. Where a message spells one, its first character is swapped for a
private-use character that occurs nowhere else, so the template still sees one character and its own control tokens
are the only ones left in the rendered text. The text is then cut at these, as a tokenizer does anyway, and what lies
between is put back and encoded as plain text: all other tokens are those that any text would give.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from mistralrs.errors import LoadError, RequestError
from mistralrs.text.conversation import TemplateRefusalError, render_conversation

if TYPE_CHECKING:
    from mistralrs.text.control import ControlTexts
    from mistralrs.text.tokenizer import Tokenizer

_logger = logging.getLogger(__name__)
_PRIVATE_USE = (*range(0xE000, 0xF8FF), *range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE))


class ChatTemplate:
    """A compiled template. Safe from any thread.

    Raises LoadError when ``source`` does not compile. ``bos``, ``eos`` and ``unk`` are the texts of these tokens, empty
    where a model has none.
    """

    def __init__(self, source: str, *, bos: str, eos: str, unk: str = "") -> None:
        # Jinja takes 50 ms to import, which no command without a chat should pay.
        from mistralrs.text.sandbox import compile_template

        try:
            self._template = compile_template(source)
        except Exception as error:  # whatever a broken template makes Jinja or Python say
            raise LoadError(
                f"the chat template does not compile: {_shown(error)}",
                hint="pass another one with --chat-template",
            ) from error
        self.source = source
        self._tokens = {"bos_token": bos, "eos_token": eos, "unk_token": unk}
        self._told = False

    def __reduce__(self) -> tuple[object, ...]:
        """What is compiled stays; another process compiles the source again."""
        bos, eos, unk = (self._tokens[f"{name}_token"] for name in ("bos", "eos", "unk"))
        return partial(ChatTemplate, bos=bos, eos=eos, unk=unk), (self.source,)

    def render(
        self, messages: Sequence[Mapping[str, object]], /, *, add_generation_prompt: bool = True, **variables: object
    ) -> str:
        """The prompt's text. ``variables`` are passed on and win over those that every template gets.

        Raises TemplateRefusalError with the template's own words when it refuses the messages, and RequestError that
        says why when it failed on them.
        """
        from mistralrs.text.sandbox import TemplateRefusal, render_template

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

    def render_any(
        self,
        messages: Sequence[Mapping[str, object]],
        /,
        *,
        add_generation_prompt: bool = True,
        continue_final: bool = False,
        **variables: object,
    ) -> str:
        """As ``render``, but messages that the template refuses are rewritten as ``render_conversation`` says; where
        that moves a system message, a warning says so once.

        With ``continue_final`` the text ends with the content of the last message, which is to be continued. As in
        `transformers`, space at its end is lost with a template that trims contents. Raises RequestError where it has
        no text or the template does not show it.
        """

        def render(candidate: Sequence[Mapping[str, object]]) -> str:
            return self.render(candidate, add_generation_prompt=add_generation_prompt, **variables)

        if continue_final:
            mark = next(_unused([self.source, *_strings(messages)]))
            rendered = render_conversation(render, _marked(messages, mark))
            text = _before(mark, rendered.text)
        else:
            rendered = render_conversation(render, messages)
            text = rendered.text
        if rendered.system_moved and not self._told:
            self._told = True
            _logger.warning("the chat template has no place for a system message; it is put in front of a user's turn")
        return text


def encode_chat(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, object]],
    /,
    *,
    add_generation_prompt: bool = True,
    continue_final: bool = False,
    **variables: object,
) -> list[int]:
    """Token ids of the prompt that ``render_any`` writes; BOS is there if the template writes it.

    No string in ``messages`` or ``variables`` gives a control token. Raises RequestError as ``render_any`` does.
    """
    controls = tokenizer.controls

    def render(messages: Sequence[Mapping[str, object]], variables: Mapping[str, object]) -> str:
        return template.render_any(
            messages, add_generation_prompt=add_generation_prompt, continue_final=continue_final, **variables
        )

    given = (messages, variables)
    strings = list(_strings(given))
    spelled = {text[at] for text in strings for at in _spelled(controls, text)}
    if not spelled:
        return tokenizer.encode(render(*given), special=True)
    swap = _stand_ins(spelled, unused_in=[template.source, *strings])
    text = render(
        *(_mapped(part, lambda text: _swapped(controls, text, swap), names=template.source) for part in given)
    )
    back = str.maketrans({stand_in: character for character, stand_in in swap.items()})
    ids: list[int] = []
    position = 0
    for start, end in controls.spans(text):
        ids += tokenizer.encode(text[position:start].translate(back), special=False)
        ids += tokenizer.encode(text[start:end], special=True)
        position = end
    return ids + tokenizer.encode(text[position:].translate(back), special=False)


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


def _unused(texts: list[str]) -> Iterator[str]:
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
    """What precedes the mark. The space behind it tells whether the template keeps that of contents."""
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
