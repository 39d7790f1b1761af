"""Exceptions inside of the engine, as the errors that callers receive."""

from __future__ import annotations

from mistralrs.errors import EngineError, MistralrsError


def request_failure(error: Exception) -> MistralrsError:
    """The error that a caller receives for an exception inside of a step."""
    if isinstance(error, MistralrsError):
        return error
    # torch raises a plain RuntimeError when CPU memory is exhausted.
    lacks_memory = isinstance(error, MemoryError) or "can't allocate memory" in str(error)
    if lacks_memory or type(error).__name__ == "OutOfMemoryError":
        hint = "send shorter prompts, or fewer requests at once"
        return EngineError(f"out of memory: {describe_error(error)}", hint=hint, code="out_of_memory")
    return EngineError(f"the model failed: {describe_error(error)}")


def describe_error(error: Exception) -> str:
    """Its type and its message."""
    return f"{type(error).__name__}: {error}"
