"""The forms in which one answer goes to stdout: its text, its code, or a JSON object."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TextIO

from mistralrs.engine.events import Finished
from mistralrs.errors import MistralrsError
from mistralrs_cli.markdown_screen.answer_display import AUTOMATIC, Look, open_writer
from mistralrs_cli.printing.answer import TextPieces
from mistralrs_cli.printing.answer_record import Record, answer_fields, error_fields, write_record
from mistralrs_cli.printing.code_block import FirstCodeBlock
from mistralrs_cli.terminal.output import SEPARATOR, AnswerWriter


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """The form of answers on stdout."""

    json: bool = False
    """Objects, one a line, instead of text."""
    extract_code: bool = False
    """Text: only the first code block. Objects have it as ``code``."""
    look: Look = AUTOMATIC
    """Text: how it looks on a terminal."""


class AnswerOutput(Protocol):
    """Takes one answer as it comes; exactly one of ``end`` and ``fail`` follows the text."""

    def write(self, text: str) -> None:
        """Takes a piece."""

    def end(self, finished: Finished) -> None:
        """Completes the answer. Raises ``MistralrsError`` for one without the code that was asked for."""

    def fail(self, error: MistralrsError) -> None:
        """Ends an answer that failed."""


def open_output(
    form: AnswerForm, stdout: TextIO, *, model: str, number: int, cancel: Callable[[], None]
) -> AnswerOutput:
    """Returns the output of answer ``number`` (from 0), after the line that separates it from the one before.

    ``cancel`` ends the answer; it is called once nothing more of it is needed.
    """
    if form.json:
        return JsonOutput(form, lambda record: write_record(stdout, record), model=model)
    if number:
        stdout.write(f"{SEPARATOR}\n")
    return CodeOutput(stdout, cancel) if form.extract_code else TextOutput(stdout, form.look)


class TextOutput:
    """The answer's text, drawn on a terminal as a chat's is."""

    def __init__(self, stdout: TextIO, look: Look = AUTOMATIC) -> None:
        self._writer = open_writer(stdout, look)

    def write(self, text: str) -> None:
        """Shows a piece."""
        self._writer.write(text)

    def end(self, finished: Finished) -> None:
        """Ends the text with a line feed, unless it was cancelled before it began."""
        if self._writer.text or finished.reason != "cancelled":
            self._writer.end()

    def fail(self, error: MistralrsError) -> None:
        """Ends the text with a line feed, if it began."""
        if self._writer.text:
            self._writer.end()


class CodeOutput:
    """The code of the answer's first block, a line as soon as it is complete."""

    def __init__(self, stdout: TextIO, cancel: Callable[[], None]) -> None:
        self._writer = AnswerWriter(stdout)
        self._block = FirstCodeBlock()
        self._cancel = cancel

    def write(self, text: str) -> None:
        """Shows the code in a piece; the rest of an answer whose block is complete is not waited for."""
        self._show(self._block.feed(text))
        if self._block.closed:
            self._cancel()

    def end(self, finished: Finished) -> None:
        """Ends the code with a line feed. Raises ``MistralrsError`` for an answer without code."""
        self._show(self._block.finish())
        if self._block.found:
            self._writer.end()
        elif finished.reason != "cancelled":
            raise no_code()

    def fail(self, error: MistralrsError) -> None:
        """Ends the code with a line feed, if it began."""
        if self._block.found:
            self._writer.end()

    def _show(self, code: str) -> None:
        if code:
            self._writer.write(code)


class JsonOutput:
    """An object with the whole answer, when it is complete. ``fields`` of the caller come first."""

    def __init__(
        self, form: AnswerForm, write_record: Callable[[Record], None], *, model: str, fields: Record | None = None
    ) -> None:
        self._form = form
        self._write_record = write_record
        self._model = model
        self._fields = fields or {}
        self.thoughts = TextPieces()
        """The answer's thinking, which is ``reasoning`` in the object."""
        self._text = TextPieces()
        self._written = False

    def write(self, text: str) -> None:
        """Keeps a piece."""
        self._text.write(text)

    def end(self, finished: Finished) -> None:
        """Writes the object. Raises ``MistralrsError`` for an answer without the code that was asked for."""
        text = self._text.text
        record = self._fields | answer_fields(text, finished, self._model, reasoning=self.thoughts.text)
        error = None
        if self._form.extract_code:
            record["code"] = code_of(text)
            error = no_code() if record["code"] is None and finished.reason != "cancelled" else None
        self._put(record | (error_fields(error) if error else {}))
        if error:
            raise error

    def fail(self, error: MistralrsError) -> None:
        """Writes an object with the error, and with the text until then, unless there is an object already."""
        if not self._written:
            text: Record = {"text": self._text.text} if self._text.text else {}
            self._put(self._fields | text | error_fields(error))

    def _put(self, record: Record) -> None:
        self._written = True
        self._write_record(record)


def code_of(text: str) -> str | None:
    """Returns the code of the first block of a whole text; None: there is none."""
    block = FirstCodeBlock()
    code = block.feed(text) + block.finish()
    return code if block.found else None


def no_code() -> MistralrsError:
    """Returns the error of an answer that has no code block."""
    return MistralrsError("the answer has no code block", hint="without --extract-code the whole answer is shown")
