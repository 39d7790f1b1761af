"""Makes room in a full context: old turns are dropped, or a summary stands in for them. The chat keeps them all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mistralrs.errors import ContextLengthError
from mistralrs_cli.chat.chat_history import Conversation, Message

KEPT_TURNS = 2
"""Turns that are not summarized, the last ones."""
SUMMARY_TOKENS = 600
"""Tokens of a summary, at most; in a small context a quarter of it."""
INSTRUCTION = "Summarize our conversation until now"
"""The beginning of what the model is asked."""
FULL = (
    "/compact puts a summary in place of old turns; /set context slide drops the oldest turns by itself, "
    "/set context compact summarizes them; /new begins another chat"
)
"""The ways out of a full context, as the hint of its error."""
FULL_FOR_LINES = "--context slide drops the oldest turns, --context compact summarizes them, each by itself"
"""The same where nobody types commands."""
Summarize = Callable[[Sequence[Message], str], str | None]
"""Returns the summary of messages and of an earlier summary; None: it was stopped."""


def summary_tokens(context_length: int) -> int:
    """Returns the tokens that a summary may have. ``context_length``: 0 is not known."""
    return min(SUMMARY_TOKENS, context_length // 4) if context_length else SUMMARY_TOKENS


def instruction(tokens: int) -> str:
    """Returns the request for a summary of at most so many tokens."""
    return (
        f"{INSTRUCTION} in at most {tokens // 3} words: the facts, names, numbers, decisions and open questions that "
        "matter for going on. Write the summary only."
    )


def slide(conversation: Conversation) -> int:
    """Drops the older half of the turns that the model sees, the last turn never; returns the messages that were
    dropped now. A summary that stands before them stays."""
    starts = _turns(conversation)
    if len(starts) < 2:
        return 0
    end = starts[max(1, len(starts) // 2)]
    dropped = end - conversation.num_unseen
    conversation.path[end - 1].stand_in = conversation.summary
    return dropped


def compact(conversation: Conversation, summarize: Summarize, *, may_take_all: bool = False) -> int | None:
    """Puts a summary in place of all turns that the model sees but the last ones; returns the messages that it took;
    0: there are none. None: it was stopped.

    ``may_take_all``: a single turn that is complete is taken too. Raises ``ContextLengthError`` for a turn that does
    not fit into the context alone.
    """
    starts = _turns(conversation)
    if not starts:
        return 0
    if len(starts) > 1:
        end = starts[max(1, len(starts) - KEPT_TURNS)]
    elif may_take_all and conversation.path[-1].role == "assistant":
        end = len(conversation.path)
    else:
        return 0
    first = conversation.num_unseen
    summary = _in_parts(conversation.path[first:end], conversation.summary, summarize)
    if summary is None:
        return None
    conversation.path[end - 1].stand_in = summary
    return end - first


def undo(conversation: Conversation) -> bool:
    """Takes back the last dropping or summary; returns whether there was one."""
    unseen = conversation.num_unseen
    if unseen:
        conversation.path[unseen - 1].stand_in = None
    return unseen > 0


def _turns(conversation: Conversation) -> list[int]:
    """Returns the places of the questions that the model sees."""
    first = conversation.num_unseen
    return [place for place, each in enumerate(conversation.path) if place >= first and each.role == "user"]


def _in_parts(messages: Sequence[Message], earlier: str, summarize: Summarize) -> str | None:
    """Returns the summary of messages; those that do not fit into the context together are taken half by half."""
    try:
        return summarize(messages, earlier)
    except ContextLengthError:
        middle = len(messages) // 2
        middle += middle % 2  # a question stays with its answer
        if middle in (0, len(messages)):
            raise
        first = _in_parts(messages[:middle], earlier, summarize)
        return None if first is None else _in_parts(messages[middle:], first, summarize)
