"""A loaded model with the policy of Python callers: prepares the requests of ``Runner`` and ``AsyncRunner``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TypedDict, TypeVar

from mistralrs.api.local_model import LocalModel
from mistralrs.api.python_api.python_requests import (
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingRequest,
    Messages,
    refuse_ignored,
    tokenize_body,
)
from mistralrs.api.python_api.runner_options import FORMATTER, RunnerOptions, TokenizeOptions, check_types, load_options
from mistralrs.api.selectors.model_choice import find_source, repeat_last_n_of
from mistralrs.api.selectors.python_errors import python_errors
from mistralrs.api.selectors.which import Which
from mistralrs.api.serving.answers.respond import answer_id
from mistralrs.api.serving.policy import Policy
from mistralrs.api.serving.prepare import (
    Prepared,
    PreparedEmbeddings,
    prepare_chat,
    prepare_completion,
    prepare_embeddings,
)
from mistralrs.api.serving.text_tokens import body_tokens, text_of_tokens
from mistralrs.engine.config import SamplingParams
from mistralrs.engine.request_hooks import Hooks
from mistralrs.errors import RequestError

MAX_HIDDEN_BYTES = 1 << 30
"""Bytes of hidden states in one answer, at most."""
_TEMPLATE_HINT = "send a CompletionRequest, or give the runner a chat_template"

Request = TypeVar("Request", ChatCompletionRequest, CompletionRequest, EmbeddingRequest)


class AnswerFacts(TypedDict):
    """The facts of an answer that its request and its events do not have."""

    id: str
    created: int
    model_name: str


class PythonModel:
    """A loaded model and its policy. Safe from any thread."""

    def __init__(self, model: LocalModel, *, repeat_last_n: int) -> None:
        """``repeat_last_n``: the default of requests."""
        self.model = model
        sampling = SamplingParams(repeat_last_n=repeat_last_n)
        self.policy = Policy(model_name=model.info.name, sampling=sampling, template_hint=_TEMPLATE_HINT)

    @classmethod
    def load(cls, which: Which, options: RunnerOptions) -> PythonModel:
        """Loads the model as ``Runner`` does; ``options`` has all of its options."""
        check_types(which, options["in_situ_quant"])
        loading, choice = load_options(which, options), which.choice()
        with python_errors():
            model = LocalModel.load(find_source(choice, FORMATTER), loading)
        return cls(model, repeat_last_n=repeat_last_n_of(choice))

    def prepare_chat(self, request: ChatCompletionRequest) -> Prepared:
        """Returns the engine's requests. Raises TypeError, RequestError and ContextLengthError."""
        with python_errors():
            prepared = prepare_chat(_of(ChatCompletionRequest, request).body, self.model.served, self.policy)
        refuse_ignored(prepared.ignored)
        return _with_hooks(prepared, request.hooks)

    def prepare_completion(self, request: CompletionRequest) -> Prepared:
        """Returns the engine's requests. Raises as ``prepare_chat`` does."""
        with python_errors():
            prepared = prepare_completion(_of(CompletionRequest, request).body, self.model.served, self.policy)
        refuse_ignored(prepared.ignored)
        return _with_hooks(prepared, request.hooks)

    def prepare_embeddings(self, request: EmbeddingRequest) -> PreparedEmbeddings:
        """Returns the engine's requests. Raises as ``prepare_chat`` does."""
        with python_errors():
            prepared = prepare_embeddings(_of(EmbeddingRequest, request).body, self.model.served, self.policy)
        refuse_ignored(prepared.ignored)
        return self._with_hidden_states(prepared) if request.hidden_states else prepared

    def _with_hidden_states(self, prepared: PreparedEmbeddings) -> PreparedEmbeddings:
        tokens = sum(len(request.prompt) for request in prepared.requests)
        size = 4 * tokens * self.model.served.hidden_size
        if size > MAX_HIDDEN_BYTES:
            raise RequestError(
                f"the hidden states of {tokens} tokens have {size} bytes; one request has at most {MAX_HIDDEN_BYTES}",
                hint="send fewer texts at once",
                param="hidden_states",
            )
        return replace(prepared, requests=tuple(replace(each, hidden_states=True) for each in prepared.requests))

    def tokenize(self, text: str | Messages, options: TokenizeOptions) -> list[int]:
        """Returns ids as ``Runner.tokenize`` does."""
        body = tokenize_body(text, **{name: value for name, value in options.items() if value is not None})
        with python_errors():
            tokens, unused = body_tokens(body, self.model.served, self.policy)
        refuse_ignored(unused)
        return tokens

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Returns a text as ``Runner.detokenize`` does."""
        return text_of_tokens(tokens, self.model.tokenizer)

    def answer_facts(self, prepared: Prepared) -> AnswerFacts:
        """Returns the facts of a new answer."""
        model_name = prepared.model_name or self.policy.model_name
        return {"id": answer_id(prepared), "created": int(time.time()), "model_name": model_name}


def _with_hooks(prepared: Prepared, hooks: Hooks | None) -> Prepared:
    if hooks is None:
        return prepared
    return replace(prepared, requests=tuple(replace(each, hooks=hooks) for each in prepared.requests))


def _of(kind: type[Request], request: Request) -> Request:
    if not isinstance(request, kind):
        raise TypeError(f"request must be {_with_article(kind.__name__)}, not {type(request).__name__}")
    return request


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
