"""The worker process, which runs foreign code: a model's chat template and tokenizer, on texts of any length.

``worker`` starts it as a program of its own. It reads calls from stdin and writes answers to stdout, one after another,
as frames of JSON and bytes. The operating system enforces each call's limits by ending the process.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import signal
import sys
from array import array
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from mistralrs.errors import LoadError, RequestError
from mistralrs.text.control import ControlTexts
from mistralrs.text.conversation import TemplateRefusalError
from mistralrs.text.framing import frame, read_frame
from mistralrs.text.rendering import Renderer

if TYPE_CHECKING:
    import tokenizers

MAX_ANSWER_CHARACTERS = 16 << 20
"""Characters of the longest prompt that a template may write, which is more than any context holds."""
LARGE_CALL = 1 << 18
"""Bytes of a call from which on the process lowers its priority."""
NICENESS = 10

Answer = tuple[dict[str, Any], bytes]


def main() -> None:
    """Answers calls until stdin ends."""
    os.closerange(3, 1 << 16)  # inherited descriptors, such as sockets whose closing others must notice
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    calls = sys.stdin.buffer
    answers = sys.stdout.buffer
    handler = _CallHandler()
    while (call := read_frame(calls)) is not None:
        head, payload = call
        if len(payload) > LARGE_CALL:
            os.nice(NICENESS - os.nice(0))
        with _limited(**head.pop("limits")):
            answer = handler.answer(head, payload)
        for piece in frame(*answer):
            answers.write(piece)
        answers.flush()


class _CallHandler:
    """The loaded resources by number, and the calls that use them."""

    def __init__(self) -> None:
        self._loaded: dict[int, Any] = {}
        self._calls: dict[str, Callable[..., Answer]] = {
            "template": self._template,
            "controls": self._controls,
            "tokenizer": self._tokenizer,
            "render": self._render,
            "prompt": self._prompt,
            "encode": self._encode,
            "frame": self._frame,
        }

    def answer(self, head: dict[str, Any], payload: bytes) -> Answer:
        """The answer to a call; errors are answers too."""
        for number in head.pop("drop"):
            del self._loaded[number]
        try:
            return self._calls[head.pop("call")](payload, **head)
        except MemoryError:
            return {"error": {"kind": "memory", "message": ""}}, b""
        except TemplateRefusalError as error:
            return _error("refusal", error), b""
        except RequestError as error:
            return _error("request", error), b""
        except LoadError as error:
            return _error("load", error), b""
        except BaseException as error:  # a panic of the library is not an Exception
            return {"error": {"kind": "failed", "message": str(error) or type(error).__name__}}, b""

    def _template(self, payload: bytes, *, number: int, tokens: dict[str, str]) -> Answer:
        self._loaded[number] = Renderer(payload.decode("utf-8", "surrogatepass"), tokens)
        return {}, b""

    def _controls(self, payload: bytes, *, number: int) -> Answer:
        texts = json.loads(payload.decode("utf-8", "surrogatepass"))
        self._loaded[number] = ControlTexts({text: (left, right) for text, (left, right) in texts.items()})
        return {}, b""

    def _tokenizer(self, payload: bytes, *, number: int) -> Answer:
        from tokenizers import Tokenizer

        backend = Tokenizer.from_str(payload.decode())
        backend.no_truncation()
        backend.no_padding()
        self._loaded[number] = backend
        return {}, b""

    def _frame(self, payload: bytes, *, tokenizer: int) -> Answer:
        backend: tokenizers.Tokenizer = self._loaded[tokenizer]
        text = payload.decode()
        return {"ids": [backend.encode(text, add_special_tokens=framed).ids for framed in (False, True)]}, b""

    def _render(self, payload: bytes, *, template: int, **options: Any) -> Answer:
        renderer: Renderer = self._loaded[template]
        return {"text": _bounded(renderer.render(**options))}, b""

    def _prompt(self, payload: bytes, *, template: int, controls: int | None, **options: Any) -> Answer:
        renderer: Renderer = self._loaded[template]
        prompt = renderer.prompt(controls=None if controls is None else self._loaded[controls], **options)
        if prompt.text is not None:
            _bounded(prompt.text)
        else:
            _bounded("".join(text for text, _ in prompt.pieces))
        return {
            "text": prompt.text,
            "pieces": prompt.pieces,
            "unused": prompt.unused,
            "system_moved": prompt.system_moved,
        }, b""

    def _encode(self, payload: bytes, *, tokenizer: int, special: bool) -> Answer:
        backend: tokenizers.Tokenizer = self._loaded[tokenizer]
        backend.encode_special_tokens = not special
        [encoding] = backend.encode_batch_fast([payload.decode()], add_special_tokens=False)
        return {}, array("I", encoding.ids).tobytes()


def _bounded(text: str) -> str:
    if len(text) > MAX_ANSWER_CHARACTERS:
        raise RequestError(
            f"the chat template wrote {len(text)} characters; more than {MAX_ANSWER_CHARACTERS} are refused",
            param="messages",
        )
    return text


def _error(kind: str, error: RequestError | LoadError) -> dict[str, Any]:
    code = {"code": error.code, "param": error.param} if isinstance(error, RequestError) else {}
    return {"error": {"kind": kind, "message": error.message, "hint": error.hint, **code}}


@contextlib.contextmanager
def _limited(*, cpu_s: float, wall_s: float, memory: int) -> Iterator[None]:
    """Ends the process, while entered, when it exceeds one of these limits or its parent ends.

    ``memory`` is bytes of address space beyond those in use. Signals have no Python handlers, since native code would
    not let them run.
    """
    _limit_memory(memory)
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    signal.setitimer(signal.ITIMER_REAL, wall_s)
    _end_with_parent(True)
    try:
        yield
    finally:
        _end_with_parent(False)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _limit_memory(None)


def _limit_memory(more: int | None) -> None:
    """Limits the address space to ``more`` bytes beyond those in use. Only Linux enforces it."""
    if sys.platform == "linux":
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        soft = hard
        if more is not None:
            with open("/proc/self/statm", "rb") as file:
                soft = int(file.read().split()[0]) * resource.getpagesize() + more
        if hard != resource.RLIM_INFINITY:
            soft = min(soft, hard)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _end_with_parent(on: bool) -> None:
    """Lets SIGIO end the process when the parent closes stdin; during a call no other event can occur on it.

    PR_SET_PDEATHSIG would signal the end of the thread that started this process, which may end before the parent.
    """
    if sys.platform == "linux":
        flags = fcntl.fcntl(0, fcntl.F_GETFL)
        if on:
            fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(0, fcntl.F_SETFL, flags | os.O_ASYNC if on else flags & ~os.O_ASYNC)
