"""A LlamaIndex model that runs in this process: ``MistralRS(Which.MistralGGUF())``. It needs `llama-index-core`.

Chats keep their roles and go through the model's own chat template; completions continue the text as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    LogProb,
    TextBlock,
)
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.callbacks import CallbackManager
from llama_index.core.constants import DEFAULT_NUM_OUTPUTS, DEFAULT_TEMPERATURE
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.prompts import PromptTemplate
from llama_index.core.types import BaseOutputParser, Model, PydanticProgramMode

from mistralrs import AsyncRunner, ChatCompletionRequest, CompletionRequest, RequestError, Runner, Which

_ROLES = {"chatbot": "assistant", "model": "assistant", "function": "tool"}
"""LlamaIndex's names of roles that chat templates call otherwise."""
_SHARED = ("name", "tool_calls", "tool_call_id")
"""Additional fields of a message that the model reads too."""


class MistralRS(CustomLLM):
    """A model of any class of ``Which``; ``close`` or ``with`` frees its memory."""

    temperature: float = Field(default=DEFAULT_TEMPERATURE, description="Randomness of the next token.", ge=0)
    max_new_tokens: int = Field(default=DEFAULT_NUM_OUTPUTS, description="Tokens of an answer at most.", gt=0)
    context_window: int = Field(description="Tokens of prompt and answer together.", gt=0)
    generate_kwargs: dict[str, Any] = Field(default_factory=dict, description="Fields of every request.")
    model_kwargs: dict[str, Any] = Field(default_factory=dict, description="Options of the Runner.")

    _runner: Runner = PrivateAttr()
    _tasks: AsyncRunner = PrivateAttr()
    _renders_itself: bool = PrivateAttr()

    def __init__(
        self,
        which: Which,
        temperature: float = DEFAULT_TEMPERATURE,
        max_new_tokens: int = DEFAULT_NUM_OUTPUTS,
        context_window: int | None = None,
        top_k: int = 32,
        top_p: float = 0.1,
        top_logprobs: int | None = None,
        callback_manager: CallbackManager | None = None,
        generate_kwargs: Mapping[str, Any] | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        system_prompt: str | None = None,
        messages_to_prompt: Callable[[Sequence[ChatMessage]], str] | None = None,
        completion_to_prompt: Callable[[str], str] | None = None,
        pydantic_program_mode: PydanticProgramMode = PydanticProgramMode.DEFAULT,
        output_parser: BaseOutputParser | None = None,
    ) -> None:
        """Loads the model. ``context_window``: None is the model's. ``top_logprobs``: so many likeliest tokens beside
        each token; None is no log-probabilities. ``messages_to_prompt``: replaces the chat template.
        ``generate_kwargs``: other fields of requests, such as ``seed``. ``model_kwargs``: options of ``Runner``.
        Raises what ``Runner`` raises.
        """
        runner = Runner(which, **dict(model_kwargs or {}))
        super().__init__(
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            context_window=context_window or runner.info.context_length,
            generate_kwargs={
                "top_k": top_k,
                "top_p": top_p,
                **_logprobs(top_logprobs),
                **(generate_kwargs or {}),
            },
            model_kwargs=dict(model_kwargs or {}),
            callback_manager=callback_manager,
            system_prompt=system_prompt,
            messages_to_prompt=messages_to_prompt,
            completion_to_prompt=completion_to_prompt,
            pydantic_program_mode=pydantic_program_mode,
            output_parser=output_parser,
        )
        self._runner, self._tasks = runner, AsyncRunner.of(runner)
        self._renders_itself = messages_to_prompt is not None

    @classmethod
    def class_name(cls) -> str:
        """Returns the name under which LlamaIndex knows the class."""
        return "MistralRS_llm"

    @property
    def metadata(self) -> LLMMetadata:
        """Returns LlamaIndex's facts about the model."""
        return LLMMetadata(
            context_window=self.context_window,
            num_output=self.max_new_tokens,
            is_chat_model=self._renders_itself or _has_template(self._runner),
            model_name=self._runner.info.name,
        )

    @property
    def runner(self) -> Runner:
        """Returns the loaded model, for embeddings and whatever else LlamaIndex's interface has no name for."""
        return self._runner

    def close(self) -> None:
        """Ends running answers and frees the model."""
        self._runner.close()

    def __enter__(self) -> MistralRS:
        """Returns itself, to be closed at the end of ``with``."""
        return self

    def __exit__(self, *error: object) -> None:
        """Frees the model."""
        self.close()

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answers a conversation. ``kwargs``: fields of this request, such as ``response_model``."""
        if self._renders_itself:
            return _as_chat(self.complete(self.messages_to_prompt(messages), formatted=True, **kwargs))
        return _chat_response(self._runner.send_chat_completion_request(self._chat_request(messages, kwargs)))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Answers a conversation piece by piece; closing the generator ends the answer."""
        if self._renders_itself:
            inner = self.stream_complete(self.messages_to_prompt(messages), formatted=True, **kwargs)
            return (_as_chat(piece) for piece in inner)
        request = self._chat_request(messages, kwargs, stream=True)

        def pieces() -> ChatResponseGen:
            text = ""
            with self._runner.send_chat_completion_request(request) as stream:
                for chunk in stream:
                    text += _delta(chunk)
                    yield _chat_piece(chunk, text)

        return pieces()

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Continues a text. ``formatted``: it is not changed by ``completion_to_prompt``."""
        request = self._completion_request(prompt, formatted, kwargs)
        return _completion_response(self._runner.send_completion_request(request))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """Continues a text piece by piece; closing the generator ends the answer."""
        request = self._completion_request(prompt, formatted, kwargs, stream=True)

        def pieces() -> CompletionResponseGen:
            text = ""
            with self._runner.send_completion_request(request) as stream:
                for chunk in stream:
                    text += chunk.choices[0].text
                    yield _completion_piece(chunk, text)

        return pieces()

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Like ``chat``; cancelling the task ends the answer."""
        if self._renders_itself:
            return _as_chat(await self.acomplete(self.messages_to_prompt(messages), formatted=True, **kwargs))
        return _chat_response(await self._tasks.send_chat_completion_request(self._chat_request(messages, kwargs)))

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """Like ``stream_chat``; cancelling the task ends the answer."""
        if self._renders_itself:
            inner = await self.astream_complete(self.messages_to_prompt(messages), formatted=True, **kwargs)
            return (_as_chat(piece) async for piece in inner)
        request = self._chat_request(messages, kwargs, stream=True)

        async def pieces() -> ChatResponseAsyncGen:
            text = ""
            async with await self._tasks.send_chat_completion_request(request) as stream:
                async for chunk in stream:
                    text += _delta(chunk)
                    yield _chat_piece(chunk, text)

        return pieces()

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Like ``complete``; cancelling the task ends the answer."""
        request = self._completion_request(prompt, formatted, kwargs)
        return _completion_response(await self._tasks.send_completion_request(request))

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """Like ``stream_complete``; cancelling the task ends the answer."""
        request = self._completion_request(prompt, formatted, kwargs, stream=True)

        async def pieces() -> CompletionResponseAsyncGen:
            text = ""
            async with await self._tasks.send_completion_request(request) as stream:
                async for chunk in stream:
                    text += chunk.choices[0].text
                    yield _completion_piece(chunk, text)

        return pieces()

    def structured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: Mapping[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """Returns a value of a pydantic class. The answer is held to its schema, and needs no parsing of free text."""
        request = self._structured_request(output_cls, prompt, prompt_args, llm_kwargs)
        return self._runner.send_chat_completion_request(request).parsed

    async def astructured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: Mapping[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """Like ``structured_predict``; cancelling the task ends the answer."""
        request = self._structured_request(output_cls, prompt, prompt_args, llm_kwargs)
        return (await self._tasks.send_chat_completion_request(request)).parsed

    def _structured_request(
        self, kind: type[Model], prompt: PromptTemplate, values: Mapping[str, Any], fields: Mapping[str, Any] | None
    ) -> Any:
        messages = self._extend_messages(prompt.format_messages(llm=self, **values))
        return self._chat_request(messages, fields or {}, response_model=kind)

    def _fields(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        common = {"temperature": self.temperature, "max_tokens": self.max_new_tokens}
        return common | self.generate_kwargs | {_PYTHON_NAMES.get(name, name): value for name, value in fields.items()}

    def _chat_request(self, messages: Sequence[ChatMessage], fields: Mapping[str, Any], **more: Any) -> Any:
        return ChatCompletionRequest(list(map(_message, messages)), **(self._fields(fields) | more))

    def _completion_request(self, prompt: str, formatted: bool, fields: Mapping[str, Any], **more: Any) -> Any:
        given = self._fields(fields) | more
        if given.pop("logprobs", False):
            given["logprobs"] = given.pop("top_logprobs", 0)
        return CompletionRequest(prompt if formatted else self.completion_to_prompt(prompt), **given)


_PYTHON_NAMES = {"stop": "stop_seqs", "n": "n_choices"}
"""Fields that LlamaIndex and OpenAI call otherwise than ``mistralrs`` does."""


def _logprobs(top: int | None) -> dict[str, Any]:
    return {} if top is None else {"logprobs": True, "top_logprobs": top}


def _has_template(runner: Runner) -> bool:
    try:
        runner.tokenize([{"role": "user", "content": "Hi"}])
    except RequestError:
        return False
    return True


def _message(message: ChatMessage) -> dict[str, Any]:
    other = next((block for block in message.blocks if not isinstance(block, TextBlock)), None)
    if other is not None:
        raise RequestError(f"the model reads texts, and no {type(other).__name__}", param="messages")
    shared = {name: message.additional_kwargs[name] for name in _SHARED if name in message.additional_kwargs}
    return {"role": _ROLES.get(message.role.value, message.role.value), "content": message.content, **shared}


def _delta(chunk: Any) -> str:
    return chunk.choices[0].delta.content or ""


def _as_chat(answer: CompletionResponse) -> ChatResponse:
    return ChatResponse(
        message=ChatMessage(role="assistant", content=answer.text),
        **answer.model_dump(include={"raw", "delta", "logprobs", "additional_kwargs"}),
    )


def _chat_response(answer: Any) -> ChatResponse:
    written = answer.choices[0].message
    calls = [call.model_dump() for call in written.tool_calls or []]
    return ChatResponse(
        message=ChatMessage(
            role="assistant", content=written.content or "", additional_kwargs={"tool_calls": calls} if calls else {}
        ),
        raw=answer.model_dump(),
        logprobs=_chat_logprobs(answer.choices[0]),
        additional_kwargs=_counts(answer),
    )


def _chat_piece(chunk: Any, text: str) -> ChatResponse:
    return ChatResponse(
        message=ChatMessage(role="assistant", content=text),
        delta=_delta(chunk),
        raw=chunk.model_dump(),
        logprobs=_chat_logprobs(chunk.choices[0]),
    )


def _completion_response(answer: Any) -> CompletionResponse:
    return CompletionResponse(
        text=answer.choices[0].text,
        raw=answer.model_dump(),
        logprobs=_completion_logprobs(answer.choices[0]),
        additional_kwargs=_counts(answer),
    )


def _completion_piece(chunk: Any, text: str) -> CompletionResponse:
    return CompletionResponse(
        text=text,
        delta=chunk.choices[0].text,
        raw=chunk.model_dump(),
        logprobs=_completion_logprobs(chunk.choices[0]),
    )


def _counts(answer: Any) -> dict[str, int]:
    """Returns token counts under the names that LlamaIndex's counters look for."""
    return answer.usage.model_dump(include={"prompt_tokens", "completion_tokens", "total_tokens"})


def _chat_logprobs(choice: Any) -> list[list[LogProb]] | None:
    """Returns for each token the drawn one and behind it the other likely ones; None without log-probabilities."""
    if choice.logprobs is None:
        return None
    return [
        _candidates([_log_prob(each) for each in (drawn, *drawn.top_logprobs)]) for drawn in choice.logprobs.content
    ]


def _completion_logprobs(choice: Any) -> list[list[LogProb]] | None:
    if choice.logprobs is None:
        return None
    drawn = zip(choice.logprobs.tokens, choice.logprobs.token_logprobs, choice.logprobs.top_logprobs, strict=True)
    return [
        _candidates([LogProb(token=text, logprob=value) for text, value in [(token, logprob), *(tops or {}).items()]])
        for token, logprob, tops in drawn
    ]


def _log_prob(token: Any) -> LogProb:
    return LogProb(token=token.token, logprob=token.logprob, bytes=token.bytes)


def _candidates(tokens: list[LogProb]) -> list[LogProb]:
    drawn, *others = tokens
    return [drawn, *(other for other in others if other.token != drawn.token)]
