"""The names on this machine that a word may be: saved chats, models in the hub's cache, adapters of the line."""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from mistralrs.user_dirs import home_folder, user_folder

_MOST_CHATS = 50


def saved_chats() -> Iterator[tuple[str, str]]:
    """Yields the names of chats, or their numbers, and what they are about; the last used first."""
    folder = user_folder("XDG_DATA_HOME", ".local/share")
    path = None if folder is None else folder / "chats.db"
    if path is None or not path.is_file():
        return
    # read-only, and without the chat's own code: a key press must neither make nor change a database
    with contextlib.suppress(sqlite3.Error), contextlib.closing(_opened(path)) as database:
        for number, name, model in database.execute(
            "SELECT id, name, model FROM chats ORDER BY updated DESC LIMIT ?", (_MOST_CHATS,)
        ):
            yield name or str(number), f"chat {number} with {model}"


def _opened(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=0.2)


def cached_repositories() -> list[str]:
    """Returns the models in the hub's cache, as OWNER/NAME; its client would take long to import."""
    folder = _hub_cache()
    found = [] if folder is None or not folder.is_dir() else sorted(folder.glob("models--*"))
    return [path.name.removeprefix("models--").replace("--", "/") for path in found if (path / "snapshots").is_dir()]


def _hub_cache() -> Path | None:
    named = os.environ.get("HF_HUB_CACHE")
    if named:
        return Path(named)
    if os.environ.get("HF_HOME"):
        return Path(os.environ["HF_HOME"]) / "hub"
    home = home_folder()
    caches = os.environ.get("XDG_CACHE_HOME") or (None if home is None else home / ".cache")
    return None if caches is None else Path(caches) / "huggingface" / "hub"


def adapters_of(words: Sequence[str]) -> list[str]:
    """Returns the names that ``--lora`` gives to adapters on the line."""
    given = [value for flag, value in itertools.pairwise(words) if flag == "--lora"]
    given += [word.removeprefix("--lora=") for word in words if word.startswith("--lora=")]
    return [name if source else Path(name).name for name, _, source in (value.partition("=") for value in given)]
