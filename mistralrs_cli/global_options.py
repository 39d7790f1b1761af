"""The options before the subcommand, once: names, types, help and the modes that they mean something in.

None means that the user did not give an option; the defaults of a mode are in ``job`` and ``serve``. Runs nothing.
"""

# ruff: noqa: RUF009  (``option`` makes a dataclass field, as ``field`` does)

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import typer

from mistralrs import __version__
from mistralrs.quant.quantize import ISQ_TYPES
from mistralrs_cli.option import ANSWER, FETCH, RUN, SERVE, TALK, Mode, option


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
        None,
        "--top-k",
        metavar="N",
        modes=ANSWER,
        show_default="32",
        help="Draw from this many tokens; 0 or -1: from all.",
    )
    top_p: float | None = option(
        None,
        "--top-p",
        metavar="X",
        modes=ANSWER,
        show_default="0.1",
        help="Draw from the fewest tokens with this probability; 0: the likeliest, 1: all.",
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
        None,
        "--seed",
        metavar="N",
        modes=ANSWER,
        show_default="random",
        help="The same seed gives the same text; -1: a random one.",
    )
    max_tokens: int | None = option(
        None,
        "--max-tokens",
        metavar="N",
        modes=ANSWER,
        show_default="4096, 128 with --prompt",
        help="Tokens to generate at most for one answer; -1: to the end of the context.",
    )
    stop: list[str] | None = option(
        None, "--stop", metavar="TEXT", modes=ANSWER, help="End the answer before this text. May be repeated."
    )

    truncate_sequence: bool = option(
        False,
        "--truncate-sequence",
        "-t",
        modes=TALK,
        help="Drop the beginning of a prompt that is too long instead of refusing it.",
    )
    chat_template: str | None = option(
        None,
        "--chat-template",
        "-c",
        metavar="TEXT|FILE",
        modes=TALK,
        help="Jinja text, or a .json or .jinja file; wins over the model's own.",
    )
    max_seqs: int | None = option(
        None, "--max-seqs", metavar="N", min=1, modes=TALK, show_default="16", help="Sequences that may run at once."
    )
    prefix_cache_n: int | None = option(
        None,
        "--prefix-cache-n",
        metavar="N",
        min=0,
        modes=TALK,
        show_default="16",
        help="Finished sequences that are kept for reuse; 0: none.",
    )
    no_kv_cache: bool = option(
        False, "--no-kv-cache", modes=TALK, help="Compute the whole sequence again at every step."
    )
    draft: int | None = option(
        None,
        "--draft",
        metavar="N",
        min=0,
        modes=RUN,
        show_default="7, bench: 0",
        help="Tokens to guess ahead from what was said before, at most; the answer stays the same. 0: off.",
    )
    kv_memory: str | None = option(
        None,
        "--kv-memory",
        metavar="SIZE",
        modes=RUN,
        show_default="half of what the weights leave",
        help="Memory of the KV cache at most, such as 512M or 4G.",
    )
    kv_dir: Path | None = option(
        None,
        "--kv-dir",
        metavar="FOLDER",
        modes=TALK,
        help="Keep what was computed for prompts here, for the next start.",
    )
    kv_dir_size: str | None = option(
        None, "--kv-dir-size", metavar="SIZE", modes=TALK, show_default="8G", help="What --kv-dir may hold."
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

    port: int | None = option(
        None, "--port", "-p", metavar="N", min=0, max=65535, modes=SERVE, help="Serve at this port; 0: at a free one."
    )
    serve_ip: str | None = option(
        None,
        "--serve-ip",
        metavar="ADDRESS",
        modes=SERVE,
        show_default="127.0.0.1",
        help="The address to serve at; 0.0.0.0: all of this machine's.",
    )
    model_name: str | None = option(
        None,
        "--model-name",
        metavar="NAME",
        modes=SERVE,
        show_default="the repository, or the file's stem",
        help="The model's id in answers.",
    )
    strict: bool = option(False, "--strict", modes=SERVE, help="Refuse parameters that would be ignored.")
    strict_model: bool = option(
        False, "--strict-model", modes=SERVE, help="Refuse requests that name another model instead of answering them."
    )
    api_key: list[str] | None = option(
        None,
        "--api-key",
        metavar="KEY",
        modes=SERVE,
        help="Serve only who sends this key. May be repeated. Where neither this nor a file of keys is given, "
        "MISTRALRS_API_KEY counts, with a comma between two keys.",
    )
    api_key_file: Path | None = option(
        None, "--api-key-file", metavar="FILE", modes=SERVE, help="The same, a key a line; others cannot see these."
    )
    isolate_keys: bool = option(
        False, "--isolate-keys", modes=SERVE, help="Reuse only what the same key has computed before."
    )
    cors_origin: list[str] | None = option(
        None,
        "--cors-origin",
        metavar="ORIGIN",
        modes=SERVE,
        show_default="those of this machine",
        help="Let web pages of this origin call, '*': of any. May be repeated.",
    )
    ssl_certfile: Path | None = option(
        None,
        "--ssl-certfile",
        metavar="FILE",
        modes=SERVE,
        help="Serve HTTPS with this certificate and its chain (PEM).",
    )
    ssl_keyfile: Path | None = option(
        None,
        "--ssl-keyfile",
        metavar="FILE",
        modes=SERVE,
        show_default="in the certificate's file",
        help="The certificate's key (PEM, without a passphrase).",
    )
    max_queue: int | None = option(
        None,
        "--max-queue",
        metavar="N",
        min=0,
        modes=SERVE,
        show_default="4096",
        help="Answers that may wait for a place; a request beyond is refused with 429.",
    )
    request_timeout: float | None = option(
        None,
        "--request-timeout",
        metavar="SECONDS",
        modes=SERVE,
        show_default="none",
        help="How long one request may take, its wait included.",
    )
    drain_seconds: float | None = option(
        None,
        "--drain-seconds",
        metavar="SECONDS",
        modes=SERVE,
        show_default="30",
        help="How long running requests may go on after SIGTERM or Ctrl-C.",
    )
    max_body: str | None = option(
        None, "--max-body", metavar="SIZE", modes=SERVE, show_default="4M", help="The largest body of a request."
    )
    log: Path | None = option(
        None,
        "--log",
        "-l",
        metavar="FILE",
        modes=SERVE,
        help="Append requests and answers to this file, as JSON lines.",
    )
    log_bodies: Literal["on", "off"] | None = option(
        None,
        "--log-bodies",
        metavar="on|off",
        modes=SERVE,
        show_default="on",
        help="off: log that something was said, and not what.",
    )

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


def given(options: GlobalOptions) -> dict[str, frozenset[Mode]]:
    """The options that the user gave: their long names, and the modes that they mean something in."""
    return {
        each.metadata["names"][0]: each.metadata["modes"]
        for each in fields(options)
        if getattr(options, each.name) not in (each.default, [])
    }
