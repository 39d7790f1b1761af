"""A model's chat template, and the token ids of a conversation's prompt.

A template is foreign code, which ``worker`` runs in another process within the limits below.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mistralrs.errors import LoadError, RequestError
from mistralrs.text.prompt_tokens import prompt_tokens
from mistralrs.text.worker import LimitError, Limits, Resource, workers

if TYPE_CHECKING:
    from mistralrs.text.tokenizer import Tokenizer

MAX_SOURCE = 256 << 10
"""Characters of a template, at most. The longest known template has 15,000."""
COMPILING = Limits("compiling the chat template", cpu_s=5.0, memory=256 << 20)
RENDERING = Limits("the chat template", cpu_s=5.0, memory=256 << 20)
"""Limits for all renderings of one prompt together."""
FIELDS = "messages"
"""First part of the path of a message's field; paths of variables start otherwise."""
_HINT = "pass another one with --chat-template"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """A conversation's prompt."""

    text: str | None
    """None if the prompt is in pieces."""
    pieces: Sequence[tuple[str, bool]]
    """Texts in order, each with whether control tokens in it are special, because the template wrote them."""
    unused: Sequence[int]
    """Indices of the given paths that do not change the prompt."""


class ChatTemplate:
    """A chat template that compiles. Any thread may use it.

    Raises LoadError if ``source`` does not compile within the limits. ``bos``, ``eos`` and ``unk`` are the
    texts of these tokens, empty if a model has none.
    """

    def __init__(self, source: str, *, bos: str, eos: str, unk: str = "") -> None:
        if len(source) > MAX_SOURCE:
            raise LoadError(
                f"the chat template has {len(source)} characters; more than {MAX_SOURCE} are refused", hint=_HINT
            )
        self._set(source, {"bos_token": bos, "eos_token": eos, "unk_token": unk})
        try:
            workers.load(self._resource)
        except LimitError as error:
            raise LoadError(error.message, hint=_HINT) from None

    def _set(self, source: str, tokens: dict[str, str]) -> None:
        self.source = source
        self._tokens = tokens
        self._warned = False
        self._resource = Resource(
            "template", {"tokens": tokens}, lambda: source.encode("utf-8", "surrogatepass"), COMPILING
        )

    def __getstate__(self) -> tuple[str, dict[str, str]]:
        return self.source, self._tokens

    def __setstate__(self, state: tuple[str, dict[str, str]]) -> None:
        """Restores the template in another process, where it is compiled on first use."""
        self._set(*state)

    def render(
        self, messages: Sequence[Mapping[str, object]], /, *, add_generation_prompt: bool = True, **variables: object
    ) -> str:
        """The prompt's text. ``variables`` are passed on and take priority over those that every template gets.

        Raises TemplateRefusalError with the template's own message when it refuses the messages, and RequestError with
        the reason when it fails on them or exceeds a limit.
        """
        head = {"messages": messages, "variables": variables, "add_generation_prompt": add_generation_prompt}
        text: str = self._call("render", head)["text"]
        return text

    def render_any(
        self,
        messages: Sequence[Mapping[str, object]],
        /,
        *,
        add_generation_prompt: bool = True,
        continue_final: bool = False,
        **variables: object,
    ) -> str:
        """Like ``render``, but messages that the template refuses are rewritten as in ``render_conversation``. Warns
        once if that moves a system message.

        With ``continue_final`` the text ends with the content of the last message, which is to be continued. As in
        `transformers`, whitespace at its end is lost with a template that trims contents. Raises RequestError if the
        message has no text or the template does not show it.
        """
        prompt = self.prompt(
            messages, variables, add_generation_prompt=add_generation_prompt, continue_final=continue_final
        )
        assert prompt.text is not None
        return prompt.text

    def prompt(
        self,
        messages: Sequence[Mapping[str, object]],
        variables: Mapping[str, object],
        *,
        add_generation_prompt: bool = True,
        continue_final: bool = False,
        paths: Sequence[tuple[str, str]] = (),
        controls: Resource | None = None,
    ) -> RenderedPrompt:
        """The prompt as ``render_any`` writes it. With ``controls`` it comes in pieces, in which no string of
        ``messages`` or ``variables`` gives a control token. ``paths`` are fields and variables to check for effect,
        such as ("messages", "name").
        """
        head = {
            "messages": messages,
            "variables": variables,
            "add_generation_prompt": add_generation_prompt,
            "continue_final": continue_final,
            "paths": paths,
        }
        answer = self._call("prompt", head, controls=controls)
        if answer["system_moved"] and not self._warned:
            self._warned = True
            _logger.warning("the chat template has no place for a system message; it is put in front of a user's turn")
        return RenderedPrompt(answer["text"], [(text, special) for text, special in answer["pieces"]], answer["unused"])

    def _call(self, call: str, head: Mapping[str, Any], **more: Resource | None) -> dict[str, Any]:
        try:
            answer, _ = workers.call(call, head, {"template": self._resource, **more}, limits=RENDERING)
        except LimitError as error:
            raise RequestError(
                error.message, hint="send less at once, or pass another template with --chat-template", param="messages"
            ) from None
        return answer


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
    """Token ids of the prompt that ``render_any`` writes; BOS is among them if the template writes it.

    No string in ``messages`` or ``variables`` gives a control token. Raises RequestError as ``render_any`` does.
    """
    prompt = template.prompt(
        messages,
        variables,
        add_generation_prompt=add_generation_prompt,
        continue_final=continue_final,
        controls=tokenizer.control_resource,
    )
    return list(prompt_tokens(tokenizer, prompt.pieces).ids)
