"""Whole answers of a ``Runner``: those of the server, with the rates of mistral.rs in ``usage`` and a parsed value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, PrivateAttr, TypeAdapter, ValidationError

from mistralrs.api.schemas.response_bodies import ChatCompletion, Completion, EmbeddingList, Usage
from mistralrs.errors import IncompleteAnswerError, UsageError

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

_RATES = (
    *("avg_tok_per_sec", "avg_prompt_tok_per_sec", "avg_compl_tok_per_sec"),
    *("total_time_sec", "total_prompt_time_sec", "total_completion_time_sec"),
)


class UsageWithRates(Usage):
    """Token counts, and the times of ``timings`` under the names that mistral.rs has for them: sums over all choices.

    Rates are in tokens a second; None where no time passed.
    """

    avg_tok_per_sec: float | None
    avg_prompt_tok_per_sec: float | None
    avg_compl_tok_per_sec: float | None
    total_time_sec: float
    total_prompt_time_sec: float
    """Seconds until the first token of a choice, waiting included."""
    total_completion_time_sec: float
    """Seconds from the first token on."""


class ChatCompletionResponse(ChatCompletion):
    """The answer to a ``ChatCompletionRequest``."""

    usage: UsageWithRates
    _adapter: TypeAdapter[Any] | None = PrivateAttr(None)

    @property
    def parsed(self) -> Any:
        """Returns the first choice as a value of the request's ``response_model``; ``parsed_choice`` takes others."""
        return self.parsed_choice(0)

    def parsed_choice(self, index: int) -> Any:
        """Returns a choice's text as a value of the request's ``response_model``.

        Raises ``UsageError`` for a request without one, and ``IncompleteAnswerError`` for a text that is not whole
        because the choice was cut, or that the model class refuses for a reason that its schema cannot express.
        """
        if self._adapter is None:
            raise UsageError("the request has no response_model", hint="give it one: response_model=YourModel")
        choice = self.choices[index]
        if choice.finish_reason == "length":
            raise IncompleteAnswerError(
                f"choice {index} was cut after {self.usage.completion_tokens} tokens, so its JSON is not whole",
                hint="allow more with max_tokens, or shorten the prompt",
            )
        try:
            return self._adapter.validate_json(choice.message.content or "")
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise IncompleteAnswerError(
                f"choice {index} is no value of the response_model: {place + ': ' if place else ''}{first['msg']}",
                hint="ask again; a check that a JSON schema cannot express is not forced on the model",
            ) from error


class CompletionResponse(Completion):
    """The answer to a ``CompletionRequest``."""

    usage: UsageWithRates


class EmbeddingResponse(EmbeddingList):
    """The answer to an ``EmbeddingRequest``."""

    _hidden_states: Any = PrivateAttr(None)

    @property
    def hidden_states(self) -> list[NDArray[numpy.float32]]:
        """Returns the hidden states of each input's tokens, (tokens, hidden), behind the model's last norm; they can be
        changed. Raises ``UsageError`` for a request without ``hidden_states=True``."""
        if self._hidden_states is None:
            raise UsageError("the request did not ask for hidden states", hint="give it hidden_states=True")
        states: list[NDArray[numpy.float32]] = self._hidden_states
        return states


class FinalAnswer:
    """The whole answer of a stream, which is there once the stream has ended."""

    def __init__(self, make: Callable[[], ChatCompletionResponse | CompletionResponse]) -> None:
        """``make``: returns it."""
        self.is_there = False
        self._make = make

    def get(self) -> ChatCompletionResponse | CompletionResponse:
        """Returns it. Raises ``UsageError`` before the end of the stream, and where it was left before that."""
        if not self.is_there:
            raise UsageError("the answer is not whole: its stream was not read to the end", hint="read it first")
        return self._make()

    @property
    def parsed(self) -> Any:
        """Returns what ``ChatCompletionResponse.parsed`` does. Raises as it and ``get`` do."""
        answer = self.get()
        if isinstance(answer, CompletionResponse):
            raise UsageError("a text completion has no response_model", hint="send a ChatCompletionRequest with one")
        return answer.parsed


Whole = TypeVar("Whole", bound=BaseModel)
Chunk = TypeVar("Chunk", bound=BaseModel)


def chunk_answer(kind: type[Chunk], body: Mapping[str, Any]) -> Chunk:
    """Returns a chunk from the body that a server would send. The content of one that adds none is an empty text, as in
    mistral.rs: programs add it to what they have."""
    for choice in body["choices"]:
        choice.get("delta", {}).setdefault("content", "")
    return kind.model_validate(body)


def embedding_response(body: Mapping[str, Any], hidden_states: Sequence[bytes]) -> EmbeddingResponse:
    """Returns an answer from the body that a server would send, and float32 (tokens, hidden) of each input, if any."""
    answer = EmbeddingResponse.model_validate(body)
    if hidden_states:
        import numpy  # here, because few ask for arrays

        width = len(answer.data[0].embedding)
        answer._hidden_states = [
            numpy.frombuffer(bytearray(states), numpy.float32).reshape(-1, width) for states in hidden_states
        ]
    return answer


def whole_answer(kind: type[Whole], body: Mapping[str, Any], adapter: TypeAdapter[Any] | None = None) -> Whole:
    """Returns an answer from the body that a server would send. ``adapter``: that of the request's response_model."""
    rates = {name: body["timings"][name] for name in _RATES}
    answer = kind.model_validate({**body, "usage": {**body["usage"], **rates}})
    if isinstance(answer, ChatCompletionResponse):
        answer._adapter = adapter
    return answer
