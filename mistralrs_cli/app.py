"""The command ``mistralrs``: parses, resolves, loads, runs; this outermost layer returns all exit codes."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mistralrs.errors import MistralrsError
from mistralrs.process import has_working_folder
from mistralrs_cli.model import Loader, Model, load_model
from mistralrs_cli.terminal.exits import (
    CLOSED_OUTPUT,
    HUNG_UP,
    INTERRUPTED,
    TERMINATED,
    HungUp,
    Terminated,
    leaving_at_once,
    raise_terminated,
)
from mistralrs_cli.terminal.standard_streams import OutputError, prepare_streams

if TYPE_CHECKING:
    from mistralrs.api.options.resolve import ResolvedOptions
    from mistralrs_cli.arguments.command_line import ParsedArgs
    from mistralrs_cli.arguments.invocation import ChatJob, Invocation, RemoteInvocation
    from mistralrs_cli.commands.utility_jobs import UtilityCommand
    from mistralrs_cli.terminal.output import Streams

GONE = "the working directory does not exist any more: cd to one that does"


def main(arguments: Sequence[str] | None = None, *, load: Loader = load_model) -> int:
    """Runs a command line and returns its exit code. ``arguments``: None is the process's own; ``load`` makes the
    model.

    It catches all errors that no layer below caught: they become one line on stderr, with a traceback only on demand.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    answers_are_read = prepare_streams()
    signal.signal(signal.SIGTERM, raise_terminated)
    try:
        code = _run(arguments, load, answers_are_read=answers_are_read)
    except BaseException as error:
        code = _ending(error, debug="--debug" in arguments)
    return _close_output(code)


def _run(arguments: Sequence[str], load: Loader, *, answers_are_read: bool) -> int:
    """Runs the command. ``answers_are_read`` is False if stdout was closed from the beginning, which matters to answers
    only.
    """
    with leaving_at_once():
        from mistralrs_cli.arguments.command_line import parse

        words = parse(arguments or _asked_for())
        if words is None:
            return 0 if answers_are_read else CLOSED_OUTPUT
        if words.completions is not None:  # before the imports below: a key press waits for it
            from mistralrs_cli.completion.completion_command import run_completions

            return run_completions(words.completions, words.flags, sys.stdout) if answers_are_read else CLOSED_OUTPUT
        # The code below opens files and loads models; its imports would only slow down --help.
        from mistralrs_cli.arguments.invocation import (
            ChatJob,
            Invocation,
            PromptJob,
            RemoteInvocation,
            options_of,
            resolve,
            writes_answers,
        )
        from mistralrs_cli.one_shot import prompt_text
        from mistralrs_cli.terminal.output import Streams

        options = options_of(words)
        _start_logging(options)
        task = resolve(words, options)
        if writes_answers(task) and not answers_are_read:
            return CLOSED_OUTPUT
        streams = Streams(sys.stdin, sys.stdout, sys.stderr)
        text = ""
        if isinstance(task, Invocation | RemoteInvocation) and isinstance(task.job, PromptJob):
            text = prompt_text(task.job, streams.stdin)
        if isinstance(task, Invocation | RemoteInvocation) and isinstance(task.job, ChatJob):
            task, streams = _with_context(task, task.job, streams)
    if not isinstance(task, Invocation | RemoteInvocation):
        _collect_garbage()
        return _do_without_engine(task, streams)
    return _do_with_model(task, load, text, words=words, options=options, streams=streams)


def _do_with_model(
    task: Invocation | RemoteInvocation,
    load: Loader,
    text: str,
    *,
    words: ParsedArgs,
    options: ResolvedOptions,
    streams: Streams,
) -> int:
    from mistralrs_cli.arguments.invocation import ChatJob
    from mistralrs_cli.terminal.keyboard import kept_typing

    with contextlib.ExitStack() as stack:
        before_leaving = []
        if isinstance(task.job, ChatJob) and streams.interactive:
            before_leaving.append(stack.enter_context(kept_typing(streams.stdin)))
        model = _load(task, load, streams, before_leaving)
        _collect_garbage()
        if isinstance(task.job, ChatJob):
            return _chat(task, model, load, words=words, options=options, streams=streams)
        stack.callback(model.close)
        return _do(_with_own_sampling(task, model), model, text, streams)


