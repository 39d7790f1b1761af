"""Turns a body into requests for the engine: template, ids, sampling, lengths. Every refusal of a body happens here.

Raw prompts (completions, embeddings) are read as `transformers` reads them: text that spells a control token is that
token, and BOS comes first where the tokenizer's configuration says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from mistralrs.api.loaded_adapters.scalings import ScalingNames, scaling_names, with_scalings
from mistralrs.api.schemas import parameter_table
from mistralrs.api.schemas.field_types import MAX_PROMPTS
from mistralrs.api.schemas.request_bodies import (
    ChatCompletionBody,
    CompletionBody,
    EmbeddingBody,
    SamplingBody,
)
from mistralrs.api.serving.adapter_choice import adapter_choice
from mistralrs.api.serving.answers.answer_parts import AnswerParts, with_parts
from mistralrs.api.serving.answers.logprobs import Echo
from mistralrs.api.serving.chat_messages import conversation
from mistralrs.api.serving.chat_prompt import require_template
from mistralrs.api.serving.engine_requests import (
    check_length,
    conversation_request,
    engine_request,
    fit_requests,
    prompt_ids,
)
from mistralrs.api.serving.grammars.grammar_choice import grammar_choice, unused_grammar_fields
from mistralrs.api.serving.grammars.thinking_budget import thinking_budget
from mistralrs.api.serving.grammars.tool_choice import tool_use, unknown_tool_fields
from mistralrs.api.serving.hook_choice import hook_choice
from mistralrs.api.serving.policy import Policy
from mistralrs.api.serving.sampling_params import sampling_params
from mistralrs.engine.config import Request, SamplingParams
from mistralrs.errors import RequestError

if TYPE_CHECKING:
    from mistralrs.api.served_model import ServedModel


@dataclass(frozen=True, slots=True)
class Prepared:
    """Requests for the engine, and the settings of their answer."""

    kind: Literal["chat", "completion"]
    requests: tuple[Request, ...]
    """``candidates`` for each prompt, prompt after prompt."""
    generated: int
    """Answers to generate for each prompt."""
    choices: int
    """Answers to show for each prompt: the likeliest."""
    seed: int
    """The seed of the first candidate; candidate i has seed + i."""
    ignored: tuple[str, ...]
    """Names of the fields that have no effect."""
    other_model: str | None
    """The requested model, if it is not the one that answers."""
    truncated_tokens: int
    """Prompt tokens that were cut, over all prompts."""
    stream: bool
    include_usage: bool
    timings_per_token: bool
    logprobs: int | None
    """The number of likely tokens to show beside each sampled one; None: no log-probabilities at all."""
    echo: tuple[Echo, ...] | None = None
    """Each prompt, to be put in front of its answers."""
    suffix: str = ""
    """The text to be put behind the answers."""
    adapters: Mapping[str, float] | None = None
    """Names and weights of the adapters that act; None: those that act by default."""
    model_name: str | None = None
    """The answer's model, if it is an adapter that the body names as its model."""
    scalings: ScalingNames | None = None
    """The names beside the scalings that the answer has; None: it has none."""
    warnings: tuple[str, ...] = ()
    """Sentences for the caller about the grammar."""
    parts: AnswerParts | None = None
    """The reading of the answers' text; None: all of it is content."""
    legacy_calls: bool = False
    """Calls have the older form ``function_call``."""


@dataclass(frozen=True, slots=True)
class PreparedEmbeddings:
    """Requests for the engine, one for each input."""

    requests: tuple[Request, ...]
    encoding_format: Literal["float", "base64"]
    ignored: tuple[str, ...]
    other_model: str | None
    truncated_tokens: int
    adapters: Mapping[str, float] | None = None
    model_name: str | None = None


