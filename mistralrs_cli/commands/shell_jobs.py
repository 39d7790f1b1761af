"""The jobs for shells and programs: their data, and how options become them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mistralrs.api.options.declarations import Options
from mistralrs.engine.config import SamplingParams
from mistralrs.errors import UsageError
from mistralrs.grammar.grammar_text import GrammarText
from mistralrs_cli.arguments.grammar_option import grammar_of
from mistralrs_cli.printing.answer_output import AnswerForm
from mistralrs_cli.printing.thoughts import Think
from mistralrs_cli.prompt_batch.prompt_template import PromptTemplate
from mistralrs_cli.terminal.stdin_text import without_mark

LINES_AHEAD = 4
"""Prompts of a batch that are read and queued, for each sequence that may run: short answers must not leave places
empty while a long one before them is written."""


@dataclass(frozen=True, slots=True)
class BatchJob:
    """A prompt for each line of a file."""

    source: Path | None
    """The file; None: stdin."""
    template: PromptTemplate
    out: Path | None
    """The file that gets the answers; None: stdout."""
    overwrite: bool
    form: AnswerForm
    sampling: SamplingParams
    seed_is_given: bool
    system: str | None
    truncate: bool
    stats: bool
    window: int
    """Prompts that may be under way or waiting at once."""
    grammar: GrammarText | None
    think: Think | None


@dataclass(frozen=True, slots=True)
class ChatJsonlJob:
    """A conversation with a program, in JSON lines."""

    sampling: SamplingParams
    system: str | None
    truncate: bool
    grammar: GrammarText | None
    think: Think | None


def batch_job(options: Options, sampling: SamplingParams, *, max_seqs: int) -> BatchJob:
    """Returns the job that the options describe. Raises ``UsageError``, also for files that cannot be used."""
    assert options.prompt_file is not None
    if options.overwrite and options.out is None:
        raise UsageError("--overwrite is for the file of --out", hint="name it, or leave --overwrite out")
    if options.out is not None and options.jsonl:
        raise UsageError("--out has JSON lines anyway, and stdout stays empty", hint="leave --jsonl out")
    source = None if options.prompt_file == "-" else _input_file(options.prompt_file)
    if options.out is not None:
        _check_output(options.out, source)
    system = None if options.system is None else without_mark(options.system)
    return BatchJob(
        source=source,
        template=PromptTemplate.parse("{line}" if options.template is None else options.template),
        out=options.out,
        overwrite=options.overwrite,
        form=AnswerForm(json=options.jsonl or options.out is not None, extract_code=options.extract_code),
        sampling=sampling,
        seed_is_given=options.seed not in (None, -1),
        system=system,
        truncate=options.truncate_sequence,
        stats=options.stats,
        window=LINES_AHEAD * max_seqs,
        grammar=grammar_of(options),
        think=options.think,
    )


def _input_file(word: str) -> Path:
    path = Path(word)
    if path.is_dir() or not path.exists():
        reason = "is a folder" if path.is_dir() else "does not exist"
        raise UsageError(f"--prompt-file {word} {reason}", hint="name a file with a prompt a line, or - for stdin")
    if not os.access(path, os.R_OK):
        raise UsageError(f"--prompt-file {word} cannot be read", hint="change its permissions")
    return path


def _check_output(out: Path, source: Path | None) -> None:
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: {out.parent} is no folder", hint="make it first")
    if out.exists() and not out.is_file():
        raise UsageError(f"--out {out} is no regular file", hint="without --out, --jsonl writes the same to stdout")
    if source is not None and out.exists() and out.samefile(source):
        raise UsageError(f"--out {out} is the file of the prompts", hint="name another one")
