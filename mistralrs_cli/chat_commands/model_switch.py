"""Exchanges the model of a chat that goes on: the old one is closed first, because both may not fit into the memory."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TextIO

from mistralrs.api.options.resolve import ResolvedOptions
from mistralrs.errors import MistralrsError, UsageError
from mistralrs_cli.arguments.command_line import ParsedArgs, parse
from mistralrs_cli.arguments.invocation import ChatJob, Invocation, RemoteInvocation, resolve
from mistralrs_cli.model import Loader, LostModelError, Model
from mistralrs_cli.terminal.output import ProgressLine

Task = Invocation | RemoteInvocation
Resolve = Callable[[Sequence[str]], Task]
"""Returns the command line's task with another row. Raises ``UsageError`` and ``LoadError``."""


class ModelSwitch:
    """The model that a chat has now, and the way to another."""

    def __init__(self, model: Model, task: Task, *, load: Loader, resolve: Resolve, stderr: TextIO) -> None:
        """``task`` is the one that ``model`` was loaded for; ``load`` and ``resolve`` make others."""
        self.model = model
        self._task = task
        self._load = load
        self._resolve = resolve
        self._stderr = stderr

    def change(self, words: Sequence[str]) -> ChatJob:
        """Loads the model that a row, a file or a folder names, or asks another model of the server; returns the job
        that the command line would have with it.

        Raises ``MistralrsError`` where it cannot be loaded; the model is then the old one, loaded again. Raises
        ``LostModelError`` where that fails too.
        """
        task = self._task_of(words)
        old = self._task
        self.model.close()
        try:
            self.model, self._task = self._loaded(task), task
        except MistralrsError as error:
            try:
                self.model = self._loaded(old)
            except MistralrsError as second:
                raise LostModelError(
                    f"{error.message}; nor can the old model be loaded again: {second.message}", hint="leave the chat"
                ) from second
            raise
        assert isinstance(task.job, ChatJob)
        return task.job

    def close(self) -> None:
        """Closes the model that is there now."""
        self.model.close()

    def _task_of(self, words: Sequence[str]) -> Task:
        if isinstance(self._task, RemoteInvocation):
            if len(words) != 1:
                raise UsageError("a server's model is named by one word", hint="/model NAME")
            return replace(self._task, server=replace(self._task.server, model_name=words[0]))
        if any(word in ("-h", "--help") for word in words):
            raise UsageError("/model takes a row and its options", hint="mistralrs help ROW explains them")
        if len(words) == 1 and os.path.exists(words[0]):
            return self._resolve(["auto", words[0]])
        if len(words) == 1 and words[0].startswith(("/", "./", "../")):
            raise UsageError(f"{words[0]} does not exist", hint="/model FILE, or a row such as gguf -f FILE")
        return self._resolve(words)

    def _loaded(self, task: Task) -> Model:
        if isinstance(task, RemoteInvocation):
            from mistralrs_cli.server_client.remote_model import connect  # costs what only servers need

            return connect(task.server)
        progress = ProgressLine(self._stderr)
        try:
            model = self._load(task.source, task.load, progress)
        finally:
            progress.clear()
        if not model.has_template:
            from mistralrs.api.serving.chat_prompt import missing_template

            model.close()
            raise missing_template(model.info.name)
        return model


def resolve_with_row(args: ParsedArgs, row: Sequence[str], *, options: ResolvedOptions) -> Invocation:
    """Returns the job of a command line with another row. Raises as ``resolve`` does."""
    parsed = parse(["-i", *row])
    if parsed is None or parsed.selection is None:
        raise UsageError(f"{shlex.join(row)} names no model", hint="a row, such as gguf -f FILE, or a file")
    task = resolve(replace(args, selection=parsed.selection, subcommand=parsed.subcommand), options)
    assert isinstance(task, Invocation)
    return task
