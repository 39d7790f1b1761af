"""mistralrs: large language models on your own machine.

The public names, and nothing else: importing the package loads neither torch nor numpy nor pydantic. Code that needs
them is imported when a name is first used.
"""

import importlib
from typing import TYPE_CHECKING

from mistralrs.errors import (
    ContextLengthError,
    EngineError,
    FormatError,
    IncompleteAnswerError,
    LoadError,
    MistralrsError,
    RequestError,
    UsageError,
)

if TYPE_CHECKING:
    from mistralrs.api.python_api.answer_stream import AnswerStream
    from mistralrs.api.python_api.async_answer_stream import AsyncAnswerStream
    from mistralrs.api.python_api.async_runner import AsyncRunner
    from mistralrs.api.python_api.function_tools import run_tool_call, tool_from
    from mistralrs.api.python_api.python_answers import ChatCompletionResponse, CompletionResponse, EmbeddingResponse
    from mistralrs.api.python_api.python_requests import (
        ChatCompletionRequest,
        CompletionRequest,
        EmbeddingRequest,
        Message,
        Role,
    )
    from mistralrs.api.python_api.runner import Runner
    from mistralrs.api.schemas.response_bodies import ChatCompletionChunk as ChatCompletionChunkResponse
    from mistralrs.api.schemas.response_bodies import CompletionChunk as CompletionChunkResponse
    from mistralrs.api.selectors.architecture_names import Architecture
    from mistralrs.api.selectors.which import Which

__version__ = "0.1.0"

_PLACES = {
    "AnswerStream": ("python_api.answer_stream", "AnswerStream"),
    "Architecture": ("selectors.architecture_names", "Architecture"),
    "AsyncAnswerStream": ("python_api.async_answer_stream", "AsyncAnswerStream"),
    "AsyncRunner": ("python_api.async_runner", "AsyncRunner"),
    "ChatCompletionChunkResponse": ("schemas.response_bodies", "ChatCompletionChunk"),
    "ChatCompletionRequest": ("python_api.python_requests", "ChatCompletionRequest"),
    "ChatCompletionResponse": ("python_api.python_answers", "ChatCompletionResponse"),
    "CompletionChunkResponse": ("schemas.response_bodies", "CompletionChunk"),
    "CompletionRequest": ("python_api.python_requests", "CompletionRequest"),
    "CompletionResponse": ("python_api.python_answers", "CompletionResponse"),
    "EmbeddingRequest": ("python_api.python_requests", "EmbeddingRequest"),
    "EmbeddingResponse": ("python_api.python_answers", "EmbeddingResponse"),
    "Message": ("python_api.python_requests", "Message"),
    "Role": ("python_api.python_requests", "Role"),
    "Runner": ("python_api.runner", "Runner"),
    "Which": ("selectors.which", "Which"),
    "run_tool_call": ("python_api.function_tools", "run_tool_call"),
    "tool_from": ("python_api.function_tools", "tool_from"),
}
"""Where what is imported later lies: the module of ``mistralrs.api``, and its name there."""

__all__ = [
    "AnswerStream",
    "Architecture",
    "AsyncAnswerStream",
    "AsyncRunner",
    "ChatCompletionChunkResponse",
    "ChatCompletionRequest",
    "ChatCompletionResponse",
    "CompletionChunkResponse",
    "CompletionRequest",
    "CompletionResponse",
    "ContextLengthError",
    "EmbeddingRequest",
    "EmbeddingResponse",
    "EngineError",
    "FormatError",
    "IncompleteAnswerError",
    "LoadError",
    "Message",
    "MistralrsError",
    "RequestError",
    "Role",
    "Runner",
    "UsageError",
    "Which",
    "__version__",
    "run_tool_call",
    "tool_from",
]


if not TYPE_CHECKING:  # to a type checker, a module with this function has every name

    def __getattr__(name: str) -> object:
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, original = _PLACES[name]
        found = getattr(importlib.import_module(f"mistralrs.api.{module}"), original)
        globals()[name] = found  # from now on it is found without this
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
