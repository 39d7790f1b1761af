"""Every option, once: its names, type, help and the modes that it means something in.

Three groups: before the subcommand, after a row, after ``bench``. None means that the user did not give an option;
the defaults of a mode are in ``job``. Knows no row and runs nothing.
"""

# ruff: noqa: RUF009  (``option`` makes a dataclass field, as ``field`` does)

from __future__ import annotations

import enum
import inspect
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer

from mistralrs import __version__


class Mode(enum.Enum):
    """What the command does; the value is how the user asks for it."""

    CHAT = "-i"
    PROMPT = "--prompt"
    SERVE = "--port"
    BENCH = "bench"


ANSWER = frozenset({Mode.CHAT, Mode.PROMPT})
ALL = frozenset(Mode)


def option(default: object, *names: str, modes: frozenset[Mode] = ALL, **settings: Any) -> Any:
    """A field that is an option: ``names`` as typed, ``modes`` that it has a meaning in, ``settings`` of Typer."""
    return field(default=default, metadata={"option": typer.Option(*names, **settings), "modes": modes, "names": names})


def show_version(wanted: bool) -> bool:
    """The eager option ``--version``: says it and ends."""
    if wanted:
        typer.echo(f"mistralrs {__version__}")
        raise typer.Exit
    return wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalOptions:
    """What stands before the subcommand."""

    interactive_mode: bool = option(
        False, "--interactive-mode", "-i", modes=frozenset({Mode.CHAT}), help="Chat in the terminal."
    )
    prompt: str | None = option(
        None,
        "--prompt",
        metavar="TEXT",
        modes=frozenset({Mode.PROMPT}),
        help="Answer one prompt and exit; '-' reads it from stdin. A piped stdin is appended as context.",
    )
    prompt_concurrency: int | None = option(
        None,
        "--prompt-concurrency",
        metavar="N",
        min=1,
        show_default="1",
        modes=frozenset({Mode.PROMPT}),
        help="Answer the prompt this many times, in one batch.",
    )
    prompt_max_tokens: int | None = option(
        None,
        "--prompt-max-tokens",
        metavar="N",
        min=1,
        show_default="128",
        modes=frozenset({Mode.PROMPT}),
        help="Tokens to generate at most; the same as --max-tokens.",
    )
    no_stdin: bool = option(
        False, "--no-stdin", modes=frozenset({Mode.PROMPT}), help="Leave stdin alone, for loops such as 'while read'."
    )
    system: str | None = option(None, "--system", metavar="TEXT", modes=ANSWER, help="The system message.")
    stats: bool = option(False, "--stats", modes=ANSWER, help="Say on stderr how fast each answer was, and its seed.")

    temperature: float | None = option(
        None, "--temperature", metavar="X", modes=ANSWER, show_default="0.1", help="0 takes the most likely token."
    )
    top_k: int | None = option(
        None, "--top-k", metavar="N", modes=ANSWER, show_default="32", help="Draw from this many tokens; 0: from all."
    )
    top_p: float | None = option(
        None,
        "--top-p",
        metavar="X",
        modes=ANSWER,
        show_default="0.1",
        help="Draw from the fewest tokens with this probability.",
    )
    min_p: float | None = option(
        None,
        "--min-p",
        metavar="X",
        modes=ANSWER,
        show_default="0",
        help="Least probability, relative to the most likely token.",
    )
    repeat_penalty: float | None = option(
        None,
        "--repeat-penalty",
        metavar="X",
        modes=ANSWER,
        show_default="1",
        help="Divides the score of tokens that were used.",
    )
    frequency_penalty: float | None = option(
        None,
        "--frequency-penalty",
        metavar="X",
        modes=ANSWER,
        show_default="0.1",
        help="Subtracted for each use of a token.",
    )
    presence_penalty: float | None = option(
        None,
        "--presence-penalty",
        metavar="X",
        modes=ANSWER,
        show_default="0.1",
        help="Subtracted once a token was used.",
    )
    seed: int | None = option(
        None, "--seed", metavar="N", modes=ANSWER, show_default="random", help="The same seed gives the same text."
    )
    max_tokens: int | None = option(
        None,
        "--max-tokens",
        metavar="N",
        min=1,
        modes=ANSWER,
        show_default="4096, 128 with --prompt",
        help="Tokens to generate at most for one answer.",
    )
    stop: list[str] | None = option(
        None, "--stop", metavar="TEXT", modes=ANSWER, help="End the answer before this text. May be repeated."
    )

    truncate_sequence: bool = option(
        False,
        "--truncate-sequence",
        "-t",
        modes=ANSWER,
        help="Drop the beginning of a prompt that is too long instead of refusing it.",
    )
    chat_template: str | None = option(
        None,
        "--chat-template",
        "-c",
        metavar="TEXT|FILE",
        modes=ANSWER,
        help="Jinja text, or a .json or .jinja file; wins over the model's own.",
    )
    max_seqs: int | None = option(
        None, "--max-seqs", metavar="N", min=1, modes=ANSWER, show_default="16", help="Sequences that may run at once."
    )
    prefix_cache_n: int | None = option(
        None,
        "--prefix-cache-n",
        metavar="N",
        min=0,
        modes=ANSWER,
        show_default="16",
        help="Finished sequences that are kept for reuse; 0: none.",
    )
    no_kv_cache: bool = option(
        False, "--no-kv-cache", modes=ANSWER, help="Compute the whole sequence again at every step."
    )
    token_source: str | None = option(
        None,
        "--token-source",
        metavar="SOURCE",
        show_default="cache",
        help="Hub token: literal:TOKEN, env:NAME, path:FILE, cache or none.",
    )

    precision: Literal["default", "high"] | None = option(
        None,
        "--precision",
        metavar="default|high",
        show_default="default",
        help="high: slower, closer to the stored weights.",
    )
    threads: int | None = option(
        None, "--threads", metavar="N", min=1, show_default="physical cores", help="Threads that compute."
    )

    serve_ip: str | None = option(None, "--serve-ip", modes=frozenset({Mode.SERVE}), hidden=True)
    port: str | None = option(None, "--port", "-p", modes=frozenset({Mode.SERVE}), hidden=True)
    log: Path | None = option(None, "--log", "-l", modes=frozenset({Mode.SERVE}), hidden=True)

    log_level: Literal["debug", "info", "warning", "error"] | None = option(
        None,
        "--log-level",
        metavar="LEVEL",
        show_default="warning",
        help="debug, info, warning or error: what is logged on stderr. RUST_LOG=debug asks for debug too.",
    )
    debug: bool = option(False, "--debug", help="Show tracebacks; so does MISTRALRS_DEBUG=1.")
    version: bool = option(
        False, "--version", "-V", is_eager=True, callback=show_version, help="Show the version and exit."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedOptions:
    """What stands after a row whose weights are one quantised file."""

    tok_model_id: str | None = option(
        None,
        "--tok-model-id",
        "-t",
        metavar="REPO|FOLDER",
        help="Use the tokenizer and template of this repository instead of the file's own.",
    )
    quantized_model_id: str | None = option(
        None,
        "--quantized-model-id",
        "-m",
        metavar="REPO|FOLDER",
        help="Where the file is: a hub repository, a folder, or '' for a local file.",
    )
    quantized_filename: str | None = option(None, "--quantized-filename", "-f", metavar="FILE", help="The file.")
    tokenizer_json: Path | None = option(
        None, "--tokenizer-json", metavar="FILE", help="A local tokenizer.json; wins over any other."
    )
    repeat_last_n: int | None = option(
        None,
        "--repeat-last-n",
        metavar="N",
        min=0,
        help="Tokens that the penalties look back on, the prompt's included.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """What stands after ``bench``."""

    n_prompt: int = option(
        512, "--n-prompt", "-p", metavar="N", min=0, help="Tokens of the prompt test; 0: no such test."
    )
    n_gen: int = option(
        128, "--n-gen", "-n", metavar="N", min=0, help="Tokens of the generation test; 0: no such test."
    )
    concurrency: str = option("1", "--concurrency", "-c", metavar="N,N,...", help="Streams at once.")
    repetitions: int = option(5, "--repetitions", "-r", metavar="N", min=1, help="How often each test runs.")
    json: bool = option(False, "--json", help="One JSON object a line and test instead of tables.")


def parameters(options: type, *, shown_defaults: Mapping[str, str] | None = None) -> list[inspect.Parameter]:
    """The fields of an options class as parameters that Typer reads. ``shown_defaults``: what help says, by field."""
    hints = get_type_hints(options)
    found = []
    for each in fields(options):
        info = copy(each.metadata["option"])
        if shown_defaults and each.name in shown_defaults:
            info.show_default = shown_defaults[each.name]
        annotation: Any = Annotated[hints[each.name], info]
        keyword = inspect.Parameter.KEYWORD_ONLY
        found.append(inspect.Parameter(each.name, keyword, default=each.default, annotation=annotation))
    return found


def given(options: GlobalOptions) -> dict[str, frozenset[Mode]]:
    """The options that the user gave: their long names, and the modes that they mean something in."""
    return {
        each.metadata["names"][0]: each.metadata["modes"]
        for each in fields(options)
        if getattr(options, each.name) not in (each.default, [])
    }
