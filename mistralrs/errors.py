"""The errors for users, each with a message and a hint. Imports nothing of the package.

Errors that a caller can avoid by other arguments are also ``ValueError``.
"""

from __future__ import annotations


class MistralrsError(Exception):
    """An error to be shown to the user: a message of one line, and a hint on what to do next.

    ``exit_code`` is the exit code of a command that ends with this error.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        """Pickles the error with its state, so that subclasses with other constructors can cross to other processes."""
        return _restored, (type(self), self.args, self.__dict__)


class UsageError(MistralrsError, ValueError):
    """The command line or the arguments of a call are wrong or contradict each other."""

    exit_code = 2


class LoadError(MistralrsError, ValueError):
    """A model, tokenizer, template or adapter cannot be loaded."""

    exit_code = 3


class FormatError(LoadError):
    """A model file is broken; the message names the file, the place in it and the reason."""

    def __init__(self, path: str, place: str, reason: str, *, hint: str | None = None) -> None:
        super().__init__(f"{path}: {place}: {reason}", hint=hint or "the file is damaged or incomplete: fetch it again")
        self.path = path
        self.place = place
        self.reason = reason


class RequestError(MistralrsError, ValueError):
    """A request cannot be served as asked. ``code`` and ``param`` follow the OpenAI error shape."""

    exit_code = 4

    def __init__(
        self, message: str, *, hint: str | None = None, code: str = "invalid_value", param: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.param = param

    def point_at(self, param: str, *, place: int | None = None) -> None:
        """Sets the parameter that the error is about; ``place``: index of its member, which the message then names."""
        self.param = param
        if place is not None:
            self.param = f"{param}[{place}]"
            self.message = f"{self.param}: {self.message}"
            self.args = (self.message,)


class ContextLengthError(RequestError):
    """The prompt is longer than the model's context, or fills it so that no answer has room.

    ``at_least``: ``prompt_tokens`` is a lower bound, because the prompt was too long to be tokenized.
    """

    def __init__(self, prompt_tokens: int, limit: int, *, at_least: bool = False) -> None:
        least = "at least " if at_least else ""
        room = "" if prompt_tokens > limit else ", which leaves no room for an answer"
        super().__init__(
            f"This model's maximum context length is {limit} tokens. "
            f"However, your messages resulted in {least}{prompt_tokens} tokens{room}.",
            hint="shorten the prompt, or pass --truncate-sequence to drop its beginning",
            code="context_length_exceeded",
        )


class IncompleteAnswerError(MistralrsError, ValueError):
    """An answer is no value of the type that its request asked for, because it was cut or fails a check of it."""


class QueueFullError(RequestError):
    """As many requests are waiting as may."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"{limit} requests are waiting, which is as many as may", hint="try again later", code="queue_full"
        )


class EngineError(MistralrsError):
    """The engine failed during a request. ``code`` follows the OpenAI error shape."""

    def __init__(self, message: str, *, hint: str | None = None, code: str = "internal_error") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class EngineDeadError(EngineError):
    """The engine has ended, and all that it was asked has with it."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint, code="engine_dead")


class DeadlineError(EngineError):
    """A request took longer than its deadline."""

    def __init__(self) -> None:
        super().__init__(
            "the request took longer than it may",
            hint="ask for fewer tokens, or allow it more time",
            code="deadline_exceeded",
        )


def _restored(kind: type[MistralrsError], args: tuple[object, ...], state: dict[str, object]) -> MistralrsError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error
