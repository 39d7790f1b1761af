"""From a body to requests for the engine: template, ids, sampling, lengths. Whatever can be refused is refused here.

Raw prompts (completions, embeddings) are read as `transformers` reads them: text that spells a control token is that
token, and BOS comes first where the tokenizer's configuration says so. Knows no HTTP; nothing here waits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from mistralrs.api.schemas import parameter_table
from mistralrs.api.schemas.request_bodies import (
    MAX_PROMPTS,
    ChatCompletionBody,
    CompletionBody,
    EmbeddingBody,
    SamplingBody,
)
from mistralrs.api.serving.chat_messages import conversation, missing_template
from mistralrs.api.serving.logprobs import Echo
from mistralrs.api.serving.sampling_params import sampling_params
from mistralrs.engine.admission import fit_prompt
from mistralrs.engine.config import Request, SamplingParams
from mistralrs.errors import RequestError
from mistralrs.text.prompt_tokens import PromptTokens, Room, check_texts, prompt_tokens

if TYPE_CHECKING:
    from mistralrs.api.served_model import ServedModel

DEFAULT_MODEL = "default"
"""A name for whichever model is served."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What the server decides about all requests, or all of one key."""

    model_name: str
    """The model's id in answers."""
    strict: bool = False
    """Refuse what would be ignored."""
    strict_model: bool = False
    """Refuse requests for other models."""
    truncate: bool = False
    """Cut prompts that are too long instead of refusing them."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    """What a request gets that does not say; its seed is not used."""
    cache_salt: str = ""
    """Requests share the prefix cache only with those of the same."""
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """Requests for the engine, and what their answer is to look like."""

    kind: Literal["chat", "completion"]
    requests: tuple[Request, ...]
    """``candidates`` for each prompt, prompt after prompt."""
    generated: int
    """Answers to generate for each prompt."""
    choices: int
    """Answers to show for each prompt: the likeliest."""
    seed: int
    """Of the first candidate; candidate i has seed + i."""
    ignored: tuple[str, ...]
    """Names of what the body says in vain."""
    other_model: str | None
    """The model that was asked for, if it is not the one that answers."""
    truncated_tokens: int
    """Prompt tokens that were cut, over all prompts."""
    stream: bool
    include_usage: bool
    timings_per_token: bool
    logprobs: int | None
    """How many likely tokens to show at each place beside the drawn one; None: no log-probabilities at all."""
    echo: tuple[Echo, ...] | None = None
    """Each prompt, to stand in front of its answers."""
    suffix: str = ""
    """To stand behind them."""


@dataclass(frozen=True, slots=True)
class PreparedEmbeddings:
    """Requests for the engine, one an input."""

    requests: tuple[Request, ...]
    encoding_format: Literal["float", "base64"]
    ignored: tuple[str, ...]
    other_model: str | None
    truncated_tokens: int


def prepare_chat(body: ChatCompletionBody, model: ServedModel, policy: Policy) -> Prepared:
    """Raises RequestError and ContextLengthError for what cannot be served."""
    other_model = check_model(body.model, policy)
    unserved = parameter_table.unserved("chat", body)
    if model.template is None:
        raise missing_template(policy.model_name)
    said = [part.text for each in body.messages if each.role != "assistant" for part in each.content or () if part.text]
    with _naming("messages"):
        check_texts(model.tokenizer, said, Room(model.max_len, policy.truncate))
    asked = conversation(body.messages, body, model.template)
    ignored = _ignored((*unserved, *_stream_options(body), *asked.unused), policy)
    if body.top_logprobs and not body.logprobs:
        raise RequestError("top_logprobs needs logprobs to be true", param="top_logprobs")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    sampling = sampling_params(body, policy.sampling, model, max_tokens=max_tokens, logprobs=logprobs)
    pieces = asked.prompt(model.template, model.tokenizer).pieces
    prompt = _tokens(pieces, model, policy, "messages")
    # a continued message goes on as it is; an answer's first word brings a space that nobody meant
    request = _request(prompt.ids, sampling, body, policy, trim_space=not asked.continue_final)
    [request], truncated = _fitted([request], model, "messages")
    choices = body.n or 1
    return Prepared(
        kind="chat",
        requests=tuple(_candidates(request, choices)),
        generated=choices,
        choices=choices,
        seed=sampling.seed,
        ignored=ignored,
        other_model=other_model,
        truncated_tokens=prompt.dropped + truncated,
        stream=bool(body.stream),
        include_usage=_include_usage(body),
        timings_per_token=bool(body.timings_per_token),
        logprobs=logprobs,
    )


def prepare_completion(body: CompletionBody, model: ServedModel, policy: Policy) -> Prepared:
    """Raises RequestError and ContextLengthError for what cannot be served."""
    other_model = check_model(body.model, policy)
    ignored = _ignored((*parameter_table.unserved("completions", body), *_stream_options(body)), policy)
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
    whole = [_request(prompt, sampling, body, policy) for prompt in prompts]
    if body.echo:
        whole = [replace(request, prompt_logprobs=body.logprobs) for request in whole]
    requests, truncated = _fitted(whole, model, "prompt")
    return Prepared(
        kind="completion",
        requests=tuple(candidate for request in requests for candidate in _candidates(request, candidates)),
        generated=candidates,
        choices=choices,
        seed=sampling.seed,
        ignored=ignored,
        other_model=other_model,
        truncated_tokens=dropped + truncated,
        stream=bool(body.stream),
        include_usage=_include_usage(body),
        timings_per_token=bool(body.timings_per_token),
        logprobs=body.logprobs,
        echo=_echo(members, prompts, requests, model, is_whole=not dropped) if body.echo else None,
        suffix=body.suffix or "",
    )


def prepare_embeddings(body: EmbeddingBody, model: ServedModel, policy: Policy) -> PreparedEmbeddings:
    """Raises RequestError and ContextLengthError for what cannot be served."""
    other_model = check_model(body.model, policy)
    ignored = _ignored(parameter_table.unserved("embeddings", body), policy)
    if body.dimensions not in (None, model.hidden_size):
        raise RequestError(
            f"dimensions is {body.dimensions}; this model's embeddings have {model.hidden_size}", param="dimensions"
        )
    prompts, dropped = _prompts(_members(body.input), model, policy, "input")
    requests, truncated = _fitted(
        [
            Request(
                prompt,
                SamplingParams(),
                truncate=policy.truncate,
                pooling=body.pooling or "mean",
                cache_salt=policy.cache_salt,
                deadline_s=policy.deadline_s,
            )
            for prompt in prompts
        ],
        model,
        "input",
    )
    cut = dropped + truncated
    return PreparedEmbeddings(tuple(requests), body.encoding_format or "float", ignored, other_model, cut)


def check_model(name: str | None, policy: Policy) -> str | None:
    """The name, if it is not the served model's. Raises RequestError for such a name where these are refused."""
    if name in (None, "", DEFAULT_MODEL, policy.model_name):
        return None
    if policy.strict_model:
        raise RequestError(
            f"the model {(name or '')[:200]!r} does not exist here",
            hint=f"{policy.model_name} does",
            code="model_not_found",
            param="model",
        )
    return name


