"""Every option, once: its names, type, help and the modes that it means something in.

Groups: before the subcommand; after a row, by the form of its weights and by its adapter; after each other subcommand.
None means that the user did not give an option; the defaults of a mode are in ``job``. Knows no row and runs nothing.
"""

# ruff: noqa: RUF009  (``option`` makes a dataclass field, as ``field`` does)

from __future__ import annotations

import enum
import inspect
from collections.abc import Mapping, Set
from copy import copy
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer

from mistralrs import __version__
from mistralrs.quant.quantize import ISQ_TYPES


class Mode(enum.Enum):
    """What the command does; the value is how the user asks for it."""

    CHAT = "-i"
    PROMPT = "--prompt"
    SERVE = "--port"
    BENCH = "bench"
    INSPECT = "inspect"
    MODELS = "models"


ANSWER = frozenset({Mode.CHAT, Mode.PROMPT})
RUN = ANSWER | {Mode.BENCH}
FETCH = RUN | {Mode.INSPECT}
ALL = frozenset(Mode)


def option(default: object, *names: str, modes: frozenset[Mode] = ALL, **settings: Any) -> Any:
    """A field that is an option: ``names`` as typed, ``modes`` that it has a meaning in, ``settings`` of Typer."""
    return field(default=default, metadata={"option": typer.Option(*names, **settings), "modes": modes, "names": names})


