"""Asks a person which model to chat with."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from mistralrs.api.cached_models import default_model
from mistralrs.ops.memory import available_bytes
from mistralrs_cli.first_start.fetch_default import NBYTES, fetch_default, place_of_default
from mistralrs_cli.first_start.found_models import FoundModel, found_models
from mistralrs_cli.terminal.output import Streams, byte_size, clean_line

SHOWN = 9
"""Models in the list, at most; those that fit come first."""
_ROOM = 256 << 20
"""Bytes that a model needs beside its weights, at least."""


def choose_model(streams: Streams) -> list[str]:
    """Shows what there is, asks, and fetches the default model if that is chosen and not here. Returns the words of the
    command line that chats, or that prints the help for a person who wants no model. Raises ``LoadError`` where the
    model cannot be fetched.
    """
    free = available_bytes()
    models = sorted(found_models(os.environ, Path.cwd()), key=lambda model: not fits(model, free))[:SHOWN]
    default = default_model()
    recommended = 1 if models and fits(models[0], free) else len(models) + 1
    streams.stderr.write(_screen(models, free, recommended=recommended, is_here=default.path is not None))
    chosen = _ask(len(models) + 1, recommended, streams)
    if chosen is None:
        return ["--help"]
    if chosen <= len(models):
        row = list(models[chosen - 1].row)
    else:
        row = []
        if default.path is None:
            fetch_default(place_of_default(), streams.stderr)
    words = ["-i", *row]
    streams.stderr.write(f"the same at once, next time: mistralrs {clean_line(shlex.join(words))}\n")
    streams.stderr.flush()
    return words


def fits(model: FoundModel, free: int) -> bool:
    """Returns whether a model and a short context fit into ``free`` bytes."""
    return model.nbytes + model.nbytes // 10 + _ROOM <= free


def _screen(models: Sequence[FoundModel], free: int, *, recommended: int, is_here: bool) -> str:
    place = "the default model" if is_here else f"the default model, to be fetched ({byte_size(NBYTES)})"
    entries = [(clean_line(model.name), model.nbytes, model.place) for model in models]
    entries.append(("SmolLM2 135M", NBYTES, place))
    width = max(len(name) for name, _, _ in entries)
    lines = [f"Models on this machine, which has {byte_size(free)} of memory free:"]
    for number, (name, nbytes, where) in enumerate(entries, 1):
        is_too_large = number <= len(models) and not fits(models[number - 1], free)
        note = ", recommended" if number == recommended else ", too large for the memory" if is_too_large else ""
        lines.append(f"  {number}  {name:<{width}}  {byte_size(nbytes):>8}  {where}{note}")
    return "".join(f"{line}\n" for line in lines)


def _ask(most: int, recommended: int, streams: Streams) -> int | None:
    """Returns the number that the person types; None: the help. An empty line is the recommended one."""
    while True:
        streams.stderr.write(f"Chat with which? [{recommended}] (h: the help instead) ")
        streams.stderr.flush()
        line = streams.stdin.readline()
        word = line.strip().lower()
        if not line or word in ("h", "help", "q", "quit", "exit"):
            return None
        if not word:
            return recommended
        if word.isdecimal() and 1 <= int(word) <= most:
            return int(word)
        streams.stderr.write(f"a number from 1 to {most}, or h\n")
