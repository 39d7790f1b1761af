"""The table of chat commands: name, aliases, argument, help and function. Help and dispatch read it."""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Callable
from dataclasses import dataclass

from mistralrs.api.loaded_adapters.known_adapters import described
from mistralrs.api.selectors.adapter_words import parse_weights
from mistralrs.errors import UsageError
from mistralrs_cli.chat import branches
from mistralrs_cli.chat.render import columns
from mistralrs_cli.chat.session import Chat
from mistralrs_cli.chat_storage import saved_chats
from mistralrs_cli.terminal.output import clean_line


@dataclass(frozen=True, slots=True)
class SlashCommand:
    """One command; ``run`` gets the chat and the text after the name, without white space around it."""

    name: str
    help: str
    run: Callable[[Chat, str], None]
    argument: str = ""
    """The argument as help shows it; empty: the command takes none."""
    aliases: tuple[str, ...] = ()


def _help(chat: Chat, argument: str) -> None:
    if argument:
        command = find(argument if argument[:1] in "/\\" else f"/{argument}")
        chat.notes.say(f"{command.name} {command.argument}".rstrip() + f"  {command.help}")
        if command.aliases:
            chat.notes.say(f"also: {', '.join(command.aliases)}")
        return
    chat.notes.say(
        *columns((f"{each.name} {each.argument}", each.help) for each in COMMANDS),
        "Enter sends. A new line: Alt-Enter, Ctrl-J, a backslash at the end, or text between two lines of "
        + '"""; a paste never sends.',
        "A message that begins with a slash is written with two.",
    )


def _exit(chat: Chat, argument: str) -> None:
    chat.leaving = True


def _system(chat: Chat, argument: str) -> None:
    if argument:
        chat.conversation.system = None if argument == '""' else argument
        chat.record.save(chat.conversation)
    system = chat.conversation.system
    chat.notes.say("no system message" if system is None else f"system message: {clean_line(system)}")


def _stats(chat: Chat, argument: str) -> None:
    if not argument:
        chat.show_stats()
    elif argument in ("on", "off"):
        chat.stats = argument == "on"
        chat.notes.say(f"statistics after each answer: {argument}")
    else:
        raise UsageError(f"/stats {clean_line(argument)}: not on or off", hint="/stats alone shows the last answer's")


def _adapter(chat: Chat, argument: str) -> None:
    known = chat.model.known_adapters()
    if not known.names:
        raise UsageError("no adapter can be chosen", hint="--lora NAME=SOURCE loads one at the start")
    if argument in ("", "list"):
        acting = known.active if chat.adapters is None else chat.adapters
        chat.notes.say(*columns((clean_line(name), _acts(acting.get(name))) for name in known.names))
        return
    weights = parse_weights(argument.replace(",", " ").split(), written="/adapter")
    known.check(weights)
    chat.adapters = weights
    chat.notes.say(f"acting from now on: {clean_line(described(weights)) or 'none'}")


def _acts(weight: float | None) -> str:
    return "" if weight is None else f"acts, weight {weight:g}"


def _scalings(chat: Chat, argument: str) -> None:
    chat.show_scalings(width=shutil.get_terminal_size().columns)


COMMANDS = (
    SlashCommand("/help", "show the commands, or one of them", _help, argument="[command]", aliases=("/?",)),
    SlashCommand("/system", 'show or set the system message; "" removes it', _system, argument="[text]"),
    SlashCommand("/stats", "show what the last answer took, or show it after each answer", _stats, argument="[on|off]"),
    SlashCommand(
        "/adapter", "show the adapters, or choose those that act", _adapter, argument="[list|NAME[:W]...|none]"
    ),
    SlashCommand("/scalings", "show how X-LoRA mixed its adapters for the tokens of the last answer", _scalings),
    SlashCommand("/retry", "answer the last question anew, or that of a message", branches.retry, argument="[N]"),
    SlashCommand("/continue", "go on with the last answer where it ends", branches.go_on),
    SlashCommand("/edit", "edit the last question, or any message, an answer too", branches.edit, argument="[N]"),
    SlashCommand("/undo", "take back the last question and its answer", branches.undo),
    SlashCommand(
        "/alt", "show other answers to the last question, made together", branches.alternatives, argument="[COUNT]"
    ),
    SlashCommand(
        "/tree", "show all branches and the messages' numbers, or go on with one", branches.tree, argument="[N]"
    ),
    SlashCommand("/fork", "go on in another chat that begins as this one", branches.fork),
    SlashCommand("/new", "begin another chat", saved_chats.new, aliases=("/clear",)),
    SlashCommand("/sessions", "list the saved chats, the last used first", saved_chats.sessions),
    SlashCommand(
        "/resume", "go on with a saved chat", saved_chats.resume_named, argument="[NAME|ID]", aliases=("/load",)
    ),
    SlashCommand("/search", "find messages in all saved chats", saved_chats.search, argument="TEXT"),
    SlashCommand("/rename", "name this chat", saved_chats.rename, argument="NAME"),
    SlashCommand("/export", "write this chat to a file", saved_chats.export, argument="md|json|html [FILE]"),
    SlashCommand(
        "/import", "save the chats of a file and go on with the first", saved_chats.import_file, argument="FILE"
    ),
    SlashCommand("/exit", "leave", _exit, aliases=("/bye", "/quit", "\\exit")),
)

_BY_NAME = {name: command for command in COMMANDS for name in (command.name, *command.aliases)}


def is_command(text: str) -> bool:
    """Returns whether the typed text is a command for the chat and not text for the model."""
    return (text.startswith("/") and not text.startswith("//")) or text.strip() in _BY_NAME


def message(text: str) -> str:
    """Returns the text for the model: two slashes at the beginning stand for one."""
    return text[1:] if text.startswith("//") else text


def find(name: str) -> SlashCommand:
    """Returns the command of that name or alias. Raises ``UsageError`` with the nearest one."""
    if name in _BY_NAME:
        return _BY_NAME[name]
    nearest = difflib.get_close_matches(name, _BY_NAME, n=1)
    suggestion = f"did you mean {nearest[0]}? " if nearest else "/help lists the commands; "
    raise UsageError(f"no such command: {clean_line(name)}", hint=f"{suggestion}// sends a message with a slash")


def run(chat: Chat, text: str) -> None:
    """Runs the typed command. Raises ``UsageError`` when there is no such command or it takes no such argument."""
    name, _, argument = text.strip().partition(" ")
    command = find(name)
    argument = argument.strip()
    if argument and not command.argument:
        raise UsageError(f"{name} takes nothing after it", hint=f"type {name} alone")
    command.run(chat, argument)
