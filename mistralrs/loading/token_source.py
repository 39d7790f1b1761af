"""Reads the token for private and gated repositories from the source that ``--token-source`` names.

A token is never logged and never part of a message.
"""

from __future__ import annotations

import os

from mistralrs.errors import LoadError, UsageError
from mistralrs.files import read_text
from mistralrs.user_dirs import expand_user

_FILE_BYTES = 1 << 16
DEFAULT_VARIABLE = "HUGGING_FACE_HUB_TOKEN"
_FORMS = "literal:TOKEN, env, env:NAME, path:FILE, cache or none"
_ELSEWHERE = f"put a token there, or name another source: {_FORMS}"


def token(source: str) -> str | None:
    """The token that ``source`` names, without whitespace around it; None to send no token.

    - ``literal:TOKEN``: the token itself (it may contain colons)
    - ``env`` or ``env:NAME``: an environment variable, ``HUGGING_FACE_HUB_TOKEN`` unless named
    - ``path:FILE``: the text of a file
    - ``cache``: the token of the hub's own tools: the variable ``HF_TOKEN``, else the file that ``hf auth login``
    writes;
      no token if there is neither
    - ``none``: no token, whatever is set

    Raises UsageError for any other source, and for a variable or file that is missing or empty.
    """
    kind, colon, value = source.partition(":")
    if source == "none":
        return None
    if source == "cache":
        return _cached_token()
    if kind == "literal" and colon:
        return _checked(value, "literal: the token after the colon is missing")
    if kind == "env":
        return _variable(value if colon else DEFAULT_VARIABLE)
    if kind == "path" and colon:
        return _file(value)
    # The text before a colon is safe to show; the text after it, or a text without colon, may be a token.
    shown = f"'{kind}:...'" if colon else "this"
    raise UsageError(f"--token-source: {shown} is not a source of tokens", hint=f"it is one of {_FORMS}")


def _cached_token() -> str | None:
    from huggingface_hub import get_token

    try:
        return get_token()
    except PermissionError as error:  # another user's home folder
        raise UsageError(
            f"--token-source cache: {error.filename} may not be read by this user",
            hint="name another source, such as none, or set HF_HOME to a folder of yours",
        ) from error


def _variable(name: str) -> str:
    if not name:
        raise UsageError("--token-source: the name after 'env:' is missing", hint=f"it is one of {_FORMS}")
    return _checked(os.environ.get(name, ""), f"the environment variable {name} is not set or is empty")


def _file(name: str) -> str:
    if not name:
        raise UsageError("--token-source: the file after 'path:' is missing", hint=f"it is one of {_FORMS}")
    path = expand_user(name)
    try:
        text = read_text(path, limit=_FILE_BYTES, hint=_ELSEWHERE, pipe=True)
    except LoadError as error:
        raise UsageError(f"--token-source: {error.message}", hint=error.hint) from error
    return _checked(text, f"{path} is empty")


def _checked(text: str, complaint: str) -> str:
    trimmed = text.strip()
    if not trimmed:
        raise UsageError(f"--token-source: {complaint}", hint=_ELSEWHERE)
    if not (trimmed.isascii() and trimmed.isprintable()) or " " in trimmed:
        # An HTTP client would refuse such a header, and show it.
        raise UsageError(
            "--token-source: what it names is not a token: it has spaces, line breaks or other letters", hint=_ELSEWHERE
        )
    return trimmed
