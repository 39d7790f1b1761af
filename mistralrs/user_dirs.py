"""The user's folders, also for a user who has none.

A container may run under a user id that the system does not know, and without ``HOME``: work that needs no home folder
must not fail there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from mistralrs.errors import UsageError


def home_folder() -> Path | None:
    """Returns the user's home folder. None: ``HOME`` is not set, and the system has no entry for the user."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def user_folder(variable: str, default: str, environment: Mapping[str, str] | None = None) -> Path | None:
    """``mistralrs`` in one of the user's folders; it need not exist. None: there is no home folder.

    ``variable`` names the folder (``XDG_DATA_HOME``), ``default`` is where it is in the home folder otherwise. A
    relative path in the variable is ignored, as the XDG specification asks. ``environment``: None is the process's own.
    """
    named = (os.environ if environment is None else environment).get(variable, "")
    if os.path.isabs(named):
        return Path(named) / "mistralrs"
    home = home_folder()
    return None if home is None else home / default / "mistralrs"


def expand_user(word: str) -> Path:
    """Returns ``word`` as a path, with a leading ``~`` or ``~user`` expanded.

    Raises ``UsageError`` if there is no such home folder.
    """
    try:
        return Path(word).expanduser()
    except RuntimeError as error:
        first = word.partition("/")[0]
        raise UsageError(
            f"{word}: the home folder {first} is not known", hint="write the path without it; ./~NAME is a file here"
        ) from error