def prepare_chat(body: ChatCompletionBody, model: ServedModel, policy: Policy) -> Prepared:
    """Returns the requests of a chat. Raises RequestError and ContextLengthError."""
    chosen = adapter_choice(body, model.adapters, policy)
    scalings = scaling_names(body, model)
    unserved = parameter_table.unserved("chat", body)
    template = require_template(model, policy)
    use = tool_use(body)
    said = [part.text for each in body.messages if each.role != "assistant" for part in each.content or () if part.text]
    check_length(said if use is None else [*said, *use.texts()], model, policy)
    asked = conversation(body.messages, body, template, tools=use, effort=body.reasoning_effort)
    ignored = _ignored((*unserved, *_unused_members(body), *unknown_tool_fields(body), *asked.unused), policy)
    if body.top_logprobs and not body.logprobs:
        raise RequestError("top_logprobs needs logprobs to be true", param="top_logprobs")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    sampling = sampling_params(body, policy.sampling, model, max_tokens=max_tokens, logprobs=logprobs)
    grammar = grammar_choice(body, model)
    request, truncated, end = conversation_request(
        asked, sampling, model, policy, reuse=_may_reuse(body), grammar=grammar.text
    )
    request, parts = with_parts(request, use, model, prompt_end=end)
    thinking = thinking_budget(body.thinking_token_budget, model, parts)
    request = replace(request, thinking=thinking, hook_names=hook_choice(body, model))
    choices = body.n or 1
    return Prepared(
        kind="chat",
        requests=with_scalings(_candidates(request, choices), scalings),
        generated=choices,
        choices=choices,
        seed=sampling.seed,
        ignored=ignored,
        other_model=chosen.other_model,
        truncated_tokens=truncated,
        stream=bool(body.stream),
        include_usage=_include_usage(body),
        timings_per_token=bool(body.timings_per_token),
        logprobs=logprobs,
        adapters=chosen.weights,
        model_name=chosen.model_name,
        scalings=scalings,
        warnings=grammar.warnings,
        parts=parts,
        legacy_calls=use is not None and use.legacy,
    )


def prepare_completion(body: CompletionBody, model: ServedModel, policy: Policy) -> Prepared:
    """Returns the requests of a text completion. Raises RequestError and ContextLengthError."""
    chosen = adapter_choice(body, model.adapters, policy)
    ignored = _ignored((*parameter_table.unserved("completions", body), *_unused_members(body)), policy)
    scalings = scaling_names(body, model)
    choices, candidates = _counts(body)
    members = _members(body.prompt)
    if len(members) * candidates > MAX_PROMPTS:
        raise RequestError(
            f"{len(members)} prompts with {candidates} answers each are more than {MAX_PROMPTS}", param="n"
        )
    # the best are found by their log-probability, shown or not
    logprobs = 0 if body.logprobs is None and candidates > choices else body.logprobs
    sampling = sampling_params(body, policy.sampling, model, max_tokens=body.max_tokens, logprobs=logprobs)
    prompts, dropped = _prompts(members, model, policy, "prompt")
    grammar = grammar_choice(body, model)
    whole = [
        engine_request(prompt, sampling, policy, reuse=_may_reuse(body), grammar=grammar.text) for prompt in prompts
    ]
    hook_names, prompt_logprobs = hook_choice(body, model), body.logprobs if body.echo else None
    whole = [replace(request, hook_names=hook_names, prompt_logprobs=prompt_logprobs) for request in whole]
    requests, truncated = fit_requests(whole, model, "prompt")
    return Prepared(
        kind="completion",
        requests=with_scalings([each for request in requests for each in _candidates(request, candidates)], scalings),
        generated=candidates,
        choices=choices,
        seed=sampling.seed,
        ignored=ignored,
        other_model=chosen.other_model,
        truncated_tokens=dropped + truncated,
        stream=bool(body.stream),
        include_usage=_include_usage(body),
        timings_per_token=bool(body.timings_per_token),
        logprobs=body.logprobs,
        echo=_echo(members, prompts, requests, model, is_whole=not dropped) if body.echo else None,
        suffix=body.suffix or "",
        adapters=chosen.weights,
        model_name=chosen.model_name,
        scalings=scalings,
        warnings=grammar.warnings,
    )


