"""Answers and errors as JSON objects, one a line."""

from __future__ import annotations

import json
from typing import TextIO

from mistralrs.engine.events import Finished, Usage
from mistralrs.errors import MistralrsError
from mistralrs_cli.terminal.output import is_terminal

Record = dict[str, object]


def answer_fields(text: str, finished: Finished, model: str, *, reasoning: str = "") -> Record:
    """Returns an answer: its text, its thinking if there was some, its end, what it took, and what it needs to be made
    again."""
    return {
        "text": text,
        **({"reasoning": reasoning} if reasoning else {}),
        "finish_reason": finished.reason,
        "usage": usage_fields(finished.usage),
        "timings": _timing_fields(finished.usage),
        "seed": finished.usage.seed,
        "model": model,
    }


def error_fields(error: MistralrsError) -> Record:
    """Returns an error as the value of ``error``."""
    return {"error": {"message": error.message, "hint": error.hint}}


def usage_fields(usage: Usage) -> Record:
    """Returns token counts in OpenAI's shape."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _timing_fields(usage: Usage) -> Record:
    timings: Record = {
        "prompt_s": round(usage.prompt_s, 6),
        "completion_s": round(usage.completion_s, 6),
        "first_token_s": round(usage.first_token_s, 6),
    }
    if usage.drafted_tokens:
        timings |= {"drafted_tokens": usage.drafted_tokens, "accepted_tokens": usage.accepted_tokens}
    return timings


def json_line(record: Record, *, ascii_only: bool = False) -> str:
    """Returns an object on one line, with its line feed. Half a surrogate pair, which UTF-8 lacks, is an escape."""
    line = json.dumps(record, ensure_ascii=ascii_only)
    try:
        line.encode()
    except UnicodeEncodeError:
        line = json.dumps(record)
    return line + "\n"


def write_record(stream: TextIO, record: Record) -> None:
    """Writes an object on a line and flushes it.

    On a terminal it has no character that could control one, and nowhere one that the stream's encoding lacks.
    """
    is_unicode = (stream.encoding or "").lower().replace("-", "") == "utf8"
    stream.write(json_line(record, ascii_only=is_terminal(stream) or not is_unicode))
    stream.flush()
