"""The chat's commands about branches: a message may have several answers, and a chat shows one path through them.

Messages are numbered in the order in which they were made, those of all branches of a chat together.
"""

from __future__ import annotations

from collections.abc import Sequence

from mistralrs.engine.events import Finished
from mistralrs.errors import UsageError
from mistralrs_cli.chat.chat_history import Conversation, Message
from mistralrs_cli.chat.session import Chat
from mistralrs_cli.chat_commands.repetition import DRY_MULTIPLIER
from mistralrs_cli.chat_input.attachments import as_draft
from mistralrs_cli.chat_storage.chat_store import TreeMessage
from mistralrs_cli.model import ServersModel
from mistralrs_cli.terminal.output import clean_line

DEFAULT_OTHERS = 3
MAX_OTHERS = 16
"""Answers that ``/alt`` makes at once, at most."""
SHOWN = 60
"""Characters of a message in the tree."""


def retry(chat: Chat, argument: str) -> None:
    """Answers the last question anew, or that of a numbered message, beside its other answers. With ``dry``,
    repetitions are penalized."""
    words = argument.split()
    is_dry = "dry" in words
    path = _path(chat, " ".join(word for word in words if word != "dry"))
    if is_dry and isinstance(chat.model, ServersModel):
        chat.model.give("dry_multiplier")
    chat.attempts += 1
    chat.answer(_to_question(path), attempt=chat.attempts, dry_multiplier=DRY_MULTIPLIER if is_dry else None)


def undo(chat: Chat, argument: str) -> None:
    """Takes back the last question and its answer; both stay in the tree."""
    question = _to_question(_path(chat, ""))
    chat.show_path(question[:-1])
    chat.notes.say(f"taken back: {_begin(question[-1].content)}")


def edit(chat: Chat, argument: str) -> None:
    """Puts a message into the line; when it is sent, it stands beside the old one, and a question is answered. With
    ``draft``, opens the user's editor with a new message."""
    if argument == "draft":
        chat.opens_editor = True
        return
    path = _path(chat, argument) if argument else _to_question(_path(chat, ""))
    before, message = path[:-1], path[-1]

    def replace(text: str) -> Finished | None:
        edited = Message(message.role, text)
        if message.role == "user":
            return chat.answer([*before, edited])
        chat.show_path([*before, edited])
        chat.notes.say("the answer is changed; the conversation goes on from it")
        return None

    chat.notes.say("Enter sends it in place of the old message, Ctrl-G opens your editor, Ctrl-C leaves the old one")
    chat.edit = replace
    chat.draft = as_draft(message.content)


def go_on(chat: Chat, argument: str) -> None:
    """Continues the last answer where it ends."""
    path = _path(chat, "")
    if path[-1].stand_in is not None:
        raise UsageError("the model does not see the last answer any more", hint="/compact undo brings it back")
    if path[-1].role != "assistant" or not path[-1].content:
        raise UsageError("there is no answer to continue", hint="/retry asks again")
    chat.answer(list(path))


def fork(chat: Chat, argument: str) -> None:
    """Begins another chat with the messages of this one."""
    path = _path(chat, "")
    old = chat.conversation
    chat.conversation = Conversation(old.system, [each.copy() for each in path])
    chat.record.save(chat.conversation)
    numbers = f"chat {chat.conversation.id}; chat {old.id} stays as it is" if chat.record.is_kept else "a copy"
    chat.notes.say(f"from now on this is {numbers}")


def alternatives(chat: Chat, argument: str) -> None:
    """Shows other answers to the last question, computed together."""
    count = DEFAULT_OTHERS if not argument else int(argument) if argument.isdecimal() and len(argument) < 4 else 0
    if not 1 <= count <= MAX_OTHERS:
        raise UsageError(f"/alt {clean_line(argument)}: not a number from 1 to {MAX_OTHERS}", hint="/alt 3")
    made = chat.other_answers(_to_question(_path(chat, "")), count)
    numbers = [str(number) for number, each in enumerate(_tree(chat), 1) if each.message.id in {m.id for m in made}]
    if numbers:
        chat.notes.say(f"these are the messages {', '.join(numbers)}: /tree NUMBER goes on with one")


def tree(chat: Chat, argument: str) -> None:
    """Shows all branches, or goes on with the one that a message is in."""
    if not argument:
        _path(chat, "")
        chat.notes.say(*draw(_tree(chat), {each.id for each in chat.conversation.path}))
        return
    nodes = _tree(chat)
    path = _path(chat, argument)
    while following := [each for each in nodes if each.parent == path[-1].id and _is_shown(each, nodes)]:
        path.append(following[-1].message)
    chat.show_path(path)
    chat.notes.say(f"going on after: {_begin(path[-1].content)}")


def draw(nodes: Sequence[TreeMessage], shown: set[int | None]) -> list[str]:
    """Returns a line for each message; branches are indented, and a star marks the path that is ``shown``."""
    numbers = {each.message.id: number for number, each in enumerate(nodes, 1)}
    children: dict[int | None, list[Message]] = {}
    for each in nodes:
        children.setdefault(each.parent, []).append(each.message)
    lines, waiting = [], [(first, 0) for first in reversed(children.get(None, []))]
    while waiting:
        message, depth = waiting.pop()
        who = "you" if message.role == "user" else "answer, interrupted" if message.is_cut else "answer"
        star = "*" if message.id in shown else " "
        lines.append(f"{star} {'  ' * depth}{numbers[message.id]} {who}: {_begin(message.content)}")
        if message.stand_in is not None:
            seen = f"a summary: {_begin(message.stand_in)}" if message.stand_in else "nothing"
            lines.append(f"  {'  ' * depth}-- in place of all above the model sees {seen}")
        following = children.get(message.id, [])
        waiting += [(each, depth + (len(following) > 1)) for each in reversed(following)]
    return lines


def _is_shown(node: TreeMessage, nodes: Sequence[TreeMessage]) -> bool:
    """Returns whether a path may end with the message or go on from it: a question without answer is no end."""
    return node.message.role == "assistant" or any(each.parent == node.message.id for each in nodes)


def _tree(chat: Chat) -> list[TreeMessage]:
    number = chat.conversation.id
    return [] if number is None else chat.record.store.messages(number)


def _path(chat: Chat, argument: str) -> list[Message]:
    """Returns the messages up to the numbered one, or those of the conversation. Raises ``UsageError`` where there is
    none."""
    if not chat.conversation.path:
        raise UsageError("the conversation is empty", hint="say something first")
    if not argument:
        return list(chat.conversation.path)
    nodes = {each.message.id: each for each in _tree(chat)}
    numbers = list(nodes)
    if not argument.isdecimal() or len(argument) > 9 or not 1 <= int(argument) <= len(numbers):
        raise UsageError(f"there is no message {clean_line(argument)}", hint="/tree shows their numbers")
    own = {each.id: each for each in chat.conversation.path}
    path, place = list[Message](), numbers[int(argument) - 1]
    while place is not None:
        path.insert(0, own.get(place, nodes[place].message))
        place = nodes[place].parent
    return path


def _to_question(path: list[Message]) -> list[Message]:
    """Returns the path up to its last question."""
    for end in range(len(path), 0, -1):
        if path[end - 1].role == "user":
            return path[:end]
    raise UsageError("there is no question before this message", hint="/tree shows all messages")


def _begin(text: str) -> str:
    line = clean_line(text)
    return line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"