def prepare_embeddings(body: EmbeddingBody, model: ServedModel, policy: Policy) -> PreparedEmbeddings:
    """Returns the requests of embeddings. Raises RequestError and ContextLengthError."""
    chosen = adapter_choice(body, model.adapters, policy)
    ignored = _ignored(parameter_table.unserved("embeddings", body), policy)
    if body.dimensions not in (None, model.hidden_size):
        raise RequestError(
            f"dimensions is {body.dimensions}; this model's embeddings have {model.hidden_size}", param="dimensions"
        )
    prompts, dropped = _prompts(_members(body.input), model, policy, "input")
    requests, truncated = fit_requests(
        [
            replace(engine_request(prompt, SamplingParams(), policy), pooling=body.pooling or "mean")
            for prompt in prompts
        ],
        model,
        "input",
    )
    return PreparedEmbeddings(
        tuple(requests),
        body.encoding_format or "float",
        ignored,
        chosen.other_model,
        dropped + truncated,
        adapters=chosen.weights,
        model_name=chosen.model_name,
    )


def _members(prompt: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]) -> list[str | Sequence[int]]:
    """Returns raw prompts one by one, each a text or ids."""
    if isinstance(prompt, str):
        return [prompt]
    ids = [token for token in prompt if isinstance(token, int)]
    return [ids] if ids else [member for member in prompt if not isinstance(member, int)]


def _prompts(
    members: Sequence[str | Sequence[int]], model: ServedModel, policy: Policy, param: str
) -> tuple[list[tuple[int, ...]], int]:
    """Returns the ids of raw prompts, and the least number of tokens in the text that was cut before tokenization."""
    prompts, dropped = [], 0
    for member in members:
        if isinstance(member, str):
            tokens = prompt_ids([(member, True)], model, policy, param, bos=model.tokenizer.add_bos)
            prompts.append(tokens.ids)
            dropped += tokens.dropped
        else:
            prompts.append(tuple(member))
    return prompts, dropped


def _echo(
    members: Sequence[str | Sequence[int]],
    prompts: Sequence[tuple[int, ...]],
    requests: Sequence[Request],
    model: ServedModel,
    *,
    is_whole: bool,
) -> tuple[Echo, ...]:
    """Returns prompts as they were sent, or the text of their tokens where ids were sent or a prompt was cut."""
    tokenizer = model.tokenizer
    return tuple(
        Echo(
            member
            if isinstance(member, str) and request.prompt == prompt and is_whole
            else tokenizer.decode(request.prompt),
            tokenizer.token_text(request.prompt[0]),
            tokenizer.token_bytes(request.prompt[0]),
            tokenizer.space_prefix,
        )
        for member, prompt, request in zip(members, prompts, requests, strict=True)
    )


def _ignored(names: Sequence[str], policy: Policy) -> tuple[str, ...]:
    if policy.strict:
        parameter_table.refuse_ignored(names)
    return tuple(names)


def _unused_members(body: SamplingBody) -> tuple[str, ...]:
    return parameter_table.unknown_within("stream_options", body.stream_options) + unused_grammar_fields(body)


def _may_reuse(body: SamplingBody) -> bool:
    return body.cache_prompt is not False


def _include_usage(body: SamplingBody) -> bool:
    return body.stream_options is not None and bool(body.stream_options.include_usage)


def _counts(body: CompletionBody) -> tuple[int, int]:
    """Returns the number of answers to show, and to generate, for each prompt."""
    choices = body.n or 1
    candidates = choices if body.best_of is None else body.best_of
    if candidates < choices:
        raise RequestError(f"best_of is {candidates}; it must be at least n, which is {choices}", param="best_of")
    if candidates > choices and body.stream:
        raise RequestError(
            "best_of is more than n, so the best are known only at the end: that cannot be streamed", param="best_of"
        )
    return choices, candidates


def _candidates(request: Request, count: int) -> list[Request]:
    sampling = request.sampling
    return [replace(request, sampling=replace(sampling, seed=sampling.seed + i)) for i in range(count)]