def _collect_garbage() -> None:
    """Lets Python collect garbage from now on, if it does not yet: all but what the start has made."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def _chat(
    task: Invocation | RemoteInvocation,
    model: Model,
    load: Loader,
    *,
    words: ParsedArgs,
    options: ResolvedOptions,
    streams: Streams,
) -> int:
    """Chats with the model, and with those that the user chooses instead of it."""
    from mistralrs_cli.arguments.invocation import ChatJob
    from mistralrs_cli.chat.loop import run_chat
    from mistralrs_cli.chat_commands.model_switch import ModelSwitch, resolve_with_row

    assert isinstance(task.job, ChatJob)
    job = task.job

    def resolve_again(row: Sequence[str]) -> Invocation | RemoteInvocation:
        other = resolve_with_row(words, row, options=options)
        assert isinstance(other.job, ChatJob)
        return _prepare_chat(other, replace(other.job, resume=None, save=job.save), streams)

    switch = ModelSwitch(model, task, load=load, resolve=resolve_again, stderr=streams.stderr)
    with contextlib.closing(switch):
        return run_chat(job, streams, switch=switch)


def _with_context(
    task: Invocation | RemoteInvocation, job: ChatJob, streams: Streams
) -> tuple[Invocation | RemoteInvocation, Streams]:
    """Returns the chat, prepared, with the text that was piped to it, and the streams that are left."""
    from mistralrs_cli.chat_input.piped_context import take_piped_context

    streams, context = take_piped_context(streams)
    return _prepare_chat(task, replace(job, context=context), streams), streams


def _asked_for() -> Sequence[str]:
    """Returns the words of a command line for a person who typed none, after asking in the terminal; no words where
    nobody can be asked.
    """
    from mistralrs_cli.terminal.output import Streams, is_terminal

    streams = Streams(sys.stdin, sys.stdout, sys.stderr)
    if not (is_terminal(streams.stdin) and is_terminal(streams.stdout) and is_terminal(streams.stderr)):
        return ()
    from mistralrs_cli.first_start.model_choice_screen import choose_model

    return choose_model(streams)


def _prepare_chat(task: Invocation | RemoteInvocation, job: ChatJob, streams: Streams) -> Invocation | RemoteInvocation:
    """Returns the chat with the folder of its KV. Raises the error of a saved chat that cannot be resumed before its
    model is loaded.

    Lines from a pipe are no person's chat: they are saved only as a part of the chat that they go on with.
    """
    from mistralrs_cli.arguments.invocation import RemoteInvocation
    from mistralrs_cli.chat_storage.kept_kv import with_kept_kv

    if job.resume is not None:
        from mistralrs_cli.chat_storage.saved_chats import find_to_resume

        find_to_resume(job.resume)
    job = replace(job, save=job.save and (streams.interactive or job.resume is not None))
    if isinstance(task, RemoteInvocation):
        return replace(task, job=job)
    return replace(task, job=job, load=with_kept_kv(task.load) if job.save else task.load)


def _do_without_engine(job: UtilityCommand, streams: Streams) -> int:
    from mistralrs_cli.adapter_commands.ordering_job import CreateOrderingJob, RenameOrderingJob
    from mistralrs_cli.commands.chats_job import ChatsJob
    from mistralrs_cli.commands.serve import ServeJob, run_serve
    from mistralrs_cli.commands.utility_jobs import InspectJob, ModelsJob, QuantizeJob
    from mistralrs_cli.diagnosis.diagnosis_jobs import DiagnosisJob

    if isinstance(job, ServeJob):
        return run_serve(job, streams)
    if isinstance(job, InspectJob):
        from mistralrs_cli.commands.inspection import run_inspect

        return run_inspect(job, streams)
    if isinstance(job, QuantizeJob):
        from mistralrs_cli.commands.quantize_command import run_quantize

        return run_quantize(job, streams)
    if isinstance(job, CreateOrderingJob | RenameOrderingJob):
        from mistralrs_cli.adapter_commands.ordering_command import run_ordering

        return run_ordering(job, streams)
    if isinstance(job, ModelsJob):
        from mistralrs_cli.commands.models_command import run_models

        return run_models(job, streams)
    if isinstance(job, ChatsJob):
        from mistralrs_cli.commands.chats_command import run_chats

        return run_chats(job, streams)
    if isinstance(job, DiagnosisJob):
        from mistralrs_cli.diagnosis.diagnosis_command import run_diagnosis

        return run_diagnosis(job, streams)
    from mistralrs_cli.adapter_commands.adapter_command import run_adapter

    return run_adapter(job, streams)


def _load(
    task: Invocation | RemoteInvocation, load: Loader, streams: Streams, before_leaving: Sequence[Callable[[], None]]
) -> Model:
    from mistralrs_cli.arguments.invocation import RemoteInvocation
    from mistralrs_cli.terminal.output import ProgressLine, clean_line

    if isinstance(task, RemoteInvocation):
        from mistralrs_cli.server_client.remote_model import connect

        with leaving_at_once(*before_leaving):
            return connect(task.server)

    progress = ProgressLine(streams.stderr)
    with leaving_at_once(progress.clear, *before_leaving):
        try:
            model = load(task.source, task.load, progress)
        finally:
            progress.clear()
    for reason in model.info.unavailable_backends:
        logging.getLogger("mistralrs.cli").warning("slower than it could be: %s", clean_line(reason))
    return model


def _with_own_sampling(task: Invocation | RemoteInvocation, model: Model) -> Invocation | RemoteInvocation:
    """Returns the task with the sampling parameters of the model's makers where the user gave none.

    A benchmark keeps the terminal's own, so that models can be compared.
    """
    from dataclasses import replace

    from mistralrs_cli.arguments.invocation import BenchJob, ScalingsJob
    from mistralrs_cli.arguments.own_sampling import with_model_sampling

    job = task.job
    if isinstance(job, ScalingsJob):
        return task
    if not isinstance(job, BenchJob):
        job = with_model_sampling(job, model.info.sampling, task.given)
    logging.getLogger("mistralrs.cli").info("sampling: %s", job.sampling)
    return replace(task, job=job)


def _do(task: Invocation | RemoteInvocation, model: Model, text: str, streams: Streams) -> int:
    from mistralrs_cli.arguments.invocation import BenchJob, Invocation, PromptJob, ScalingsJob
    from mistralrs_cli.commands.shell_jobs import BatchJob, ChatJsonlJob

    job = task.job
    if isinstance(job, PromptJob):
        from mistralrs_cli.one_shot import run_prompt

        return run_prompt(model, job, text, streams)
    if isinstance(job, BenchJob):
        from mistralrs_cli.commands.bench import run_bench

        return run_bench(model, job, streams)
    if isinstance(job, ScalingsJob):
        from mistralrs_cli.adapter_commands.scalings_command import run_scalings

        return run_scalings(model, job, streams)
    if isinstance(job, BatchJob):
        from mistralrs_cli.prompt_batch.batch_command import run_batch

        return run_batch(model, job, streams, load=task.load if isinstance(task, Invocation) else None)
    from mistralrs_cli.chat.jsonl_loop import run_chat_jsonl

    assert isinstance(job, ChatJsonlJob)
    return run_chat_jsonl(model, job, streams)


def _start_logging(options: ResolvedOptions) -> None:
    """Sends the log to stderr, with records of this project alone: other libraries' debugging does not help a user."""
    from mistralrs.api.options.resolve import Origin, unknown_variables
    from mistralrs_cli.terminal.log_format import JsonLogFormatter, LogFormatter

    level = options.values.log_level
    if level is None:
        level = "debug" if "debug" in os.environ.get("RUST_LOG", "") else "warning"
    handler = logging.StreamHandler(sys.stderr)
    formatter = JsonLogFormatter if options.values.log_json else LogFormatter
    handler.setFormatter(formatter(tracebacks=_shows_tracebacks(options.values.debug)))
    logger = logging.getLogger("mistralrs")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(level.upper())
    if elsewhere := [options.written(name) for name, origin in options.origins.items() if origin is not Origin.FLAG]:
        logger.info("options from elsewhere than the command line: %s", ", ".join(elsewhere))
    for sentence in unknown_variables(os.environ):
        logger.warning("%s", sentence)


