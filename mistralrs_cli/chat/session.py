"""The state of a chat: the model, the conversation, the settings; and the way in which one turn is taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mistralrs.engine.events import Finished, Scalings, Usage
from mistralrs_cli.answer import Interruption, relay
from mistralrs_cli.chat.chat_history import Conversation
from mistralrs_cli.chat.render import Notes
from mistralrs_cli.invocation import ChatJob
from mistralrs_cli.mean_scalings import heat_map, mean_scalings
from mistralrs_cli.model import AnswerStream, Model
from mistralrs_cli.output import AnswerWriter, Streams, grouped, stats_line
from mistralrs_cli.thoughts import Thoughts, thinking_of


class Chat:
    """The state that the commands and the loops of a chat share."""

    def __init__(self, model: Model, job: ChatJob, streams: Streams) -> None:
        self.model = model
        self.conversation = Conversation(job.system)
        self.stats = job.stats
        """Each answer is followed by its statistics."""
        self.last: Usage | None = None
        """The usage of the last answer."""
        self.scalings: Scalings | None = None
        """Those of the last answer; None: there is no answer yet, or the model is no X-LoRA."""
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
                self.scalings = None
                thoughts = Thoughts(self._streams.stderr, shown=self._job.think in (None, "on"))
                finished = relay(answer, writer, thoughts, on_scalings=self._keep_scalings)
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
        mixes = self.model.known_adapters().scaling_axes is not None
        return self.model.chat(
            messages,
            job.sampling,
            truncate=job.truncate,
            adapters=self.adapters,
            scalings=mixes,
            grammar=job.grammar,
            thinking=thinking_of(job.think),
        )

    def _keep_scalings(self, scalings: Scalings) -> None:
        self.scalings = scalings

    def show_stats(self) -> None:
        """Shows the statistics of the last answer."""
        if self.last is None:
            self.notes.say("no answer yet")
        else:
            self.notes.say(stats_line(self.last, self.model.info.context_length))

    def show_scalings(self, *, width: int) -> None:
        """Shows the scalings of the last answer in at most ``width`` columns. Raises ``RequestError`` for a model that
        is no X-LoRA."""
        axes = self.model.known_adapters().require_scalings()
        if self.scalings is None or self.last is None:
            self.notes.say("no answer yet" if self.last is None else "the last answer has none")
            return
        means = mean_scalings(self.scalings, axes, self.model.tokenizer, first=self.last.prompt_tokens)
        if not means.tokens:
            self.notes.say("no token of the last answer has scalings")
            return
        self.notes.say(*heat_map(means, width=width))
        if self.scalings.omitted_tokens:
            self.notes.say(f"{grouped(self.scalings.omitted_tokens)} later tokens are left out: they are too many")
