"""The chat's commands about its settings: show and change them, the system message, adapters, the answers' schema."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping

from mistralrs.api.loaded_adapters.known_adapters import described
from mistralrs.api.selectors.adapter_words import parse_weights
from mistralrs.api.selectors.model_selector import SELECTORS
from mistralrs.errors import MistralrsError, UsageError
from mistralrs.user_dirs import expand_user
from mistralrs_cli.arguments.grammar_option import schema_in
from mistralrs_cli.chat.chat_settings import RESET, SETTINGS, Setting, find_setting
from mistralrs_cli.chat.render import banner, columns
from mistralrs_cli.chat.session import Chat
from mistralrs_cli.chat_commands.suggestions import Suggestion, paths
from mistralrs_cli.model import LostModelError, ServersModel
from mistralrs_cli.terminal.output import clean_block, clean_line, grouped


def set_value(chat: Chat, argument: str) -> None:
    """Shows all settings with where each came from, or one, or changes one."""
    name, _, text = argument.partition(" ")
    if not name:
        show_params(chat)
        return
    setting, text = find_setting(name), text.strip()
    if text:
        change(chat, setting, text)
    else:
        chat.notes.say(*_rows(chat, [setting]))


def change(chat: Chat, setting: Setting, text: str) -> None:
    """Gives a setting the value of a typed text. Raises ``UsageError``, and ``RequestError`` for one that the model's
    server would not obey."""
    if setting.is_sampling and text != RESET:
        setting.parse(text)  # a wrong value is refused before the server is told
        if isinstance(chat.model, ServersModel):
            chat.model.give(setting.field)
    chat.origins.change(chat.settings, setting, text=text)
    chat.notes.say(*_rows(chat, [setting]))


def suggest_settings(chat: Chat, typed: str) -> Iterable[Suggestion]:
    """Returns the names of settings, and after a name its values."""
    name, space, begun = typed.partition(" ")
    if not space:
        return [Suggestion(each, each) for each in SETTINGS if each.startswith(name.replace("_", "-"))]
    setting = SETTINGS.get(name.replace("_", "-"))
    values = () if setting is None else (*setting.words, RESET)
    return [Suggestion(f"{name} {value}", value) for value in values if value.startswith(begun.lstrip())]


def show_params(chat: Chat) -> None:
    """Shows all settings, their values and where these came from."""
    chat.notes.say(*_rows(chat, list(SETTINGS.values())))
    if chat.settings.grammar is not None:
        chat.notes.say(f"answers obey a grammar: {chat.settings.grammar.kind}; /schema off lifts it")


def model(chat: Chat, argument: str) -> None:
    """Shows the model, or goes on with another."""
    if not argument:
        _show_model(chat)
        return
    if chat.switch is None:
        raise UsageError("this chat has one model only", hint="begin another chat with mistralrs -i")
    try:
        words = shlex.split(argument)
    except ValueError as error:
        raise UsageError(f"/model: {error}", hint="close the quotes") from error
    if words and words[0].startswith("~"):
        words[0] = str(expand_user(words[0]))
    try:
        job = chat.switch.change(words)
    except LostModelError:
        chat.leaving = True
        raise
    except MistralrsError as error:
        if chat.model is not chat.switch.model:
            chat.take_model(chat.switch.model)
            chat.notes.error(error)
            chat.notes.say("the chat goes on with the old model")
            return
        raise
    chat.take_model(chat.switch.model)
    if not chat.origins.is_changed("repeat-last-n"):
        SETTINGS["repeat-last-n"].put(chat.settings, job.sampling.repeat_last_n)
    _show_model(chat)
    if chat.conversation.path:
        chat.notes.say("the chat goes on; the next turn reads all of it anew")


def suggest_models(chat: Chat, typed: str) -> Iterable[Suggestion]:
    """Returns the names of rows, and paths after the first word too."""
    *before, begun = typed.split(" ")
    rows = [] if before else [each for each in SELECTORS if each.startswith(begun)]
    lead = " ".join([*before, ""]) if before else ""
    return [
        *(Suggestion(each, each) for each in rows),
        *(Suggestion(f"{lead}{each.text}", each.shown) for each in paths(chat, begun)),
    ]


def show(chat: Chat, argument: str) -> None:
    """Shows the model, its template, the settings, or the prompt as the model sees it."""
    topic = argument or "model"
    if topic not in SHOWN:
        raise UsageError(f"/show {clean_line(topic)}: no such topic", hint=f"one of {', '.join(SHOWN)}")
    SHOWN[topic](chat)


def _show_model(chat: Chat) -> None:
    chat.notes.say(*banner(chat.model.info, chat.model.known_adapters())[:-1])


def _show_template(chat: Chat) -> None:
    chat.notes.say(chat.model.template_source.rstrip("\n"))


def _show_prompt(chat: Chat) -> None:
    """Shows the tokens that the model would see now as one text."""
    messages = chat.conversation.for_model()
    if not messages:
        raise UsageError("the conversation is empty", hint="say something first")
    tokens, tokenizer = chat.model.tokens_of(messages), chat.model.tokenizer
    pieces = [tokenizer.token_bytes(token) or tokenizer.token_text(token).encode() for token in tokens]
    chat.notes.say(clean_block(b"".join(pieces).decode(errors="replace")), f"{grouped(len(tokens))} tokens")


def _show_thinking(chat: Chat) -> None:
    """Shows the thinking before the last answer."""
    last = chat.conversation.path[-1] if chat.conversation.path else None
    if last is None or not last.thinking:
        raise UsageError("the last answer has no thinking", hint="/think on asks for it, where the model can")
    chat.notes.say(last.thinking.strip("\n"))


SHOWN: Mapping[str, Callable[[Chat], None]] = {
    "model": _show_model,
    "template": _show_template,
    "params": show_params,
    "prompt": _show_prompt,
    "thinking": _show_thinking,
}
"""The topics of ``/show``."""


def system(chat: Chat, argument: str) -> None:
    """Shows or sets the system message."""
    if argument:
        chat.conversation.system = None if argument == '""' else argument
        chat.record.save(chat.conversation)
    message = chat.conversation.system
    chat.notes.say("no system message" if message is None else f"system message: {clean_line(message)}")


def stats(chat: Chat, argument: str) -> None:
    """Shows what the last answer took, or switches that on or off for each."""
    if not argument:
        chat.show_stats()
    elif argument in ("on", "off"):
        change(chat, SETTINGS["stats"], argument)
    else:
        raise UsageError(f"/stats {clean_line(argument)}: not on or off", hint="/stats alone shows the last answer's")


def think(chat: Chat, argument: str) -> None:
    """Shows or sets whether the model thinks, and whether that is shown."""
    setting = SETTINGS["think"]
    if not argument:
        chat.notes.say(*_rows(chat, [setting]))
        return
    change(chat, setting, "auto" if argument == "show" else argument)


def schema(chat: Chat, argument: str) -> None:
    """Holds answers to the JSON schema of a file, or lifts what they are held to."""
    if not argument:
        grammar = chat.settings.grammar
        chat.notes.say("answers are any text" if grammar is None else f"answers obey a {grammar.kind}:")
        if grammar is not None:
            chat.notes.say(grammar.text.strip())
        return
    if argument == "off":
        chat.settings.grammar = None
        chat.notes.say("answers are any text again")
        return
    chat.settings.grammar = schema_in(expand_user(argument), written="/schema")
    chat.notes.say(f"answers are JSON of the schema in {clean_line(argument)}; /schema off lifts it")


def adapter(chat: Chat, argument: str) -> None:
    """Shows the adapters and which act, or chooses those that act."""
    known = chat.model.known_adapters()
    if not known.names:
        is_served = isinstance(chat.model, ServersModel)
        hint = "/model NAME asks an adapter of the server" if is_served else "--lora NAME=SOURCE loads one at the start"
        raise UsageError("no adapter can be chosen", hint=hint)
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


def scalings(chat: Chat, argument: str) -> None:
    """Shows how X-LoRA mixed its adapters for the last answer."""
    chat.show_scalings(width=chat.notes.width)


def _rows(chat: Chat, settings: list[Setting]) -> list[str]:
    values = [(each, *_value_and_origin(chat, each)) for each in settings]
    wide = max(len(text) for _, text, _ in values)
    return columns((each.name, f"{clean_line(text):<{wide}}  ({clean_line(origin)})") for each, text, origin in values)


def _value_and_origin(chat: Chat, setting: Setting) -> tuple[str, str]:
    """Returns the value as text and where it came from; a server that is told nothing keeps its own."""
    if setting.is_sampling and isinstance(chat.model, ServersModel) and not chat.model.sends(setting.field):
        return "-", "the server's own"
    return setting.show(setting.value(chat.settings)), chat.origins.of(setting)
