"""The table of chat commands: name, argument, help, function, suggestions. Dispatch, help, completion of the line and
the guide's table read it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from mistralrs.errors import UsageError
from mistralrs_cli.chat import branches
from mistralrs_cli.chat.session import Chat
from mistralrs_cli.chat_commands import answer_commands, context_commands, input_commands, setting_commands, suggestions
from mistralrs_cli.chat_commands.command_help import help_lines, help_of
from mistralrs_cli.chat_commands.suggestions import Suggestion
from mistralrs_cli.chat_storage import saved_chats
from mistralrs_cli.terminal.output import clean_line

Section = Literal[
    "Conversation", "Your message", "The answer", "Branches", "Saved chats", "Settings", "The chat itself"
]


@dataclass(frozen=True, slots=True)
class SlashCommand:
    """One command; ``run`` gets the chat and the text after the name, without white space around it."""

    name: str
    help: str
    """One line for the list of commands."""
    run: Callable[[Chat, str], None]
    section: Section
    argument: str = ""
    """The argument as help shows it; empty: the command takes none."""
    details: str = ""
    """More for ``/help NAME`` and for the guide; empty: ``help`` says all."""
    aliases: tuple[str, ...] = ()
    suggest: Callable[[Chat, str], Iterable[Suggestion]] | None = None
    """Returns the arguments that the one typed so far may become."""

    @property
    def usage(self) -> str:
        """Returns the name with the argument."""
        return f"{self.name} {self.argument}".rstrip()


def _help(chat: Chat, argument: str) -> None:
    width = chat.notes.width
    if argument:
        chat.notes.say(*help_of(find(argument if argument[:1] in "/\\" else f"/{argument}"), width=width))
    else:
        chat.notes.say(*help_lines(COMMANDS, width=width))


def _command_names(chat: Chat, typed: str) -> list[Suggestion]:
    return [Suggestion(each.name[1:], each.name[1:]) for each in COMMANDS if each.name[1:].startswith(typed)]


def _exit(chat: Chat, argument: str) -> None:
    chat.leaving = True


COMMANDS = (
    SlashCommand(
        "/retry",
        "Answer the last question anew",
        branches.retry,
        "Conversation",
        argument="[N] [dry]",
        details="With N the question of message N. Another seed is used, and the old answer stays. dry: this answer is "
        "penalized for repetitions.",
        suggest=suggestions.words("dry"),
    ),
    SlashCommand(
        "/continue",
        "Go on with the last answer where it ends",
        branches.go_on,
        "Conversation",
        details="For one that was stopped or reached its limit.",
    ),
    SlashCommand(
        "/edit",
        "Change the last question, or message N",
        branches.edit,
        "Conversation",
        argument="[N|draft]",
        details="The message is put into the line; sent, it stands beside the old one and is answered. A changed "
        "answer is gone on with. `draft` opens your editor with a new message.",
    ),
    SlashCommand("/undo", "Take back the last question and its answer", branches.undo, "Conversation"),
    SlashCommand(
        "/compact",
        "Put a summary in place of old turns",
        context_commands.compact,
        "Conversation",
        argument="[show|undo]",
        details="The model sees the summary, the chat keeps the turns. show: what the model does not see; undo: the "
        "last summary or dropping is taken back.",
        suggest=suggestions.words("show", "undo"),
    ),
    SlashCommand(
        "/read",
        "Attach a file or a folder to your next message",
        input_commands.read,
        "Your message",
        argument="[FILE|none]",
        details="Alone it shows what waits for the message; none: nothing.",
        suggest=suggestions.words_or_paths("none"),
    ),
    SlashCommand(
        "/p",
        "Send one of your prompts, or list them",
        input_commands.prompt,
        "Your message",
        argument="[NAME [VAR=VALUE] [TEXT]]",
        details="Prompts are Markdown files with variables such as `{{language}}`; `{{input}}` is the text.",
        suggest=input_commands.suggest_prompts,
    ),
    SlashCommand(
        "/multi",
        "Let Enter begin a new line, Alt-Enter send",
        input_commands.multi,
        "Your message",
        argument="[on|off]",
        details="Commands are still sent by Enter.",
        suggest=suggestions.words("on", "off"),
    ),
    SlashCommand(
        "/tokens",
        "Count the conversation's tokens, or a text's",
        input_commands.tokens,
        "Your message",
        argument="[TEXT]",
        details="The tokens of a text are shown one by one.",
    ),
    SlashCommand(
        "/save",
        "Write the last answer to a file",
        answer_commands.save,
        "The answer",
        argument="FILE",
        details="A file that is there already is left alone. Names are given with `/rename`.",
        suggest=suggestions.paths,
    ),
    SlashCommand(
        "/copy",
        "Copy the last answer to the clipboard",
        answer_commands.copy,
        "The answer",
        argument="[code [N]]",
        details="code: its first code block, or block N. The terminal does it (OSC 52), which works over ssh where it "
        "allows it.",
        suggest=suggestions.words("code"),
    ),
    SlashCommand(
        "/probs",
        "Colour the answer's tokens by probability",
        answer_commands.probs,
        "The answer",
        argument="[N|on|off]",
        details="With N the alternatives at token N. Probabilities are kept from the first `/probs` or `/probs on` on.",
        suggest=suggestions.words("on", "off"),
    ),
    SlashCommand(
        "/alt",
        "Show other answers to the last question",
        branches.alternatives,
        "Branches",
        argument="[COUNT]",
        details="Three unless said, computed together.",
    ),
    SlashCommand(
        "/tree",
        "Show all branches, or go on with that of message N",
        branches.tree,
        "Branches",
        argument="[N]",
        details="The messages' numbers are here.",
    ),
    SlashCommand("/fork", "Go on in another chat that begins as this one", branches.fork, "Branches"),
    SlashCommand(
        "/new",
        "Begin another chat with the same system message",
        saved_chats.new,
        "Saved chats",
        details="The old one stays saved.",
        aliases=("/clear",),
    ),
    SlashCommand("/sessions", "List the saved chats, the last used first", saved_chats.sessions, "Saved chats"),
    SlashCommand(
        "/resume",
        "Go on with a saved chat",
        saved_chats.resume_named,
        "Saved chats",
        argument="[NAME|ID]",
        details="Without a name, with the last other one.",
        aliases=("/load",),
        suggest=suggestions.saved_chats,
    ),
    SlashCommand(
        "/search",
        "Find messages in all saved chats",
        saved_chats.search,
        "Saved chats",
        argument="TEXT",
        details="Those that have all words of the text.",
    ),
    SlashCommand("/rename", "Name this chat", saved_chats.rename, "Saved chats", argument="NAME"),
    SlashCommand(
        "/export",
        "Write this chat to a file",
        saved_chats.export,
        "Saved chats",
        argument="md|json|html [FILE]",
        details="As Markdown, as OpenAI's messages in JSON, or as a page.",
        suggest=suggestions.after_a_word("md", "json", "html"),
    ),
    SlashCommand(
        "/import",
        "Save the chats of a file, go on with the first",
        saved_chats.import_file,
        "Saved chats",
        argument="FILE",
        details="OpenAI's messages or ShareGPT's conversations.",
        suggest=suggestions.paths,
    ),
    SlashCommand(
        "/model",
        "Show the model, or go on with another",
        setting_commands.model,
        "Settings",
        argument="[FILE|ROW ...|NAME]",
        details="A file or folder, a row with its options as on the command line, or with `--connect` another model of "
        "the server. The old model is closed first; if the new one cannot be loaded, it is loaded again.",
        suggest=setting_commands.suggest_models,
    ),
    SlashCommand(
        "/set",
        "Show the settings, or change one",
        setting_commands.set_value,
        "Settings",
        argument="[NAME [VALUE]]",
        details="Each is shown with where its value came from: an option, a variable, the config file, the default or "
        "`/set`. The value `default` is the one with which the chat began.",
        suggest=setting_commands.suggest_settings,
    ),
    SlashCommand(
        "/show",
        "Show what the chat works with",
        setting_commands.show,
        "Settings",
        argument="[TOPIC]",
        details="`model`: the model; `template`: its chat template; `params`: the settings; `prompt`: the conversation "
        "as the model sees it; `thinking`: that of the last answer.",
        suggest=suggestions.words(*setting_commands.SHOWN),
    ),
    SlashCommand(
        "/system",
        "Show or set the system message",
        setting_commands.system,
        "Settings",
        argument="[TEXT]",
        details='`""` removes it.',
    ),
    SlashCommand(
        "/schema",
        "Hold answers to a JSON schema",
        setting_commands.schema,
        "Settings",
        argument="[FILE|off]",
        details="Answers are JSON that obeys the schema in the file, from the next turn on; off: any text.",
        suggest=suggestions.words_or_paths("off"),
    ),
    SlashCommand(
        "/think",
        "Let the model think, and show it",
        setting_commands.think,
        "Settings",
        argument="[on|off|hide|show]",
        details="on and off: where the chat template can; hide: it may think, and that is not shown; show: as at the "
        "beginning.",
        suggest=suggestions.words("on", "off", "hide", "show"),
    ),
    SlashCommand(
        "/adapter",
        "Show the adapters, or choose those that act",
        setting_commands.adapter,
        "Settings",
        argument="[list|none|NAME[:W]]",
        details="Several names may be given, each with its weight; they act from the next turn on.",
        suggest=suggestions.adapters,
    ),
    SlashCommand(
        "/scalings",
        "Show how X-LoRA mixed the last answer",
        setting_commands.scalings,
        "Settings",
        details="For each token of the last answer: the darker, the larger the mean weight over the layers.",
    ),
    SlashCommand(
        "/stats",
        "Show what the last answer took",
        setting_commands.stats,
        "Settings",
        argument="[on|off]",
        details="Its speed, the tokens of its prompt that were reused, the seed; on: after every answer.",
        suggest=suggestions.words("on", "off"),
    ),
    SlashCommand(
        "/help",
        "List the commands, or explain one",
        _help,
        "The chat itself",
        argument="[COMMAND]",
        aliases=("/?",),
        suggest=_command_names,
    ),
    SlashCommand("/exit", "Leave", _exit, "The chat itself", aliases=("/bye", "/quit", "\\exit")),
)

_BY_NAME = {name: command for command in COMMANDS for name in (command.name, *command.aliases)}


def suggest(chat: Chat, typed: str) -> list[Suggestion] | None:
    """Returns the lines that a typed beginning may become; None: it is no command."""
    if not typed.startswith("/") or typed.startswith("//"):
        return None
    name, space, argument = typed.partition(" ")
    if not space:
        return [Suggestion(each.name, each.name) for each in COMMANDS if each.name.startswith(typed)]
    command = _BY_NAME.get(name)
    if command is None or command.suggest is None:
        return []
    bare = argument.lstrip()
    return [Suggestion(f"{name} {each.text}", each.shown) for each in command.suggest(chat, bare)]


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
