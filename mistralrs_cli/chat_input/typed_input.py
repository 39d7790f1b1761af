"""Acts on a typed line: a command of the chat, a command of the shell, or a message with what it attaches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mistralrs.engine.events import Finished
from mistralrs.errors import MistralrsError
from mistralrs_cli.chat import slash_commands
from mistralrs_cli.chat.session import Chat
from mistralrs_cli.chat_commands import input_commands
from mistralrs_cli.chat_input.attachments import describe, find_references, with_blocks
from mistralrs_cli.terminal.output import clean_line


def act(chat: Chat, text: str, *, pasted: Sequence[str] = ()) -> None:
    """Runs a command or takes a turn. The text of a turn that Ctrl-C stopped before any answer is the next draft.

    ``pasted``: parts of the text that were not typed: they run and attach nothing.
    """
    edit, chat.edit = chat.edit, None
    if slash_commands.is_command(text):
        slash_commands.run(chat, text)
    elif is_shell(text) and not any(part.strip() and part.strip().startswith("!") for part in pasted):
        input_commands.shell(chat, text.strip()[1:].strip())
    elif text.strip():
        message = text[1:] if text.startswith("!!") else slash_commands.message(text)
        send(chat, message, typed=text, edit=edit, pasted=pasted)


def is_shell(text: str) -> bool:
    """Returns whether the typed text is a command for the shell."""
    bare = text.strip()
    return bare.startswith("!") and not bare.startswith("!!") and len(bare) > 1 and "\n" not in bare


def send(
    chat: Chat,
    message: str,
    *,
    typed: str,
    edit: Callable[[str], Finished | None] | None = None,
    pasted: Sequence[str] = (),
) -> None:
    """Sends a message with what it names and with what waits for it; an error or Ctrl-C before the answer leaves these
    waiting. ``typed``: the line that Ctrl-C gives back; ``edit``: takes the message instead of a turn."""
    waiting = chat.attachments
    try:
        found = find_references(message, chat.fetch, pasted=pasted)
        shown = describe(found.attachments, chat.count_tokens, limit=chat.model.info.context_length)
    except MistralrsError:
        chat.draft, chat.edit = typed, edit
        raise
    if found.left_out:
        chat.notes.say(f"left out, for they are no text: {', '.join(map(clean_line, found.left_out))}")
    chat.notes.say(*shown)
    whole = with_blocks(found.text, [*waiting, *found.attachments])
    chat.attachments = []
    try:
        finished = chat.take_turn(whole, mark_cut=True) if edit is None else edit(whole)
    except MistralrsError:
        chat.attachments = waiting
        raise
    if finished is not None and finished.reason == "cancelled" and finished.usage.completion_tokens == 0:
        chat.draft, chat.edit, chat.attachments = typed, edit, waiting
