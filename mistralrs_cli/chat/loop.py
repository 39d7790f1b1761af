"""The two loops of a chat: a person at a terminal, and lines from a pipe. Errors of a turn end that turn alone."""

from __future__ import annotations

import contextlib
import signal

from mistralrs.errors import MistralrsError
from mistralrs_cli.arguments.invocation import ChatJob
from mistralrs_cli.chat import slash_commands
from mistralrs_cli.chat.render import Notes, banner
from mistralrs_cli.chat.session import Chat
from mistralrs_cli.chat_commands.input_commands import attach
from mistralrs_cli.chat_commands.model_switch import ModelSwitch
from mistralrs_cli.chat_input.attachments import Attachment
from mistralrs_cli.chat_storage.chat_record import open_record
from mistralrs_cli.chat_storage.saved_chats import find_to_resume, resume
from mistralrs_cli.terminal.exits import INTERRUPTED, raise_hung_up
from mistralrs_cli.terminal.output import Streams
from mistralrs_cli.terminal.stdin_text import lines


def run_chat(job: ChatJob, streams: Streams, *, switch: ModelSwitch) -> int:
    """Chats until the user leaves or the input ends; returns the exit code. ``switch`` has the model.

    The end of its terminal (SIGHUP) ends it as SIGTERM does: the part of an answer that came is saved.
    """
    model = switch.model
    if not model.has_template:
        from mistralrs.api.serving.chat_prompt import missing_template  # costs what only a loaded model needs

        raise missing_template(model.info.name)
    notes = Notes(streams.stderr)
    if streams.interactive:
        notes.say(*banner(model.info, model.known_adapters()))
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGHUP, raise_hung_up)
    record = open_record(model.info.name, wanted=job.save, say=notes.say)
    with contextlib.closing(record):
        chat = Chat(model, job, streams, record=record)
        chat.switch = switch
        if job.resume is not None:
            resume(chat, find_to_resume(job.resume), shows_last=streams.interactive)
            if job.system is not None:
                chat.conversation.system = job.system
        if job.context is not None:
            attach(chat, [Attachment("stdin", job.context)])
        if streams.interactive:
            return _from_terminal(chat, streams, keeps_history=job.keeps_history)
        return _from_lines(chat, streams)


def _from_terminal(chat: Chat, streams: Streams, *, keeps_history: bool) -> int:
    from mistralrs_cli.chat.editor import Editor, LeftByInterrupt
    from mistralrs_cli.chat_input.input_completion import InputCompleter
    from mistralrs_cli.chat_input.typed_input import act

    completer = InputCompleter(chat, slash_commands.suggest)
    with Editor(streams, say=chat.notes.say, completer=completer, keeps_history=keeps_history) as editor:
        chat.confirm = editor.confirm
        editor.meter = chat.meter
        while not chat.leaving:
            draft, chat.draft = chat.draft, ""
            opens, chat.opens_editor = chat.opens_editor, False
            try:
                text = editor.read(draft, multiline=chat.multiline, opens_editor=opens)
            except EOFError:
                return 0
            except LeftByInterrupt:
                return INTERRUPTED
            if editor.cleared:
                chat.edit = None
            try:
                act(chat, text, pasted=editor.pasted)
            except MistralrsError as error:
                chat.notes.error(error)
    return 0


def _from_lines(chat: Chat, streams: Streams) -> int:
    """Takes a turn for every line that is not blank; a line is always text, never a command."""
    for text in lines(streams.stdin):
        if not text.strip():
            continue
        try:
            finished = chat.take_turn(text, mark_cut=False)
        except MistralrsError as error:
            chat.notes.error(error)
            continue
        if finished.reason == "cancelled":
            return INTERRUPTED
    return 0
