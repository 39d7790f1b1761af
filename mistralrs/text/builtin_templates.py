"""The chat and response templates that ship with the project, by name: `chat_templates/` of a checkout, and the wheel's
copy of it."""

from __future__ import annotations

import json
from pathlib import Path

from mistralrs.errors import LoadError

_PACKAGE = Path(__file__).parents[1]
_PLACES = (_PACKAGE / "chat_templates", _PACKAGE.parent / "chat_templates")


def builtin_template(name: str) -> str:
    """The Jinja source of a shipped template, such as ``phi-2``. Raises LoadError if no template has this name."""
    if name not in builtin_names():
        raise LoadError(f"there is no chat template named {name!r}", hint=f"there are {', '.join(builtin_names())}")
    source: str = json.loads((_folder() / f"{name}.json").read_text(encoding="utf-8"))["chat_template"]
    return source


def builtin_names() -> list[str]:
    """The names that ``builtin_template`` accepts, in alphabetical order."""
    return sorted(path.stem for path in _folder().glob("*.json"))


def response_template_file(name: str) -> Path:
    """The file of a shipped response template, such as ``hermes``. Raises LoadError if no template has this name."""
    path = _folder() / "responses" / f"{name}.json"
    if not path.is_file():
        names = ", ".join(sorted(each.stem for each in path.parent.glob("*.json")))
        raise LoadError(f"there is no response template named {name!r}", hint=f"there are {names}")
    return path


def template_hint() -> str:
    """The hint of an error about a model without a chat template."""
    return f"pass one with --chat-template: a file, or one of {', '.join(builtin_names())}"


def _folder() -> Path:
    found = next((place for place in _PLACES if place.is_dir()), None)
    if found is None:
        raise LoadError(f"the chat templates are missing from the installation: no {_PLACES[0]}")
    return found