def _members(prompt: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]) -> list[str | Sequence[int]]:
    """Raw prompts one by one, each a text or ids."""
    if isinstance(prompt, str):
        return [prompt]
    ids = [token for token in prompt if isinstance(token, int)]
    return [ids] if ids else [member for member in prompt if not isinstance(member, int)]


def _prompts(
    members: Sequence[str | Sequence[int]], model: ServedModel, policy: Policy, param: str
) -> tuple[list[tuple[int, ...]], int]:
    """The ids of raw prompts, and how many tokens at least were dropped before they were even made."""
    prompts, dropped = [], 0
    for member in members:
        if isinstance(member, str):
            tokens = _tokens([(member, True)], model, policy, param, bos=model.tokenizer.add_bos)
            prompts.append(tokens.ids)
            dropped += tokens.dropped
        else:
            prompts.append(tuple(member))
    return prompts, dropped


def _tokens(
    pieces: Sequence[tuple[str, bool]], model: ServedModel, policy: Policy, param: str, *, bos: bool = False
) -> PromptTokens:
    """As ``prompt_tokens``; errors name ``param``."""
    with _naming(param):
        return prompt_tokens(model.tokenizer, pieces, room=Room(model.max_len, policy.truncate), bos=bos)


@contextlib.contextmanager
def _naming(param: str, *, place: int | None = None) -> Iterator[None]:
    """Names the parameter in errors; ``place``: and which of its members."""
    try:
        yield
    except RequestError as error:
        error.point_at(param, place=place)
        raise


def _echo(
    members: Sequence[str | Sequence[int]],
    prompts: Sequence[tuple[int, ...]],
    requests: Sequence[Request],
    model: ServedModel,
    *,
    is_whole: bool,
) -> tuple[Echo, ...]:
    """Prompts as they were sent, or what their tokens say where ids were sent or a prompt was cut."""
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


def _stream_options(body: SamplingBody) -> tuple[str, ...]:
    return parameter_table.unknown_within("stream_options", body.stream_options)


def _include_usage(body: SamplingBody) -> bool:
    return body.stream_options is not None and bool(body.stream_options.include_usage)


def _counts(body: CompletionBody) -> tuple[int, int]:
    """Answers to show and to generate for each prompt."""
    choices = body.n or 1
    candidates = choices if body.best_of is None else body.best_of
    if candidates < choices:
        raise RequestError(f"best_of is {candidates}; it must be at least n, which is {choices}", param="best_of")
    if candidates > choices and body.stream:
        raise RequestError(
            "best_of is more than n, so the best are known only at the end: that cannot be streamed", param="best_of"
        )
    return choices, candidates


def _request(
    prompt: tuple[int, ...], sampling: SamplingParams, body: SamplingBody, policy: Policy, *, trim_space: bool = False
) -> Request:
    return Request(
        prompt,
        sampling,
        truncate=policy.truncate,
        trim_space=trim_space,
        reuse=body.cache_prompt is not False,
        cache_salt=policy.cache_salt,
        deadline_s=policy.deadline_s,
    )


def _fitted(requests: Sequence[Request], model: ServedModel, param: str) -> tuple[list[Request], int]:
    """The requests with prompts that fit, and how many tokens that cost; errors name ``param``, and its member if there
    are several."""
    fitted, cut = [], 0
    for place, request in enumerate(requests):
        with _naming(param, place=place if len(requests) > 1 else None):
            prompt = tuple(fit_prompt(request, model.max_len, model.vocab_size, spell=model.tokenizer.token_text))
        cut += len(request.prompt) - len(prompt)
        fitted.append(replace(request, prompt=prompt))
    return fitted, cut


def _candidates(request: Request, count: int) -> list[Request]:
    sampling = request.sampling
    return [replace(request, sampling=replace(sampling, seed=sampling.seed + i)) for i in range(count)]
