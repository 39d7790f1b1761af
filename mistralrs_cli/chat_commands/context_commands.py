"""The chat's command about a long conversation: a summary in place of old turns, which can be taken back."""

from __future__ import annotations

from mistralrs.errors import UsageError
from mistralrs_cli.chat.session import Chat
from mistralrs_cli.chat_commands import context_room
from mistralrs_cli.terminal.output import clean_line


def compact(chat: Chat, argument: str) -> None:
    """Puts a summary in place of old turns, shows it, or takes it back."""
    conversation = chat.conversation
    if argument == "undo":
        if not context_room.undo(conversation):
            raise UsageError("nothing is compacted or dropped", hint="/compact puts a summary in place of old turns")
        chat.record.save(conversation)
        chat.notes.say(*chat.describe_unseen() or ["the model sees the whole conversation again"])
    elif argument == "show":
        chat.notes.say(*chat.describe_unseen() or ["the model sees the whole conversation"])
    elif argument:
        raise UsageError(f"/compact {clean_line(argument)}: no such action", hint="/compact, /compact show or undo")
    elif not conversation.path:
        raise UsageError("the conversation is empty", hint="say something first")
    else:
        chat.compact_now()
