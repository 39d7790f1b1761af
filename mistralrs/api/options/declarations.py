"""Every option before the subcommand; these are also those of the environment and the config file.

Names, types, defaults, ranges, help and the modes that each has a meaning in are here and nowhere else: the command
line, ``LoadOptions``, ``Runner``, ``ServerSettings`` and the reference read them.
"""

# ruff: noqa: RUF009  (``option`` makes a dataclass field, as ``field`` does)

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

from mistralrs.api.options.kv_flags import KvFlags
from mistralrs.api.options.option import FETCH, RUN, SERVE, TALK, Mode, Option, option
from mistralrs.quant.quantize import ISQ_TYPES


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(KvFlags):
    """The values in force, each from its strongest origin. None: not given, so that the mode or the model decides."""

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
        file_endings=(".json", ".jinja"),
        modes=TALK,
        help="Jinja text, or a .json or .jinja file; replaces the model's own.",
    )
    max_seqs: int = option(16, "--max-seqs", metavar="N", least=1, modes=TALK, help="Sequences that may run at once.")
    prefix_cache_n: int = option(
        16,
        "--prefix-cache-n",
        metavar="N",
        least=0,
        modes=TALK,
        help="Finished sequences that are kept for reuse; 0: none.",
    )
    no_kv_cache: bool = option(
        False, "--no-kv-cache", modes=TALK, help="Compute the whole sequence again at every step."
    )
    max_draft: int | None = option(
        None,
        "--draft",
        metavar="N",
        least=0,
        modes=RUN,
        shown_default="15; bench: 0 without --draft-model",
        help="Draft tokens proposed in a step, at most; the answer stays the same. 0: off.",
    )
    draft_model: str | None = option(
        None,
        "--draft-model",
        metavar="SOURCE",
        modes=RUN,
        shown_default="none",
        help="A smaller model with the same vocabulary, a file, a folder or a hub repository, proposes draft tokens "
        "where that is faster; the answer stays the same.",
    )
    max_model_len: int | None = option(
        None,
        "--max-model-len",
        metavar="N",
        least=1,
        modes=RUN,
        shown_default="what the model was made for",
        help="Tokens of context at most; more than Phi-3's short factors are made for takes its long ones.",
    )
    token_source: str = option(
        "cache",
        "--token-source",
        metavar="SOURCE",
        modes=FETCH,
        help="Hub token: literal:TOKEN, env:NAME, path:FILE, cache or none.",
    )

    dtype: Literal["auto", "bf16", "f16", "f32"] = option(
        "auto",
        "--dtype",
        metavar="auto|bf16|f16|f32",
        modes=RUN,
        help="Type for weights that are stored as floats; auto: the stored type.",
    )
    isq: str | None = option(
        None,
        "--isq",
        metavar="TYPE",
        modes=RUN,
        help=f"Quantize a safetensors model while it is loaded: {', '.join(ISQ_TYPES)}.",
    )
    precision: Literal["fast", "default", "high"] = option(
        "default",
        "--precision",
        metavar="fast|default|high",
        modes=RUN | {Mode.INSPECT},
        help="high: slower, closer to the stored weights; fast: faster prompts and batches, a little further away.",
    )
    no_pack: bool = option(
        False, "--no-pack", modes=RUN, help="Compute from the weights in their file, without a copy in memory; slower."
    )
    threads: int | None = option(
        None, "--threads", metavar="N", least=1, modes=RUN, shown_default="physical cores", help="Threads that compute."
    )

    port: int | None = option(
        None,
        "--port",
        "-p",
        metavar="N",
        least=0,
        most=65535,
        modes=SERVE,
        is_shared=False,
        help="Serve at this port; 0: at a free one.",
    )
    serve_ip: str = option(
        "127.0.0.1",
        "--serve-ip",
        metavar="ADDRESS",
        modes=SERVE,
        help="The address to serve at; 0.0.0.0: all of this machine's.",
    )
    model_name: str | None = option(
        None,
        "--model-name",
        metavar="NAME",
        modes=TALK | {Mode.DOCTOR},
        shown_default="the repository, or the file's stem",
        help="The model's id in answers; with --connect and doctor --api the server's model to ask, else its first.",
    )
    plugin: Path | None = option(
        None,
        "--plugin",
        metavar="FILE",
        modes=SERVE,
        is_shared=False,
        help="Run this Python file; requests may name its logits processors and stopping rules.",
    )
    strict: bool = option(False, "--strict", modes=SERVE, help="Refuse parameters that would be ignored.")
    strict_model: bool = option(
        False, "--strict-model", modes=SERVE, help="Refuse requests that name another model instead of answering them."
    )
    api_key: tuple[str, ...] = option(
        (),
        "--api-key",
        metavar="KEY",
        modes=TALK | {Mode.DOCTOR},
        separator=",",
        empty_counts=True,
        together="keys",
        help="Serve only clients that send this key. May be repeated. Where neither this nor a file of keys is given, "
        "MISTRALRS_API_KEY counts, with a comma between two keys. With --connect and doctor --api: the key to send.",
    )
    api_key_file: Path | None = option(
        None,
        "--api-key-file",
        metavar="FILE",
        modes=SERVE,
        together="keys",
        help="The same, a key a line; others cannot see these.",
    )
    isolate_keys: bool = option(
        False, "--isolate-keys", modes=SERVE, help="Reuse only what the same key has computed before."
    )
    cors_origin: tuple[str, ...] = option(
        (),
        "--cors-origin",
        metavar="ORIGIN",
        modes=SERVE,
        separator=",",
        shown_default="those of this machine",
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
        shown_default="in the certificate's file",
        help="The certificate's key (PEM, without a passphrase).",
    )
    max_queue: int = option(
        4096,
        "--max-queue",
        metavar="N",
        least=0,
        modes=SERVE,
        help="Answers that may wait for a place; a request beyond is refused with 429.",
    )
    request_timeout: float | None = option(
        None,
        "--request-timeout",
        metavar="SECONDS",
        least=5e-324,
        range_hint="give seconds, or leave it out for any time",
        modes=SERVE,
        shown_default="none",
        help="How long one request may take, its wait included.",
    )
    drain_seconds: float = option(
        30.0,
        "--drain-seconds",
        metavar="SECONDS",
        least=0,
        most=86_400,
        modes=SERVE,
        help="How long running requests may go on after SIGTERM or Ctrl-C.",
    )
    max_body: int = option(
        4 << 20,
        "--max-body",
        metavar="SIZE",
        is_size=True,
        least=1,
        modes=SERVE,
        shown_default="4M",
        help="The largest body of a request.",
    )
    no_ui: bool = option(False, "--no-ui", modes=SERVE, help="Serve no page for browsers at /ui.")
    log: Path | None = option(
        None,
        "--log",
        "-l",
        metavar="FILE",
        modes=SERVE,
        help="Append requests and answers to this file, as JSON lines.",
    )
    log_bodies: Literal["on", "off"] = option(
        "on", "--log-bodies", metavar="on|off", modes=SERVE, help="off: log requests and answers without their bodies."
    )

    log_level: Literal["debug", "info", "warning", "error"] | None = option(
        None,
        "--log-level",
        metavar="LEVEL",
        shown_default="warning",
        help="debug, info, warning or error: the least level logged on stderr. RUST_LOG=debug asks for debug too.",
    )
    log_json: bool = option(
        False, "--log-json", help="Log on stderr as JSON: an object a line with time, level, logger and message."
    )
    debug: bool = option(False, "--debug", is_shared=False, help="Show tracebacks; so does MISTRALRS_DEBUG=1.")
    version: bool = option(False, "--version", "-V", is_shared=False, help="Show the version and exit.")


DECLARED: Mapping[str, Option] = {each.name: each.metadata["declaration"] for each in fields(Options)}
"""The declarations, by the names of their fields."""
DEFAULTS = Options()
"""The values where nothing is given."""


@functools.cache
def types() -> Mapping[str, Any]:
    """Returns the types of the values, by the names of their fields."""
    return get_type_hints(Options)