def argument(default: object, **settings: Any) -> Any:
    """A field that is a word without a name."""
    return field(default=default, metadata={"option": typer.Argument(**settings), "modes": ALL, "names": ()})


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
        modes=FETCH,
        help="Hub token: literal:TOKEN, env:NAME, path:FILE, cache or none.",
    )

    dtype: Literal["auto", "bf16", "f16", "f32"] | None = option(
        None,
        "--dtype",
        metavar="auto|bf16|f16|f32",
        modes=RUN,
        show_default="auto",
        help="What weights become that are stored as floats; auto: they stay as they are.",
    )
    isq: str | None = option(
        None,
        "--isq",
        metavar="TYPE",
        modes=RUN,
        help=f"Quantise a safetensors model while it is loaded: {', '.join(ISQ_TYPES)}.",
    )
    precision: Literal["default", "high"] | None = option(
        None,
        "--precision",
        metavar="default|high",
        modes=RUN,
        show_default="default",
        help="high: slower, closer to the stored weights.",
    )
    threads: int | None = option(
        None, "--threads", metavar="N", min=1, modes=RUN, show_default="physical cores", help="Threads that compute."
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


def _tokenizer_json(*short: str) -> Any:
    return option(None, "--tokenizer-json", *short, metavar="FILE", help="A local tokenizer.json; wins over any other.")


def _tok_model_id() -> Any:
    return option(
        None,
        "--tok-model-id",
        "-t",
        metavar="REPO|FOLDER",
        help="Use the tokenizer and template of this repository instead of the file's own.",
    )


def _gqa() -> Any:
    return option(
        None,
        "--gqa",
        metavar="N",
        min=1,
        show_default="1",
        help="Query heads to a key head of a GGML file, which does not say so: 8 for Llama 2 70B.",
    )


def _repeat_last_n() -> Any:
    return option(
        None,
        "--repeat-last-n",
        metavar="N",
        min=0,
        show_default="64",
        help="Tokens that the penalties look back on, the prompt's included.",
    )


def _order() -> Any:
    return option(None, "--order", "-o", metavar="FILE", help="The ordering of the adapters, a JSON file.")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainOptions:
    """What stands after a row whose weights are safetensors."""

    model_id: str | None = option(
        None, "--model-id", "-m", metavar="REPO|PATH", help="The model: a hub repository, a folder or a file."
    )
    tokenizer_json: Path | None = _tokenizer_json("-t")
    repeat_last_n: int | None = _repeat_last_n()


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedOptions:
    """What stands after a row whose weights are one quantised file."""

    tok_model_id: str | None = _tok_model_id()
    quantized_model_id: str | None = option(
        None,
        "--quantized-model-id",
        "-m",
        metavar="REPO|FOLDER",
        help="Where the file is: a hub repository, a folder, or '' for a local file.",
    )
    quantized_filename: str | None = option(None, "--quantized-filename", "-f", metavar="FILE", help="The file.")
    tokenizer_json: Path | None = _tokenizer_json()
    repeat_last_n: int | None = _repeat_last_n()


@dataclass(frozen=True, slots=True, kw_only=True)
class GgmlOptions(QuantizedOptions):
    """What stands after a row whose weights are a GGML file."""

    gqa: int | None = _gqa()


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoOptions:
    """What stands after ``auto``."""

    source: str | None = argument(None, metavar="SOURCE", help="The model: a hub repository, a folder or a file.")
    model_id: str | None = option(None, "--model-id", "-m", metavar="SOURCE", help="The same as SOURCE.")
    filename: str | None = option(
        None, "--filename", "-f", metavar="FILE", help="A file of the repository or folder, where several are models."
    )
    tok_model_id: str | None = _tok_model_id()
    tokenizer_json: Path | None = _tokenizer_json()
    gqa: int | None = _gqa()
    repeat_last_n: int | None = _repeat_last_n()


@dataclass(frozen=True, slots=True, kw_only=True)
class XLoraOptions:
    """What stands after a row with X-LoRA, besides what names the weights."""

    xlora_model_id: str | None = option(
        None, "--xlora-model-id", "-x", metavar="REPO|FOLDER", help="The adapters and their classifier."
    )
    order: Path | None = _order()
    tgt_non_granular_index: int | None = option(
        None,
        "--tgt-non-granular-index",
        metavar="N",
        min=0,
        help="Compute the scalings for this many generated tokens, then keep the last ones.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraOptions:
    """What stands after a row with LoRA, besides what names the weights."""

    adapters_model_id: str | None = option(
        None, "--adapters-model-id", "-a", metavar="REPO|FOLDER", help="The adapters."
    )
    order: Path | None = _order()


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


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectOptions:
    """What stands after ``inspect``."""

    source: str = argument(..., metavar="SOURCE", help="The model: a hub repository, a folder or a file.")
    filename: str | None = option(
        None, "--filename", "-f", metavar="FILE", help="A file of the repository or folder, where several are models."
    )
    gqa: int | None = _gqa()
    json: bool = option(False, "--json", help="One JSON object instead of text.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelsOptions:
    """What stands after ``models``."""

    action: Literal["list", "delete"] = argument("list", metavar="list|delete", help="What to do.")
    name: str | None = argument(None, metavar="NAME", help="The repository to delete, as OWNER/NAME.")
    yes: bool = option(False, "--yes", "-y", help="Delete without asking.")
    json: bool = option(False, "--json", help="One JSON object instead of a table.")


def parameters(
    options: type, *, shown_defaults: Mapping[str, str] | None = None, required: Set[str] = frozenset()
) -> list[inspect.Parameter]:
    """The fields of an options class as parameters that Typer reads.

    ``shown_defaults``: what help says of defaults, by field; ``required``: fields that help calls so.
    """
    hints = get_type_hints(options)
    found = []
    for each in fields(options):
        info = copy(each.metadata["option"])
        if shown_defaults and each.name in shown_defaults:
            info.show_default = shown_defaults[each.name]
        if each.name in required:
            info.help = f"{info.help} Required."
        annotation: Any = Annotated[hints[each.name], info]
        default = inspect.Parameter.empty if each.default is ... else each.default
        keyword = inspect.Parameter.KEYWORD_ONLY
        found.append(inspect.Parameter(each.name, keyword, default=default, annotation=annotation))
    return found


def given(options: GlobalOptions) -> dict[str, frozenset[Mode]]:
    """The options that the user gave: their long names, and the modes that they mean something in."""
    return {
        each.metadata["names"][0]: each.metadata["modes"]
        for each in fields(options)
        if getattr(options, each.name) not in (each.default, [])
    }
