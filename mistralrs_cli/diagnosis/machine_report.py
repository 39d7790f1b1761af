"""Finds out what this machine has for models: hardware, kernels, packages, the user's folders, and the hub if asked.

Nothing is made or changed. A finding is a problem only where something that is there does not work.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mistralrs import __version__
from mistralrs.api.cached_models import cached_models, default_model
from mistralrs.api.options.config_file import find_config
from mistralrs.api.options.resolve import unknown_variables
from mistralrs.errors import MistralrsError
from mistralrs.ops.backend import resolve
from mistralrs.ops.memory import available_bytes
from mistralrs.ops.native_backend import instruction_sets, physical_cores
from mistralrs.user_dirs import user_folder
from mistralrs_cli.terminal.output import byte_size

_PACKAGES = ("torch", "numpy", "tokenizers", "llguidance", "huggingface_hub", "fastapi", "uvicorn", "prompt_toolkit")
_HUB_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact."""

    name: str
    state: Literal["ok", "note", "problem"]
    """``note``: it works, and could be better."""
    said: str
    hint: str | None = None
    """The way to mend or improve it."""


def examine(*, asks_hub: bool) -> Iterator[Finding]:
    """Yields what there is. ``asks_hub``: ask the hub whether it answers."""
    yield Finding("version", "ok", f"mistralrs {__version__}, Python {platform.python_version()}")
    yield Finding("packages", "ok", ", ".join(_versions()))
    yield Finding("system", "ok", f"{platform.system()} {platform.release()} on {platform.machine()}")
    yield Finding(
        "processor", "ok", f"{_processor()}, {physical_cores()} cores, {len(os.sched_getaffinity(0))} threads"
    )
    yield _memory()
    yield _kernels()
    yield _default_model()
    yield _checked("hub's cache", _hub_cache)
    yield _checked("chats", _chats)
    yield _checked("kept KV", _kept_kv)
    yield _checked("settings", _settings)
    for sentence in unknown_variables(os.environ):
        yield Finding("settings", "note", sentence)
    yield _hub() if asks_hub else Finding("hub", "ok", "not asked: doctor --hub asks it")


def _checked(name: str, look: Callable[[], Finding]) -> Finding:
    """Returns what ``look`` finds, or the error that it ends with."""
    try:
        return look()
    except MistralrsError as error:
        return Finding(name, "problem", error.message, error.hint)
    except (OSError, sqlite3.Error) as error:
        return Finding(name, "problem", str(error))


def _versions() -> Iterator[str]:
    for name in _PACKAGES:
        try:
            yield f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            yield f"{name} missing"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.machine()


def _memory() -> Finding:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Finding("memory", "ok", f"{byte_size(available_bytes())} of {byte_size(total)} can be used")


def _kernels() -> Finding:
    found = resolve("cpu", threads=1)
    if found.unavailable_backends:
        return Finding(
            "kernels",
            "note",
            f"none, so everything is slower: {'; '.join(found.unavailable_backends)}",
            "in a checkout, run: make venv; it needs a C++ compiler",
        )
    return Finding("kernels", "ok", f"{found.backend.name}, of {', '.join(instruction_sets())} that run here")


def _default_model() -> Finding:
    found = default_model()
    if found.path is None:
        return Finding("default model", "note", "not on this machine", found.hint)
    return Finding("default model", "ok", f"{found.path}, {byte_size(found.nbytes)}")


def _hub_cache() -> Finding:
    from huggingface_hub import constants

    models = cached_models()
    size = byte_size(sum(model.nbytes for model in models))
    return _folder("hub's cache", Path(constants.HF_HUB_CACHE), f"{_count(len(models), 'model')}, {size}")


def _chats() -> Finding:
    from mistralrs_cli.chat_storage.chat_schema import database_file

    path = database_file()
    if path is None:
        return _homeless("chats", "XDG_DATA_HOME")
    if not path.exists():
        return _folder("chats", path.parent, "none yet")
    # read-only: a look must neither make a database nor bring an old one up to date
    with sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True) as connection:
        (number,) = connection.execute("SELECT count(*) FROM chats").fetchone()
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    connection.close()
    if verdict != "ok":
        return Finding("chats", "problem", f"{path} is damaged: {verdict}", "move it away, and restore a copy")
    return Finding("chats", "ok", f"{_count(number, 'chat')} in {path}, {byte_size(path.stat().st_size)}")


def _kept_kv() -> Finding:
    folder = user_folder("XDG_CACHE_HOME", ".cache")
    if folder is None:
        return _homeless("kept KV", "XDG_CACHE_HOME")
    kept = folder / "kv"
    files = [file for file in kept.rglob("*") if file.is_file()] if kept.is_dir() else []
    return _folder("kept KV", kept, byte_size(sum(file.stat().st_size for file in files)))


def _folder(name: str, path: Path, said: str) -> Finding:
    """Returns the state of a folder that may not be there yet: whether it, or the folder above, can be written."""
    there = next(each for each in (path, *path.parents) if each.exists())
    free = shutil.disk_usage(there).free
    if not os.access(there, os.W_OK | os.X_OK):
        return Finding(name, "problem", f"{there} may not be written", "change its permissions")
    return Finding(name, "ok", f"{said} in {path}, {byte_size(free)} free")


def _homeless(name: str, variable: str) -> Finding:
    return Finding(name, "note", "no home folder is known", f"{variable} names another folder")


def _settings() -> Finding:
    path = find_config(os.environ)
    where = "no config file" if path is None else str(path)
    return Finding("settings", "ok", f"{where}; mistralrs config shows the options in force")


def _hub() -> Finding:
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of whichever client library is in use

    if constants.is_offline_mode():
        return Finding("hub", "note", "not asked: HF_HUB_OFFLINE forbids it", "unset HF_HUB_OFFLINE")
    address = f"{constants.ENDPOINT}/api/models"
    try:
        status = get_session().get(address, params={"limit": 1}, timeout=_HUB_TIMEOUT_S).status_code
    except (HTTPError, OSError) as error:
        hint = "models that are here work without it; HF_HUB_OFFLINE=1 never asks it"
        return Finding("hub", "problem", f"{constants.ENDPOINT} cannot be reached: {error}", hint)
    if status != 200:
        return Finding("hub", "problem", f"{constants.ENDPOINT} answers with status {status}")
    return Finding("hub", "ok", f"{constants.ENDPOINT} answers")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
