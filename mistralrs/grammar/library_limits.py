"""The bounds within which llguidance checks and compiles, in this thread or in one that is given up at a deadline."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from functools import cache
from typing import TypeVar

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from mistralrs.errors import RequestError
from mistralrs.grammar.translation import grammar_error

TIMEOUT_S = 2.0
"""Seconds of the processor for the translation and the compilation of one grammar."""
PATIENCE = 10
"""Times that many seconds may pass meanwhile: a machine that has other work is no reason to refuse a grammar."""
MAX_RULES = 1000
"""Rules of a grammar. llguidance walks chains of rules by recursion and overflows the stack at about 4,000."""
NO_FORCING = '%llguidance {"no_forcing": true}'
"""A line of a Lark grammar. Without it, the library follows forced bytes without end in ``start: "a" start``."""
_MAX_AT_ONCE = 2
_RUNNING = threading.BoundedSemaphore(_MAX_AT_ONCE)
_REASON = re.compile(r"^error: (.*)", re.MULTILINE)
_PATTERN = re.compile(r"invalid regex (.*) \(in regex\): ")
_PLACE = re.compile(r"^(?:at )?(\d+)\((\d+)\): ")

Result = TypeVar("Result")


@cache
def limits() -> LLParserLimits:
    """The limits of every grammar. The defaults end an answer in C after a few tokens."""
    return LLParserLimits(
        max_items_in_row=20_000,
        step_max_items=2_000_000,
        step_lexer_fuel=5_000_000,
        max_lexer_states=200_000,
        verbose_errors=False,
    )


class _Bytes:
    """A vocabulary of the 256 bytes and one end token."""

    is_tokenizer_wrapper = True
    eos_token_id = 256
    bos_token_id = None
    tokens = (*(bytes([byte]) for byte in range(256)), b"<|end|>")
    special_token_ids = (256,)

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


@cache
def byte_tree() -> LLTokenizer:
    """A vocabulary in which each byte is a token, for questions about a grammar's language."""
    return LLTokenizer(_Bytes(), slices=[])  # type: ignore[arg-type]


def matcher(grammar: str, tree: LLTokenizer) -> LLMatcher:
    """A matcher at the start of an answer. Raises RequestError if the grammar is broken, too large or matches nothing.

    The last is found only if it shows at the first token. The first mask is computed here, since a grammar of many
    terminals takes longer for it than a step may wait; copies of the matcher know it.
    """
    found = LLMatcher(tree, grammar, log_level=0, limits=limits())
    if found.is_error():
        raise grammar_error(reason_of(found.get_error()))
    found.compute_bitmask()
    if found.is_error() and not is_dead_end(found):
        raise grammar_error(reason_of(found.get_error()))
    if is_dead_end(found):
        raise grammar_error("no text matches it")
    return found


def is_dead_end(matcher: LLMatcher) -> bool:
    """Whether the last mask of a matcher showed that no answer which begins like its own can end."""
    if matcher.is_error():
        return matcher.get_error().startswith("NoExtension")
    return matcher.is_stopped() and not matcher.is_accepting()


def error_of(grammar: str) -> str:
    """llguidance's reason to refuse a grammar; empty if it does not."""
    return LLMatcher(byte_tree(), grammar, log_level=0, limits=limits()).get_error()


def is_empty(grammar: str) -> bool:
    """Whether no text matches a grammar of one terminal. Raises RequestError if it is broken."""
    found = LLMatcher(byte_tree(), grammar, log_level=0, limits=limits())
    if found.is_error():
        raise grammar_error(reason_of(found.get_error()))
    found.compute_bitmask()
    return is_dead_end(found)


def reason_of(message: str) -> str:
    """The reason in a message of llguidance, in one line."""
    stated = _REASON.search(message)
    line = message.strip().partition("\n")[0]
    if pattern := _PATTERN.search(line):
        reason = stated[1] if stated else line[pattern.end() :].partition(" in regex ")[0]
        return f"{pattern[1][:80]} is not a regular expression that is supported: {reason}"[:400]
    return _PLACE.sub(r"line \1, column \2: ", stated[1] if stated else line)[:400]


def _wall_clock() -> Callable[[], float]:
    """A function that returns the seconds since now."""
    began = time.monotonic()
    return lambda: time.monotonic() - began


def _clock_of_thread() -> Callable[[], float]:
    """A function that returns, to any thread, the seconds for which this one has computed; by the clock on systems that
    do not tell."""
    if not hasattr(time, "pthread_getcpuclockid"):
        return _wall_clock()
    clock = time.pthread_getcpuclockid(threading.get_ident())

    def used_s() -> float:
        try:
            return time.clock_gettime(clock)
        except OSError:  # the thread has ended
            return 0.0

    return used_s


def within(timeout_s: float, work: Callable[[], Result]) -> Result:
    """The result of ``work``, which runs in a thread of its own. Raises RequestError if it is not there in time.

    ``timeout_s``: seconds for which the thread may compute, in ``PATIENCE`` times as many by the clock. It then goes on
    to the end of its work, which the limits bound; few run at once.
    """
    results: list[Result] = []
    errors: list[BaseException] = []
    clocks: list[Callable[[], float]] = []

    def run() -> None:
        try:
            clocks.append(_clock_of_thread())
            results.append(work())
        except BaseException as error:  # raised again in the caller's thread
            errors.append(error)
        finally:
            _RUNNING.release()

    if not _RUNNING.acquire(timeout=timeout_s):
        raise RequestError("other grammars are being compiled", hint="try again later", code="queue_full")
    thread = threading.Thread(target=run, name="grammar", daemon=True)
    thread.start()
    ends = time.monotonic() + PATIENCE * timeout_s

    def left_s() -> float:
        return min(timeout_s - sum(used_s() for used_s in clocks), ends - time.monotonic())

    while thread.is_alive() and (seconds := left_s()) > 0:
        thread.join(seconds + 0.001)
    if errors:
        raise errors[0]
    if not results:
        raise grammar_error(f"it takes longer than {timeout_s:g} s to compile", hint="simplify it")
    return results[0]
