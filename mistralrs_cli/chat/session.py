"""The state of a chat: the model, the conversation, the settings; and the way in which one turn is taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mistralrs.engine.events import Finished, Usage
from mistralrs_cli.answer import Interruption, relay
from mistralrs_cli.chat.chat_history import Conversation
from mistralrs_cli.chat.render import Notes
from mistralrs_cli.invocation import ChatJob
from mistralrs_cli.model import AnswerStream, Model
from mistralrs_cli.output import AnswerWriter, Streams, stats_line


class Chat:
    """The state that the commands and the loops of a chat share."""

    def __init__(self, model: Model, job: ChatJob, streams: Streams) -> None:
        self.model = model
        self.conversation = Conversation(job.system)
        self.stats = job.stats
        """Each answer is followed by its statistics."""
        self.last: Usage | None = None
        """The usage of the last answer."""
        self.adapters: Mapping[str, float] | None = None
        """Names and weights of the adapters that act from the next turn on; None: the model's default ones."""
        self.leaving = False
        self.notes = Notes(streams.stderr)
        self._job = job
        self._streams = streams

    def take_turn(self, text: str, *, mark_cut: bool) -> Finished:
        """Sends ``text``, writes the answer to stdout, and keeps both; returns the answer's last event.

        The text of a cancelled answer is kept; an answer that is empty or failed leaves the conversation unchanged.
        ``mark_cut``: three dots follow an answer that reached its limit. Raises the error of an answer that failed.
        """
        writer = AnswerWriter(self._streams.stdout)
        messages = self.conversation.asking(text)
        with Interruption() as interruption:
            try:
                answer = interruption.watch(self._ask(messages))
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

    def _ask(self, messages: Sequence[Mapping[str, object]]) -> AnswerStream:
        job = self._job
        return self.model.chat(messages, job.sampling, truncate=job.truncate, adapters=self.adapters)

    def show_stats(self) -> None:
        """Shows the statistics of the last answer."""
        if self.last is None:
            self.notes.say("no answer yet")
        else:
            self.notes.say(stats_line(self.last, self.model.info.context_length))
