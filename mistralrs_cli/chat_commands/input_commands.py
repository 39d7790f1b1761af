"""The chat's commands about the next message: files, commands of the shell, prompts, its form in the line."""

from __future__ import annotations

from collections.abc import Iterable

from mistralrs.errors import UsageError
from mistralrs.user_dirs import expand_user
from mistralrs_cli.adapter_commands.mean_scalings import shown_token
from mistralrs_cli.chat.session import Chat
from mistralrs_cli.chat_commands.suggestions import Suggestion
from mistralrs_cli.chat_input import prompt_files
from mistralrs_cli.chat_input.attachments import Attachment, describe, find_references, read_path, with_blocks
from mistralrs_cli.chat_input.shell_output import run_command
from mistralrs_cli.terminal.output import clean_block, clean_line, grouped

OUTPUT_LINES = 20
"""Lines of a command's output that are shown."""
SHOWN_TOKENS = 400
"""Tokens of a text that are shown one by one."""


def read(chat: Chat, argument: str) -> None:
    """Attaches a file or a folder to the next message, or shows what waits for it."""
    if not argument:
        names = ", ".join(clean_line(each.name) for each in chat.attachments)
        chat.notes.say(f"waiting for your next message: {names}" if names else "nothing waits for your next message")
    elif argument == "none":
        chat.attachments = []
        chat.notes.say("nothing waits for your next message any more")
    else:
        found, left_out = read_path(expand_user(argument.strip('"')))
        if left_out:
            chat.notes.say(f"left out, for they are no text: {', '.join(map(clean_line, left_out))}")
        attach(chat, found)


def attach(chat: Chat, found: list[Attachment]) -> None:
    """Lets texts wait for the next message, and says so. Raises ``UsageError`` for more than the context has."""
    together = [*chat.attachments, *found]
    describe(together, chat.count_tokens, limit=chat.model.info.context_length)
    chat.notes.say(*describe(found, chat.count_tokens, limit=0), "your next message has it; /read none drops it")
    chat.attachments = together


def shell(chat: Chat, command: str) -> None:
    """Runs a command of the shell, shows its output, and attaches it to the next message if the user says so."""
    output = run_command(command)
    if output.text.strip():
        lines = clean_block(output.text).rstrip("\n").split("\n")
        more = len(lines) - OUTPUT_LINES
        chat.notes.say(*lines[:OUTPUT_LINES], *([f"... and {more} more lines"] if more > 0 else []))
    if output.end:
        chat.notes.say(output.end)
    if not output.text.strip():
        chat.notes.say("no output")
        return
    tokens = chat.count_tokens(output.text)
    size = "it" if tokens is None else f"its {grouped(tokens)} tokens"
    if chat.confirm(f"attach {size} to your next message?"):
        attach(chat, [Attachment(f"$ {command}", output.text)])


def prompt(chat: Chat, argument: str) -> None:
    """Sends one of the user's prompts, or lists them."""
    name, _, rest = argument.partition(" ")
    if not name:
        found = prompt_files.names()
        folder = prompt_files.prompts_folder()
        chat.notes.say(
            *(prompt_files.load(each).usage for each in found), *([] if found else [f"there is no prompt in {folder}"])
        )
        return
    text = prompt_files.load(name).fill(rest)
    attachments = find_references(rest, chat.fetch).attachments
    limit = chat.model.info.context_length
    chat.notes.say(*describe(attachments, chat.count_tokens, limit=limit))
    chat.notes.say(*(f"> {line}" for line in text.split("\n")))
    waiting, chat.attachments = chat.attachments, []
    try:
        chat.take_turn(with_blocks(text, [*waiting, *attachments]), mark_cut=True)
    except BaseException:
        chat.attachments = waiting
        raise


def suggest_prompts(chat: Chat, typed: str) -> Iterable[Suggestion]:
    """Returns the names of prompts, and after a name its variables."""
    name, space, rest = typed.partition(" ")
    if not space:
        return [Suggestion(each, each) for each in prompt_files.names() if each.startswith(name)]
    if name not in prompt_files.names():
        return []
    *_, begun = rest.split(" ")
    before = typed[: len(typed) - len(begun)]
    named = [each for each in prompt_files.load(name).variables if each != prompt_files.REST and f"{each}=" not in rest]
    return [Suggestion(f"{before}{each}=", f"{each}=") for each in named if each.startswith(begun)]


def tokens(chat: Chat, argument: str) -> None:
    """Shows how many tokens the conversation takes, or the tokens of a text."""
    limit = chat.model.info.context_length
    if not argument:
        messages = chat.conversation.for_model()
        count = len(chat.model.tokens_of(messages)) if messages else 0
        share = f" of {grouped(limit)} tokens of the context ({100 * count // limit} %)" if limit else " tokens"
        chat.notes.say(f"{grouped(count)}{share}")
        return
    tokenizer = chat.model.tokenizer
    ids = tokenizer.encode(argument, special=False)
    pieces = "|".join(shown_token(tokenizer.token_text(each)) for each in ids[:SHOWN_TOKENS])
    left = f" and {grouped(len(ids) - SHOWN_TOKENS)} more" if len(ids) > SHOWN_TOKENS else ""
    chat.notes.say(f"{grouped(len(ids))} token{'' if len(ids) == 1 else 's'}: {pieces}{left}")


def multi(chat: Chat, argument: str) -> None:
    """Lets Enter begin a new line and Alt-Enter send, or the other way round again."""
    if argument not in ("", "on", "off"):
        raise UsageError(f"/multi {clean_line(argument)}: not on or off", hint="/multi on, or /multi off")
    chat.multiline = argument == "on" if argument else not chat.multiline
    chat.notes.say(
        "Enter begins a new line, Alt-Enter sends; Enter still sends a command"
        if chat.multiline
        else "Enter sends, Alt-Enter begins a new line"
    )
