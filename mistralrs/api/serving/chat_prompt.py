"""A conversation as the model's template gets it, and the error of a model without a template."""

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
    """Messages as the template gets them, and the template's other arguments."""

    messages: Sequence[Mapping[str, object]]
    add_generation_prompt: bool
    continue_final: bool
    variables: Mapping[str, object]
    unused: tuple[str, ...]
    """Paths of fields that do not change the prompt, such as ``messages.name``."""

    def text(self, template: ChatTemplate) -> str:
        """Returns the prompt. Raises RequestError where the template refuses the messages or fails on them."""
        text = self.prompt(template).text
        assert text is not None
        return text

    def tokens(self, template: ChatTemplate, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Returns the prompt's ids; text of a message is never a control token. Raises RequestError like ``text``."""
        return prompt_tokens(tokenizer, self.prompt(template, tokenizer).pieces).ids

    def prompt(
        self, template: ChatTemplate, tokenizer: Tokenizer | None = None, *, paths: Sequence[tuple[str, str]] = ()
    ) -> RenderedPrompt:
        """Returns what ``ChatTemplate.prompt`` returns: pieces for a tokenizer, else a text."""
        return template.prompt(
            self.messages,
            self.variables,
            add_generation_prompt=self.add_generation_prompt,
            continue_final=self.continue_final,
            paths=paths,
            controls=None if tokenizer is None else tokenizer.control_resource,
        )


def require_template(model: ServedModel, policy: Policy) -> ChatTemplate:
    """Returns the model's template. Raises RequestError where it has none."""
    if model.template is None:
        raise missing_template(policy.model_name, hint=policy.template_hint)
    return model.template


def missing_template(name: str, *, hint: str | None = None) -> RequestError:
    """Returns the error of a chat with the model ``name``, which has no template. ``hint`` None: the terminal's."""
    return RequestError(
        f"{name} has no chat template, so it cannot chat", hint=hint or template_hint(), param="messages"
    )