def _ending(error: BaseException, *, debug: bool) -> int:
    """Reports the error that ended the command early, and returns its exit code."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        return CLOSED_OUTPUT
    if isinstance(error, Terminated):
        return HUNG_UP if isinstance(error, HungUp) else TERMINATED
    if not isinstance(error, Exception):
        raise error
    from mistralrs_cli.terminal.output import clean_block, print_error

    if _shows_tracebacks(debug):
        sys.stderr.write(clean_block("".join(traceback.format_exception(error))))
    reported = error if isinstance(error, MistralrsError) else _unexpected(error)
    print_error(sys.stderr, reported)
    return reported.exit_code


def _shows_tracebacks(debug: bool) -> bool:
    """Returns whether tracebacks are shown: by ``debug``, the option, or by the environment."""
    return debug or os.environ.get("MISTRALRS_DEBUG", "") not in ("", "0")


def _unexpected(error: Exception) -> MistralrsError:
    """Returns an unexpected error in the shape of the others."""
    if isinstance(error, OutputError):
        return MistralrsError(str(error), hint="make room on its disk, or send it elsewhere")
    if isinstance(error, OSError):
        return MistralrsError(str(error), hint=None if has_working_folder() else GONE)
    return MistralrsError(
        f"unexpected {type(error).__name__}: {error}", hint="this is a defect; --debug shows where it happened"
    )


def _close_output(code: int) -> int:
    """Flushes the buffered answers; if stdout is closed, keeps the interpreter from flushing again."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = CLOSED_OUTPUT if isinstance(error, BrokenPipeError) else code or 1
    return code
