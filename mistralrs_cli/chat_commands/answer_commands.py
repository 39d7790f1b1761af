"""The chat's commands about the last answer: write it to a file, copy it, show how probable its tokens were."""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Sequence

from mistralrs.engine.events import TokenLogprob
from mistralrs.errors import UsageError
from mistralrs.user_dirs import expand_user
from mistralrs_cli.adapter_commands.mean_scalings import shown_token
from mistralrs_cli.chat.session import Chat
from mistralrs_cli.chat_storage.chat_formats import write_new
from mistralrs_cli.terminal.output import byte_size, clean_line

COPY_BYTES = 1 << 20
"""Bytes that ``/copy`` hands to the terminal, at most; many terminals take less."""
BANDS = ((0.9, "green"), (0.6, "yellow"), (0.3, "dark_orange"), (0.0, "red"))
"""The colours of tokens from these probabilities on."""


def save(chat: Chat, argument: str) -> None:
    """Writes the last answer to a new file."""
    if not argument:
        raise UsageError("/save needs a file", hint="/save FILE writes the last answer; /rename names the chat")
    text = _last_answer(chat)
    path = expand_user(argument.strip('"'))
    write_new(path, text if text.endswith("\n") else f"{text}\n")
    chat.notes.say(f"written: {clean_line(str(path))}, {byte_size(len(text.encode()))}")


def copy(chat: Chat, argument: str) -> None:
    """Copies the last answer, or a code block of it, to the clipboard, by way of the terminal (OSC 52)."""
    text = _last_answer(chat)
    word, _, number = argument.partition(" ")
    if word == "code":
        text = _block(text, number.strip())
    elif word:
        raise UsageError(f"/copy {clean_line(argument)}: no such part", hint="/copy, /copy code, /copy code 2")
    data = text.encode(errors="replace")
    if len(data) > COPY_BYTES:
        raise UsageError(f"{byte_size(len(data))} are too much for a terminal's clipboard", hint="/save FILE writes it")
    if not chat.send_to_terminal(f"\x1b]52;c;{base64.b64encode(data).decode()}\x07"):
        raise UsageError("there is no terminal that has a clipboard", hint="/save FILE writes the answer")
    chat.notes.say(f"copied: {byte_size(len(data))}, if the terminal takes it")


def probs(chat: Chat, argument: str) -> None:
    """Colours the last answer's tokens by their probabilities, or shows the alternatives to one token."""
    if argument in ("on", "off"):
        chat.keeps_probs = argument == "on"
        chat.notes.say(f"probabilities of answers from now on: {'kept' if chat.keeps_probs else 'not kept'}")
        return
    if not chat.probs:
        _begin(chat)
        return
    if not argument:
        chat.notes.show(*coloured(chat.probs, width=chat.notes.width))
        chat.notes.say("/probs N shows the alternatives at token N; the numbers are those of each line's first token")
        return
    if not argument.isdecimal() or not 1 <= int(argument[:9]) <= len(chat.probs):
        raise UsageError(f"there is no token {clean_line(argument)}", hint=f"1 to {len(chat.probs)}, on or off")
    chat.notes.say(*alternatives(chat.probs[int(argument) - 1]))


def _begin(chat: Chat) -> None:
    was_on, chat.keeps_probs = chat.keeps_probs, True
    if was_on:
        chat.notes.say("there is no answer yet whose probabilities were kept")
    else:
        chat.notes.say("probabilities are kept from now on; /retry answers the last question with them")


def coloured(tokens: Sequence[TokenLogprob], *, width: int) -> list[list[tuple[str, str]]]:
    """Returns lines of at most ``width`` columns, each of texts with their colours; it begins with the number of its
    first token. Without colours, as ``NO_COLOR`` asks, each token that is not likely is followed by its percentage."""
    from rich.cells import cell_len

    has_colours = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    label = len(str(len(tokens))) + 1
    lines: list[list[tuple[str, str]]] = []
    used = width
    for number, token in enumerate(tokens, 1):
        probability = math.exp(token.logprob)
        text = shown_token(token.text)
        if not has_colours and probability < BANDS[0][0]:
            text += f"({100 * probability:.0f})"
        size = cell_len(text)
        if used + size > width:
            lines.append([(f"{number:>{label - 1}} ", "dim")])
            used = label
        lines[-1].append((text, next(colour for least, colour in BANDS if probability >= least)))
        used = width if "↵" in text else used + size
    return lines


def alternatives(token: TokenLogprob) -> list[str]:
    """Returns a line for each of the likeliest tokens at a place; a star marks the one that was taken."""
    found = {each.token: each for each in (*token.top, token)}
    ranked = sorted(found.values(), key=lambda each: -each.logprob)
    wide = max(len(shown_token(each.text)) for each in ranked)
    return [
        f"{'*' if each.token == token.token else ' '} {shown_token(each.text):<{wide}}  "
        f"{100 * math.exp(each.logprob):5.1f} %"
        for each in ranked
    ]


def _last_answer(chat: Chat) -> str:
    path = chat.conversation.path
    if not path or path[-1].role != "assistant":
        raise UsageError("there is no answer yet", hint="say something first")
    return path[-1].content


def _block(text: str, number: str) -> str:
    """Returns a code block of a Markdown text, the first unless a number is given."""
    from markdown_it import MarkdownIt

    blocks = [each.content for each in MarkdownIt().parse(text) if each.type in ("fence", "code_block")]
    if not blocks:
        raise UsageError("the last answer has no code block", hint="/copy copies the whole answer")
    if number and not (number.isdecimal() and 1 <= int(number[:9]) <= len(blocks)):
        raise UsageError(f"there is no code block {clean_line(number)}", hint=f"the answer has {len(blocks)}")
    return blocks[int(number or 1) - 1].removesuffix("\n")
