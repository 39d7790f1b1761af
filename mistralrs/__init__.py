"""mistralrs: large language models on your own machine.

The public names, and nothing else: importing the package loads neither torch nor numpy nor pydantic. What needs them is
imported when it is first asked for. Knows no model.
"""

import importlib
from typing import TYPE_CHECKING

from mistralrs.errors import (
    ContextLengthError,
    EngineError,
    FormatError,
    LoadError,
    MistralrsError,
    RequestError,
    UsageError,
)

if TYPE_CHECKING:
    from mistralrs.api.answers import ChatCompletion as ChatCompletionResponse
    from mistralrs.api.answers import ChatCompletionChunk as ChatCompletionChunkResponse
    from mistralrs.api.answers import Completion as CompletionResponse
    from mistralrs.api.answers import CompletionChunk as CompletionChunkResponse
    from mistralrs.api.requests import ChatCompletionRequest, CompletionRequest, Message, Role
    from mistralrs.api.runner import Runner
    from mistralrs.api.which import Which

__version__ = "0.1.0"

_PLACES = {
    "ChatCompletionChunkResponse": ("answers", "ChatCompletionChunk"),
    "ChatCompletionRequest": ("requests", "ChatCompletionRequest"),
    "ChatCompletionResponse": ("answers", "ChatCompletion"),
    "CompletionChunkResponse": ("answers", "CompletionChunk"),
    "CompletionRequest": ("requests", "CompletionRequest"),
    "CompletionResponse": ("answers", "Completion"),
    "Message": ("requests", "Message"),
    "Role": ("requests", "Role"),
    "Runner": ("runner", "Runner"),
    "Which": ("which", "Which"),
}
"""Where what is imported later lies: the module of ``mistralrs.api``, and its name there."""

__all__ = [
    "ChatCompletionChunkResponse",
    "ChatCompletionRequest",
    "ChatCompletionResponse",
    "CompletionChunkResponse",
    "CompletionRequest",
    "CompletionResponse",
    "ContextLengthError",
    "EngineError",
    "FormatError",
    "LoadError",
    "Message",
    "MistralrsError",
    "RequestError",
    "Role",
    "Runner",
    "UsageError",
    "Which",
    "__version__",
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
