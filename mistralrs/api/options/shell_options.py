"""The options for shells and programs: many prompts from a file, JSON, code alone, and a server that answers."""

# ruff: noqa: RUF009  (``option`` makes a dataclass field, as ``field`` does)

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mistralrs.api.options.answer_options import AnswerOptions
from mistralrs.api.options.option import ANSWER, Mode, option

_BATCH = frozenset({Mode.BATCH})
_ONE_SHOT = frozenset({Mode.PROMPT, Mode.BATCH})


@dataclass(frozen=True, slots=True, kw_only=True)
class ShellOptions(AnswerOptions):
    """The part of ``Options`` that shells and programs use."""

    prompt_file: str | None = option(
        None,
        "--prompt-file",
        metavar="FILE",
        modes=_BATCH,
        is_shared=False,
        help="Answer each line of a file as a prompt of its own, in one batch, and exit; '-' reads them from stdin.",
    )
    template: str | None = option(
        None,
        "--template",
        metavar="TEXT",
        modes=_BATCH,
        is_shared=False,
        help="The prompt of a line: {line} stands for the line, another name in braces for that field of a JSON line.",
    )
    out: Path | None = option(
        None,
        "--out",
        metavar="FILE",
        modes=_BATCH,
        is_shared=False,
        help="Append the answers to this file as JSON lines. A run that was stopped goes on where the file ends.",
    )
    overwrite: bool = option(
        False, "--overwrite", modes=_BATCH, is_shared=False, help="Empty the file of --out instead of going on."
    )
    json: bool = option(
        False,
        "--json",
        modes=frozenset({Mode.PROMPT}),
        is_shared=False,
        help="One JSON object instead of the answer's text.",
    )
    jsonl: bool = option(
        False, "--jsonl", modes=_ONE_SHOT, is_shared=False, help="One JSON object a line for each answer."
    )
    extract_code: bool = option(
        False,
        "--extract-code",
        modes=_ONE_SHOT,
        is_shared=False,
        help="Only the first fenced code block of an answer, without its fences.",
    )
    fail_on_length: bool = option(
        False,
        "--fail-on-length",
        modes=frozenset({Mode.PROMPT}),
        is_shared=False,
        help="Exit with 5 if an answer was stopped by its limit or by the end of the context.",
    )
    chat_jsonl: bool = option(
        False,
        "--chat-jsonl",
        modes=frozenset({Mode.CHAT_JSONL}),
        is_shared=False,
        help="Chat with a program: a JSON object a line on stdin, and one on stdout for each turn.",
    )
    connect: str | None = option(
        None,
        "--connect",
        metavar="URL",
        modes=ANSWER,
        shared_word="url",
        help="Ask a running server instead of loading a model: mistralrs --port, or another that speaks OpenAI's API.",
    )
