"""A chat with a program: a JSON object a line in, and one out for each turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mistralrs.engine.events import Finished
from mistralrs.errors import MistralrsError, RequestError
from mistralrs.files import parse_json
from mistralrs_cli.commands.shell_jobs import ChatJsonlJob
from mistralrs_cli.model import Model
from mistralrs_cli.printing.answer import Interruption, TextPieces, relay
from mistralrs_cli.printing.answer_record import Record, answer_fields, error_fields, write_record
from mistralrs_cli.printing.thoughts import thinking_of
from mistralrs_cli.terminal.exits import INTERRUPTED
from mistralrs_cli.terminal.output import Streams
from mistralrs_cli.terminal.stdin_text import lines

Message = Mapping[str, object]
_HINT = '{"role": "user", "content": "..."}, or {"messages": [...]} for a whole conversation'


def run_chat_jsonl(model: Model, job: ChatJsonlJob, streams: Streams) -> int:
    """Takes turns until stdin ends, and returns the exit code. The error of a line becomes an object and ends nothing.

    An object with a role and a content is added to the conversation, and answered if the role is ``user``. One with
    ``messages`` replaces the conversation and is answered.
    """
    conversation: list[Message] = [{"role": "system", "content": job.system}] if job.system is not None else []
    for number, line in enumerate(lines(streams.stdin), 1):
        if not line.strip():
            continue
        record: Record = {"line": number}
        try:
            extended, is_asked = _after(conversation, line)
            if is_asked:
                text, reasoning, finished = _answer(model, job, extended)
        except MistralrsError as error:  # the conversation stays as it was
            write_record(streams.stdout, record | error_fields(error))
            continue
        conversation = extended
        if not is_asked:
            continue
        answer = answer_fields(text, finished, model.info.name, reasoning=reasoning)
        del answer["text"]
        write_record(streams.stdout, record | {"role": "assistant", "content": text} | answer)
        if finished.reason == "cancelled":
            return INTERRUPTED
        conversation = [*conversation, {"role": "assistant", "content": text}]
    return 0


def _answer(model: Model, job: ChatJsonlJob, conversation: Sequence[Message]) -> tuple[str, str, Finished]:
    """Returns the text of an answer, its thinking and its end."""
    sink, thoughts = TextPieces(), TextPieces()
    with Interruption() as interruption:
        answer = interruption.watch(
            model.chat(
                conversation, job.sampling, truncate=job.truncate, grammar=job.grammar, thinking=thinking_of(job.think)
            )
        )
        finished = relay(answer, sink, thoughts)
    return sink.text, thoughts.text, finished


def _after(conversation: list[Message], line: str) -> tuple[list[Message], bool]:
    """Returns the conversation with what a line adds, and whether it is to be answered. Raises ``RequestError``."""
    try:
        found = parse_json(line)
    except ValueError as error:
        raise RequestError(f"the line {error}", hint=_HINT) from None
    if "messages" in found:
        unknown = [name for name in found if name != "messages"]
        messages = found["messages"]
        if unknown:
            raise RequestError(f"the field {unknown[0]!r} is not known beside messages", hint=_HINT)
        if not isinstance(messages, list) or not messages:
            raise RequestError("messages is no list of objects", hint=_HINT)
        return [_message(each) for each in messages], True
    return [*conversation, _message(found)], found.get("role") == "user"


def _message(found: object) -> Message:
    if not isinstance(found, dict):
        raise RequestError("a message is no object", hint=_HINT)
    for name in ("role", "content"):
        if not isinstance(found.get(name), str):
            raise RequestError(f"a message has no {name}, or one that is no text", hint=_HINT)
    return found
