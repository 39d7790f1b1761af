"""Makes requests for the engine, whose prompts fit, from conversations, texts and ids.

Server, ``Runner``, terminal and benchmark all use it: ``prepare`` with bodies, ``LocalModel`` with plain values. It
does without pydantic, so that the terminal need not wait for that import.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mistralrs.api.serving.answers.answer_parts import AnswerParts, with_parts
from mistralrs.api.serving.chat_prompt import Conversation, require_template
from mistralrs.engine.admission import check, fit_prompt
from mistralrs.engine.config import Request, SamplingParams
from mistralrs.errors import RequestError
from mistralrs.text.prompt_tokens import PromptTokens, Room, check_texts, prompt_tokens

if TYPE_CHECKING:
    from mistralrs.api.served_model import ServedModel
    from mistralrs.api.serving.policy import Policy
    from mistralrs.grammar.grammar_text import GrammarText
    from mistralrs.text.chat_template import ChatTemplate

THINKING = "enable_thinking"
"""The variable by which chat templates turn thinking on and off."""


def plain_conversation(
    messages: Sequence[Mapping[str, object]],
    model: ServedModel,
    policy: Policy,
    *,
    thinking: bool | None = None,
    continues: bool = False,
) -> Conversation:
    """Returns the conversation to answer, made of messages that have a role and a text. ``continues``: the answer goes
    on with the last message instead.

    ``thinking``: whether the model is to think first; None: as its template does. Raises RequestError where the model
    has no template, or one that cannot do so, and ContextLengthError for messages that are far too long.
    """
    template = require_template(model, policy)
    said = [str(message.get("content") or "") for message in messages if message.get("role") != "assistant"]
    check_length(said, model, policy)
    asked = Conversation(
        messages, add_generation_prompt=not continues, continue_final=continues, variables={}, unused=()
    )
    return asked if thinking is None else _with_thinking(asked, template, model, thinking)


def _with_thinking(asked: Conversation, template: ChatTemplate, model: ServedModel, thinking: bool) -> Conversation:
    told = replace(asked, variables={THINKING: thinking})
    default = asked.text(template)
    if told.text(template) != default or replace(asked, variables={THINKING: not thinking}).text(template) != default:
        return told
    always = model.responses is not None and model.responses.has_reasoning
    if thinking != always:
        raise RequestError(
            "this model's chat template cannot turn thinking off" if always else "this model does not think",
            hint="leave --think out",
            param=THINKING,
        )
    return asked


def chat_request(
    messages: Sequence[Mapping[str, object]],
    sampling: SamplingParams,
    model: ServedModel,
    policy: Policy,
    *,
    grammar: GrammarText | None = None,
    thinking: bool | None = None,
    continues: bool = False,
) -> tuple[Request, AnswerParts | None]:
    """Returns the request that answers plain messages, and the reading of its answer; None: all of it is content.
    ``continues``: the answer goes on with the last message.

    Raises RequestError and ContextLengthError.
    """
    check(sampling, model.vocab_size)
    if grammar is not None:
        model.check_grammar(grammar)
    asked = plain_conversation(messages, model, policy, thinking=thinking, continues=continues)
    request, _, end = conversation_request(asked, sampling, model, policy, grammar=grammar)
    return with_parts(request, None, model, prompt_end=end)


def conversation_request(
    asked: Conversation,
    sampling: SamplingParams,
    model: ServedModel,
    policy: Policy,
    *,
    reuse: bool = True,
    grammar: GrammarText | None = None,
) -> tuple[Request, int, str]:
    """Returns a conversation's request, the number of tokens cut from it, and the end of its text; its parameters and
    its grammar were checked before.

    Raises RequestError and ContextLengthError.
    """
    prompt = conversation_tokens(asked, model, policy)
    # an answer's first word may begin with a space, which is dropped; a continued message goes on as it is, and a
    # grammar says itself how the answer begins
    trim_space = not asked.continue_final and grammar is None
    request = engine_request(prompt.ids, sampling, policy, reuse=reuse, trim_space=trim_space, grammar=grammar)
    [request], cut = fit_requests([request], model, "messages")
    return request, prompt.dropped + cut, prompt.end


def conversation_tokens(asked: Conversation, model: ServedModel, policy: Policy) -> PromptTokens:
    """Returns the ids of a conversation's prompt; more than fit, if it may be cut. Raises as ``prompt_ids`` does."""
    pieces = asked.prompt(require_template(model, policy), model.tokenizer).pieces
    return prompt_ids(pieces, model, policy, "messages")


def ids_request(prompt: Sequence[int], sampling: SamplingParams, model: ServedModel, policy: Policy) -> Request:
    """Returns the request that continues ids. Raises RequestError and ContextLengthError."""
    check(sampling, model.vocab_size)
    [request], _ = fit_requests([engine_request(tuple(prompt), sampling, policy)], model, "prompt")
    return request


def check_length(texts: Iterable[str], model: ServedModel, policy: Policy) -> None:
    """Raises ContextLengthError for a conversation's texts that are far too long, before a template renders them."""
    with naming("messages"):
        check_texts(model.tokenizer, texts, Room(model.max_len, policy.truncate))


def prompt_ids(
    pieces: Sequence[tuple[str, bool]], model: ServedModel, policy: Policy, param: str, *, bos: bool = False
) -> PromptTokens:
    """Returns what ``prompt_tokens`` returns; errors name ``param``."""
    with naming(param):
        return prompt_tokens(model.tokenizer, pieces, room=Room(model.max_len, policy.truncate), bos=bos)


def engine_request(
    prompt: tuple[int, ...],
    sampling: SamplingParams,
    policy: Policy,
    *,
    reuse: bool = True,
    trim_space: bool = False,
    grammar: GrammarText | None = None,
) -> Request:
    """Returns a request with the policy's settings; its prompt need not fit yet."""
    return Request(
        prompt,
        sampling,
        truncate=policy.truncate,
        trim_space=trim_space,
        reuse=reuse,
        cache_salt=policy.cache_salt,
        deadline_s=policy.deadline_s,
        grammar=grammar,
    )


def fit_requests(requests: Sequence[Request], model: ServedModel, param: str) -> tuple[list[Request], int]:
    """Returns the requests with prompts that fit, and the number of tokens cut.

    Errors name ``param``, and its member if there are several.
    """
    fitted, cut = [], 0
    for place, request in enumerate(requests):
        with naming(param, place=place if len(requests) > 1 else None):
            prompt = tuple(fit_prompt(request, model.max_len, model.vocab_size, spell=model.tokenizer.token_text))
        cut += len(request.prompt) - len(prompt)
        fitted.append(replace(request, prompt=prompt))
    return fitted, cut


@contextlib.contextmanager
def naming(param: str, *, place: int | None = None) -> Iterator[None]:
    """Adds the parameter's name to errors, and the index ``place`` of its member."""
    try:
        yield
    except RequestError as error:
        error.point_at(param, place=place)
        raise
