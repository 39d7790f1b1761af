"""Checks of refusals."""

from __future__ import annotations

from collections.abc import Mapping

from mistralrs_cli.conformance.checked_server import CheckedServer, Fault, NotChecked, Reply

_WORDS = 400_000
"""Words of a prompt that no model's context has room for."""
_BAD: Mapping[str, Mapping[str, object]] = {
    "a text for temperature": {"temperature": "hot"},
    "messages that are a number": {"messages": 7},
    "a role that there is none of": {"messages": [{"role": 7, "content": "hello"}]},
    "max_tokens that are a list": {"max_tokens": [1]},
}


def error_body(server: CheckedServer) -> None:
    """A refusal has an object 'error' with message, type, param and code."""
    _read_error(server.chat(messages=None))


def bad_input(server: CheckedServer) -> None:
    """Bad input is answered with 4xx, since clients try 5xx again."""
    replies = {name: server.chat(**fields) for name, fields in _BAD.items()}
    replies["a body that is no JSON"] = server.post("/chat/completions", b"{")
    for name, reply in replies.items():
        if not 400 <= reply.status < 500:
            raise Fault(f"{name}: status {reply.status}")


def unknown_path(server: CheckedServer) -> None:
    """An unknown path is answered with 404 and an error's body."""
    reply = server.get("/no-such-path")
    if reply.status != 404:
        raise Fault(f"status {reply.status}")
    _read_error(reply)


def context_length(server: CheckedServer) -> None:
    """A prompt that is too long is refused with the code that clients know."""
    prompt = "word " * _WORDS
    reply = server.chat(messages=[{"role": "user", "content": prompt}], max_tokens=1)
    if reply.status == 200:
        raise NotChecked(f"the server answers a prompt of {_WORDS} words")
    if reply.status == 413:
        raise NotChecked("the server takes no body of 2 MB")
    code = _read_error(reply).get("code")
    if reply.status != 400 or code != "context_length_exceeded":
        raise Fault(f"status {reply.status} with the code {code!r}")


def _read_error(reply: Reply) -> Mapping[str, object]:
    if not 400 <= reply.status < 500:
        raise Fault(f"status {reply.status}")
    value = reply.value()
    if not isinstance(value, dict) or "error" not in value:
        names = ", ".join(value) if isinstance(value, dict) else type(value).__name__
        raise Fault(f"status {reply.status} without 'error': {names[:60]}")
    error = value["error"]
    if not isinstance(error, dict):
        raise Fault(f"'error' is a {type(error).__name__}, not an object")
    if not isinstance(error.get("message"), str):
        raise Fault("the error has no message")
    missing = [name for name in ("type", "param", "code") if name not in error]
    if missing:
        raise Fault(f"the error lacks {', '.join(missing)}")
    return error
