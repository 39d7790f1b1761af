"""A conversation as the model's template gets it, and the refusal of one where there is no template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mistralrs.errors import RequestError
from mistralrs.text.builtin_templates import template_hint
from mistralrs.text.prompt_tokens import prompt_tokens

if TYPE_CHECKING:
    from mistralrs.api.served_model import ServedModel
    from mistralrs.api.serving.policy import Policy
    from mistralrs.text.chat_template import ChatTemplate, RenderedPrompt
    from mistralrs.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages as the template gets them, and how it is asked."""

    messages: Sequence[Mapping[str, object]]
    add_generation_prompt: bool
    continue_final: bool
    variables: Mapping[str, object]
    unused: tuple[str, ...]
    """Paths of fields that change nothing about the prompt, such as ``messages.name``."""

    def text(self, template: ChatTemplate) -> str:
        """The prompt. Raises RequestError where the template refuses the messages or fails on them."""
        text = self.prompt(template).text
        assert text is not None
        return text

    def tokens(self, template: ChatTemplate, tokenizer: Tokenizer) -> tuple[int, ...]:
        """The prompt's ids; what people wrote gives no control token. Raises RequestError as ``text`` does."""
        return prompt_tokens(tokenizer, self.prompt(template, tokenizer).pieces).ids

    def prompt(
        self, template: ChatTemplate, tokenizer: Tokenizer | None = None, *, paths: Sequence[tuple[str, str]] = ()
    ) -> RenderedPrompt:
        """As ``ChatTemplate.prompt``: in pieces for a tokenizer, else as a text."""
        return template.prompt(
            self.messages,
            self.variables,
            add_generation_prompt=self.add_generation_prompt,
            continue_final=self.continue_final,
            paths=paths,
            controls=None if tokenizer is None else tokenizer.control_resource,
        )


def require_template(model: ServedModel, policy: Policy) -> ChatTemplate:
    """The model's template. Raises RequestError where it has none."""
    if model.template is None:
        raise missing_template(policy.model_name, hint=policy.template_hint)
    return model.template


def missing_template(name: str, *, hint: str | None = None) -> RequestError:
    """The refusal of a chat with the model ``name``, which has no template. ``hint`` None: that for the terminal."""
    return RequestError(
        f"{name} has no chat template, so it cannot chat", hint=hint or template_hint(), param="messages"
    )
