"""Reads ``--connect`` and the options that go with it; refuses those that only a loaded model has."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from mistralrs.api.options.declarations import DECLARED
from mistralrs.api.options.option import ANSWER, Mode
from mistralrs.api.options.resolve import Origin, ResolvedOptions
from mistralrs.api.options.shell_options import ShellOptions
from mistralrs.errors import UsageError
from mistralrs_cli.arguments.command_line import ParsedArgs

if TYPE_CHECKING:
    from mistralrs_cli.server_client.remote_model import ServerChoice

_OF_SERVERS = ("model_name", "api_key")
"""Options that need a server: one to start, or one to connect to."""
_ANYWHERE = ("log_level", "log_json", "debug", "version")


def server_choice(options: ResolvedOptions, args: ParsedArgs, mode: Mode) -> ServerChoice | None:
    """Returns the server that answers in place of a loaded model; None: there is none. Raises ``UsageError``."""
    values = options.values
    if values.connect is None or mode not in ANSWER:
        for name in _OF_SERVERS:
            if options.origin(name) is Origin.FLAG:
                flag = DECLARED[name].flags[0]
                raise UsageError(f"{flag} needs --port or --connect", hint=f"add one of them, or leave {flag} out")
        return None
    # here: most commands have no server, and need not import what speaks to one
    from mistralrs_cli.server_client.remote_model import ServerChoice
    from mistralrs_cli.server_client.server_address import ServerAddress
    from mistralrs_cli.server_client.server_connection import Server

    written = options.written("connect")
    _refuse_loading(options, args, mode, written)
    given = frozenset(name for name in options.origins if DECLARED[name].modes == ANSWER)
    return ServerChoice(
        server=Server(ServerAddress.parse(values.connect, written=written), key_of(options)),
        model_name=values.model_name,
        given=given,
        concurrency=values.max_seqs,
        is_patient=mode is Mode.BATCH,
    )


def _refuse_loading(options: ResolvedOptions, args: ParsedArgs, mode: Mode, written: str) -> None:
    here = {
        Origin.FLAG: f"leave {written} out",
        Origin.ENVIRONMENT: f"{written}= before the command leaves the server out",
    }.get(options.origin("connect"), "MISTRALRS_CONFIG=/dev/null leaves the config file out")
    if args.selection is not None:
        row = args.subcommand[0]
        raise UsageError(f"{row} loads a model, and {written} asks a server", hint=f"leave {row} out, or {here}")
    known = {*(each.name for each in fields(ShellOptions)), *_OF_SERVERS, *_ANYWHERE}
    if mode is Mode.BATCH:
        known.add("max_seqs")
    for name, origin in options.origins.items():
        if origin is Origin.FLAG and name not in known:
            flag = DECLARED[name].flags[0]
            raise UsageError(
                f"{flag} is for a model that is loaded here, and {written} asks a server",
                hint=f"leave {flag} out, or {here}",
            )
    if options.values.truncate_sequence:
        hint = "shorten the prompt, or load the model here"
        raise UsageError(
            f"{options.written('truncate_sequence')}: a server refuses prompts that are too long", hint=hint
        )


def key_of(options: ResolvedOptions) -> str | None:
    """Returns the key to send; None: there is none. Raises ``UsageError``."""
    keys = [key for key in options.values.api_key if key]
    if not keys:
        return None
    if len(keys) > 1 and options.origin("api_key") is Origin.FLAG:
        raise UsageError("one key is sent to a server", hint="give one --api-key")
    # a variable with several keys is that of a server, which accepts each of them
    if not (keys[0].isascii() and keys[0].isprintable()):
        raise UsageError(f"{options.written('api_key')} has characters that no header has", hint="check the key")
    return keys[0]
