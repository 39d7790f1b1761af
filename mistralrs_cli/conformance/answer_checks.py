"""Checks of answers in one piece and of streams."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mistralrs_cli.conformance.checked_server import DONE, CheckedServer, Fault, NotChecked, Reply

REASONS = ("stop", "length", "tool_calls", "content_filter", "function_call")


def models(server: CheckedServer) -> None:
    """The list of models has ids."""
    if server.get("/models").answer().get("object") != "list":
        raise Fault("'object' is not 'list'")
    server.models  # noqa: B018  (raises the fault)


def message(server: CheckedServer) -> None:
    """A message has a role and its text."""
    found = choice(server.plain.answer()).get("message")
    if not isinstance(found, dict):
        raise Fault("the choice has no message")
    if found.get("role") != "assistant":
        raise Fault(f"the message's role is {found.get('role')!r}")
    if not isinstance(found.get("content"), str):
        raise Fault(f"the content is a {type(found.get('content')).__name__}, not a text")


def identity(server: CheckedServer) -> None:
    """Answers and chunks have an id, the type of their object, a time and a model."""
    _identify(server.plain.answer(), "chat.completion")
    for chunk in server.stream.chunks():
        _identify(chunk, "chat.completion.chunk")


def _identify(body: dict[str, Any], kind: str) -> None:
    for name in ("id", "model"):
        if not isinstance(body.get(name), str):
            raise Fault(f"a {kind} has no {name}")
    if body.get("object") != kind:
        raise Fault(f"the object of a {kind} is {body.get('object')!r}")
    if not isinstance(body.get("created"), int | float):
        raise Fault(f"a {kind} has no time")


def finish_reason(server: CheckedServer) -> None:
    """Reasons are those that clients know, and 'length' is one that is true."""
    reason = choice(server.plain.answer()).get("finish_reason")
    if reason not in REASONS:
        raise Fault(f"an unknown reason: {reason!r}")
    cut = choice(server.chat(max_tokens=1).answer()).get("finish_reason")
    if cut != "length":
        raise Fault(f"an answer that was cut by max_tokens ends with {cut!r}")


def usage(server: CheckedServer) -> None:
    """An answer counts its tokens."""
    _count(server.plain.answer().get("usage"))


def _count(found: object) -> None:
    if not isinstance(found, dict):
        raise Fault("there is no usage")
    found_counts = [found.get(name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")]
    counts = [count for count in found_counts if isinstance(count, int)]
    if len(counts) != 3:
        raise Fault("the usage lacks one of its three counts")
    if counts[0] + counts[1] != counts[2]:
        raise Fault(f"{counts[0]} and {counts[1]} tokens are counted as {counts[2]}")


def end(server: CheckedServer) -> None:
    """A stream ends with [DONE]."""
    server.stream.chunks()
    if server.stream.events()[-1] != DONE:
        raise Fault("the stream does not end with [DONE]")


def choices(server: CheckedServer) -> None:
    """Every event has a list of choices."""
    for chunk in server.stream.chunks():
        if not isinstance(chunk.get("choices"), list):
            raise Fault(f"an event has {'null for' if 'choices' in chunk else 'no'} choices: {str(chunk)[:80]}")


def role(server: CheckedServer) -> None:
    """The role stands in the first delta, and there alone."""
    roles = [delta.get("role") for delta in _deltas(server.stream)]
    if roles[0] != "assistant":
        raise Fault(f"the first delta's role is {roles[0]!r}")
    repeated = sum(each is not None for each in roles) - 1
    if repeated:
        raise Fault(f"the role is repeated in {repeated} more deltas")


def last_delta(server: CheckedServer) -> None:
    """Deltas are objects, and each choice ends once with a reason."""
    _deltas(server.stream)
    reasons = [each["finish_reason"] for each in stream_choices(server.stream) if each.get("finish_reason") is not None]
    if len(reasons) != 1 or reasons[0] not in REASONS:
        raise Fault(f"the stream's reasons are {reasons}")


def no_usage(server: CheckedServer) -> None:
    """Nobody gets a usage who did not ask for it, nor a chunk without choices."""
    for chunk in server.stream.chunks():
        if chunk.get("usage") is not None:
            raise Fault("a usage that was not asked for")
        if chunk.get("choices") == []:
            raise Fault("a chunk without a choice that was not asked for")


def asked_usage(server: CheckedServer) -> None:
    """A usage that was asked for comes once, at the end, with an empty list of choices."""
    chunks = server.chat(stream=True, stream_options={"include_usage": True}).chunks()
    counted = [chunk for chunk in chunks if chunk.get("usage") is not None]
    if len(counted) != 1:
        raise Fault(f"{len(counted)} chunks have a usage")
    _count(counted[0]["usage"])
    if counted[0] is not chunks[-1] or counted[0].get("choices") != []:
        raise Fault("the usage is not in a last chunk with an empty list of choices")


def order(server: CheckedServer) -> None:
    """Of several choices, the first begins first."""
    reply = server.chat(stream=True, n=2)
    _refuse_refusal(reply, "n=2")
    indices = [each.get("index") for each in stream_choices(reply)]
    if set(indices) != {0, 1}:
        raise Fault(f"n=2 gives the choices {sorted(map(str, set(indices)))}")
    if indices[0] != 0:
        raise Fault("choice 1 begins before choice 0")


def logprobs(server: CheckedServer) -> None:
    """Log-probabilities have texts for tokens, in answers and in streams."""
    plain = server.chat(logprobs=True, top_logprobs=2)
    _refuse_refusal(plain, "logprobs")
    _read_logprobs(choice(plain.answer()).get("logprobs"))
    streamed = stream_choices(server.chat(stream=True, logprobs=True, top_logprobs=2))
    found = [each["logprobs"] for each in streamed if each.get("logprobs") is not None]
    if not found:
        raise Fault("a stream has no logprobs")
    for each in found:
        _read_logprobs(each)


def _read_logprobs(found: object) -> None:
    content = found.get("content") if isinstance(found, dict) else None
    if not isinstance(content, list):
        raise Fault("logprobs have no list 'content'")
    for entry in content:
        tokens = [entry, *(entry.get("top_logprobs") or [])] if isinstance(entry, dict) else [entry]
        for token in tokens:
            if not isinstance(token, dict) or not isinstance(token.get("token"), str):
                raise Fault("a token of logprobs is no text")


def reasoning(server: CheckedServer) -> None:
    """A thought comes under both names that clients read."""
    found = choice(server.plain.answer()).get("message")
    texts = [found.get(name) for name in ("reasoning", "reasoning_content")] if isinstance(found, dict) else []
    if not any(texts):
        raise NotChecked("the model did not think")
    if texts[0] != texts[1]:
        raise Fault(f"only {'reasoning' if texts[0] else 'reasoning_content'} has the thought")


def choice(answer: dict[str, Any]) -> dict[str, Any]:
    """Returns the first choice of an answer. Raises ``Fault``."""
    found = answer.get("choices")
    if not isinstance(found, list) or not found or not isinstance(found[0], dict):
        raise Fault("the answer has no choice")
    return found[0]


def stream_choices(reply: Reply) -> Iterator[dict[str, Any]]:
    """Yields the choices of all chunks. Raises ``Fault``."""
    for chunk in reply.chunks():
        if chunk.get("error") is not None:
            raise Fault(f"the stream has an error: {str(chunk['error'])[:100]}")
        for each in chunk.get("choices") or []:
            if not isinstance(each, dict):
                raise Fault("a choice is no object")
            yield each


def _deltas(reply: Reply) -> list[dict[str, Any]]:
    found = [each.get("delta") for each in stream_choices(reply)]
    deltas = [each for each in found if isinstance(each, dict)]
    if not found or len(deltas) < len(found):
        raise Fault("a choice of the stream has no delta, or null")
    return deltas


def _refuse_refusal(reply: Reply, asked: str) -> None:
    if 400 <= reply.status < 500:
        raise NotChecked(f"the server refuses {asked}")
