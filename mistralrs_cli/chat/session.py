"""A chat as it stands: the model, the conversation, the settings; and how one turn is taken. Knows no input device."""

from __future__ import annotations

from mistralrs.engine.events import Finished, Usage
from mistralrs_cli.answer import Interruption, relay
from mistralrs_cli.chat.chat_history import Conversation
from mistralrs_cli.chat.render import Notes
from mistralrs_cli.invocation import ChatJob
from mistralrs_cli.model import Model
from mistralrs_cli.output import AnswerWriter, Streams, stats_line


class Chat:
    """What the commands and the loops of a chat work on."""

    def __init__(self, model: Model, job: ChatJob, streams: Streams) -> None:
        self.model = model
        self.conversation = Conversation(job.system)
        self.stats = job.stats
        """Whether each answer is followed by its statistics."""
        self.last: Usage | None = None
        """What the last answer took."""
        self.leaving = False
        self.notes = Notes(streams.stderr)
        self._job = job
        self._streams = streams

    def take_turn(self, text: str, *, mark_cut: bool) -> Finished:
        """Send ``text``, write the answer to stdout, and keep both; returns how the answer ended.

        A cancelled answer keeps what came; one that brought nothing, or failed, leaves the conversation as it was.
        ``mark_cut``: three dots stand after an answer that reached its limit. Raises the error that it failed with.
        """
        writer = AnswerWriter(self._streams.stdout)
        messages = self.conversation.asking(text)
        with Interruption() as interruption:
            try:
                answer = interruption.watch(self.model.chat(messages, self._job.sampling, truncate=self._job.truncate))
            except KeyboardInterrupt:  # before there was an answer
                return Finished("cancelled", Usage(0, 0, 0, 0.0, 0.0, 0.0, self._job.sampling.seed))
            try:
                finished = relay(answer, writer)
            except BaseException:
                if writer.text:
                    writer.end()
                raise
        if writer.text or finished.reason != "cancelled":
            writer.end("..." if mark_cut and finished.reason == "length" else "")
            self.conversation.add(text, writer.text)
        self.last = finished.usage
        if self.stats:
            self.show_stats()
        return finished

    def show_stats(self) -> None:
        """Say what the last answer took."""
        if self.last is None:
            self.notes.say("no answer yet")
        else:
            self.notes.say(stats_line(self.last, self.model.info.context_length))
