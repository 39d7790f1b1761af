"""The state of a chat: the model, the conversation, the settings; and the way in which one turn is taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from mistralrs.engine.config import SamplingParams
from mistralrs.engine.events import Finished, Scalings, TokenLogprob, Usage
from mistralrs.errors import ContextLengthError, EngineError, MistralrsError, RequestError, UsageError
from mistralrs_cli.adapter_commands.mean_scalings import heat_map, mean_scalings
from mistralrs_cli.arguments.invocation import ChatJob
from mistralrs_cli.chat.chat_history import Conversation, Message, messages_to_send
from mistralrs_cli.chat.chat_settings import ChatSettings, SettingOrigins
from mistralrs_cli.chat.render import Notes
from mistralrs_cli.chat_commands import context_room
from mistralrs_cli.chat_commands.model_switch import ModelSwitch
from mistralrs_cli.chat_commands.repetition import is_said_before, repeats_itself
from mistralrs_cli.chat_input.attachments import Attachment, fetch_page, refuse_page
from mistralrs_cli.chat_storage.chat_record import ChatRecord, SavedAnswer
from mistralrs_cli.markdown_screen.answer_display import open_writer
from mistralrs_cli.model import AnswerStream, Model
from mistralrs_cli.printing.answer import Interruption, TextPieces, relay
from mistralrs_cli.printing.prefill_line import ShownPrefill
from mistralrs_cli.printing.thoughts import Thoughts, thinking_of
from mistralrs_cli.terminal.output import Streams, clean_line, grouped, is_terminal, stats_line

NUM_ALTERNATIVES = 5
"""Likely tokens that ``/probs`` knows at each place."""
LONGEST_NAME = 30
"""Characters of the model's name in the line."""


class Chat:
    """The state that the commands and the loops of a chat share."""

    def __init__(self, model: Model, job: ChatJob, streams: Streams, *, record: ChatRecord) -> None:
        """``record`` saves the turns."""
        self.model = model
        self.record = record
        self.conversation = Conversation(job.system)
        self.settings = ChatSettings(job.sampling, job.truncate, job.grammar, job.think, job.stats, job.policy)
        """The settings of the next turn."""
        self.origins = SettingOrigins(self.settings, job.written)
        self._use_own_sampling()
        self.last: Usage | None = None
        """The usage of the last answer."""
        self._measured: Conversation | None = None
        """The conversation that the last answer belongs to."""
        self.scalings: Scalings | None = None
        """Those of the last answer; None: there is no answer yet, or the model is no X-LoRA."""
        self.adapters: Mapping[str, float] | None = None
        """Names and weights of the adapters that act from the next turn on; None: the model's default ones."""
        self.leaving = False
        self.draft = ""
        """The text that the next line begins with."""
        self.edit: Callable[[str], Finished | None] | None = None
        """Takes the next line instead of a turn; returns the end of the answer if it asks for one."""
        self.attempts = 0
        """Other answers that were asked for, to any question."""
        self.notes = Notes(streams.stderr)
        self.attachments: list[Attachment] = []
        """Texts that wait for the next message."""
        self.fetch: Callable[[str], Attachment] = fetch_page if job.allow_net else refuse_page
        """Returns a page, or refuses it."""
        self.confirm: Callable[[str], bool] = lambda question: False
        """Asks the user a question."""
        self.switch: ModelSwitch | None = None
        """Exchanges the model; None: nothing does."""
        self.opens_editor = False
        """The next line begins in the user's editor."""
        self.multiline = False
        """Enter begins a new line."""
        self.keeps_probs = False
        """The probabilities of answers are asked for."""
        self.probs: list[TokenLogprob] = []
        """Those of the last answer's tokens; empty where they were not asked for."""
        self._look = job.look
        self._streams = streams

    def take_turn(self, text: str, *, mark_cut: bool) -> Finished:
        """Sends ``text``, writes the answer to stdout, and keeps and saves both; returns the answer's last event.

        The text of a cancelled answer is kept; an answer that is empty or failed leaves the conversation unchanged.
        ``mark_cut``: three dots follow an answer that reached its limit. Raises the error of an answer that failed.
        """
        question, self.conversation.unanswered = self.conversation.unanswered, None
        if question is None or question.content != text:
            question = Message("user", text)
        return self.answer([*self.conversation.path, question], mark_cut=mark_cut)

    def answer(
        self, path: list[Message], *, mark_cut: bool = True, attempt: int = 0, dry_multiplier: float | None = None
    ) -> Finished:
        """Makes ``path`` the conversation, and answers or continues its last message; returns as ``take_turn`` does.

        ``attempt``: is added to the seed, so that another answer to the same question differs. ``dry_multiplier``: the
        penalty of repetitions in this answer alone; None: the setting.
        """
        before, self.conversation.path = self.conversation.path, path
        seed = (self.settings.sampling.seed + attempt) % 2**64
        sampling = replace(self.settings.sampling, seed=seed)
        if dry_multiplier is not None:
            sampling = replace(sampling, dry_multiplier=dry_multiplier)
        return self._answer(before, sampling, mark_cut=mark_cut)

    def _answer(self, before: Sequence[Message], sampling: SamplingParams, *, mark_cut: bool) -> Finished:
        """Answers the last message of the path. ``before``: the path to return to if there is no answer."""
        self.record.save(self.conversation)
        writer = open_writer(self._streams.stdout, self._look)
        with Interruption() as interruption:
            try:
                asked = interruption.watch(self._ask_with_room(sampling, interruption.watch))
                stream = ShownPrefill(asked, self._streams.stderr)
            except KeyboardInterrupt:  # before there was an answer
                self._return_to(before)
                return Finished("cancelled", Usage(0, 0, 0, 0.0, 0.0, 0.0, sampling.seed))
            except MistralrsError:
                self._return_to(before)
                raise
            answer = SavedAnswer(stream, self.conversation, self.record)
            try:
                self.scalings = None
                finished = relay(answer, writer, self._thoughts(), on_scalings=self._keep_scalings)
            except BaseException as error:
                if writer.text:
                    writer.end()
                answer.finish(is_cut=True)
                if isinstance(error, MistralrsError):
                    self._return_to(before)
                raise
        is_cut = finished.reason == "cancelled"
        answer.finish(is_cut=is_cut)
        if writer.text or not is_cut:
            writer.end("..." if mark_cut and finished.reason == "length" else "")
        else:
            self._return_to(before)
        if mark_cut and finished.reason == "length":
            is_full = finished.usage.completion_tokens != sampling.max_tokens
            self.notes.say(f"[stopped at {'the end of the context' if is_full else 'max tokens: /continue'}]")
        self.last, self._measured = finished.usage, self.conversation
        self.probs = answer.logprobs
        if self.settings.stats:
            self.show_stats()
        self._note_repetition(writer.text)
        return finished

    def _note_repetition(self, text: str) -> None:
        earlier = [each.content for each in self.conversation.path[:-1] if each.role == "assistant"]
        if repeats_itself(text) or is_said_before(text, earlier):
            self.notes.say("the answer repeats itself word for word; /retry dry answers anew, against repetition")

    def take_model(self, model: Model) -> None:
        """Goes on with another model."""
        self.model = model
        self.record.model = model.info.name
        self.adapters, self.last, self.scalings, self.probs = None, None, None, []
        self._use_own_sampling()

    def _use_own_sampling(self) -> None:
        """Samples as the model's makers recommend, where the user gave nothing else."""
        self.origins.use_model(self.settings, self.model.info.sampling)

    def count_tokens(self, text: str) -> int | None:
        """Returns the tokens of a text; None where they are not known: the tokenizer is a server's, or fails."""
        try:
            return len(self.model.tokenizer.encode(text, special=False))
        except RequestError:
            return None

    def send_to_terminal(self, sequence: str) -> bool:
        """Sends a control sequence to the user's terminal; returns whether there is one."""
        for stream in (self._streams.stdout, self._streams.stderr):
            if is_terminal(stream):
                stream.write(sequence)
                stream.flush()
                return True
        return False

    def _thoughts(self) -> Thoughts:
        think = self.settings.think
        return Thoughts(self._streams.stderr, shown=think in (None, "on"), summed=think == "hide")

    def _return_to(self, before: Sequence[Message]) -> None:
        """Makes ``before`` the path again; a question that was not answered at all is removed from the store."""
        last = self.conversation.path[-1]
        self.conversation.path = list(before)
        if last.role == "user" and all(last is not each for each in before):
            self.record.remove(last)
        self.record.save(self.conversation)

    def _ask_with_room(self, sampling: SamplingParams, watch: Callable[[AnswerStream], AnswerStream]) -> AnswerStream:
        """Asks for an answer; while the context is full, makes room as the settings say. Raises ``ContextLengthError``
        where that cannot be, and ``KeyboardInterrupt`` for a summary that was stopped."""
        while True:
            try:
                return self._ask(sampling)
            except ContextLengthError as error:
                if self._make_room(watch):
                    continue
                if self.settings.truncate:
                    self.notes.say("the last message alone does not fit: its beginning is dropped")
                    return self._ask(sampling, truncate=True)
                error.hint = context_room.FULL if self._streams.interactive else context_room.FULL_FOR_LINES
                raise

    def _make_room(self, watch: Callable[[AnswerStream], AnswerStream]) -> bool:
        policy = self.settings.context
        if policy == "slide" and (dropped := context_room.slide(self.conversation)):
            self.notes.say(
                f"the context is full: the model does not see the {_messages(dropped)} before these any more; the chat "
                "keeps them, /compact undo brings them back"
            )
            return True
        return policy == "compact" and self._compact(watch, may_take_all=False)

    def compact_now(self) -> None:
        """Puts a summary in place of old turns and shows it. Ctrl-C leaves all as it is."""
        with Interruption() as interruption:
            try:
                if not self._compact(interruption.watch, may_take_all=True):
                    raise UsageError("there is no turn to compact", hint="/compact show tells what the model sees")
            except KeyboardInterrupt:
                self.notes.say("stopped; the conversation is as it was")

    def _compact(self, watch: Callable[[AnswerStream], AnswerStream], *, may_take_all: bool) -> bool:
        def summarize(messages: Sequence[Message], earlier: str) -> str | None:
            self.notes.say(f"summarizing {_messages(len(messages))} ...")
            return self._summarize(messages, earlier, watch)

        try:
            taken = context_room.compact(self.conversation, summarize, may_take_all=may_take_all)
        except ContextLengthError as error:
            error.hint = "a turn is too long to be summarized; /set context slide drops old turns instead"
            raise
        if taken is None:
            raise KeyboardInterrupt
        if taken:
            self.record.save(self.conversation)
            self.notes.say(*self.describe_unseen())
        return taken > 0

    def _summarize(
        self, messages: Sequence[Message], earlier: str, watch: Callable[[AnswerStream], AnswerStream]
    ) -> str | None:
        """Returns the model's summary; None: it was stopped. Raises ``ContextLengthError`` where the messages leave no
        room for it."""
        limit = context_room.summary_tokens(self.model.info.context_length)
        question = Message("user", context_room.instruction(limit))
        asked = messages_to_send(self.conversation.system, earlier, [*messages, question])
        sampling = replace(self.settings.sampling, max_tokens=limit, stop=(), logprobs=None)
        try:
            stream = self.model.chat(asked, sampling, adapters=self.adapters, thinking=False)
        except RequestError as error:
            if isinstance(error, ContextLengthError) or error.param != "enable_thinking":
                raise
            stream = self.model.chat(asked, sampling, adapters=self.adapters)  # the model always thinks
        pieces = TextPieces()
        finished = relay(watch(stream), pieces)
        if finished.reason == "cancelled":
            return None
        used = finished.usage
        if finished.reason == "length" and used.completion_tokens < limit:
            raise ContextLengthError(used.prompt_tokens, used.prompt_tokens + used.completion_tokens)
        if not pieces.text.strip():
            raise EngineError("the model wrote no summary", hint="/set context slide drops old turns instead")
        if finished.reason == "length":
            self.notes.say(f"the summary is cut at {limit} tokens")
        if repeats_itself(pieces.text):
            self.notes.say("the summary repeats itself word for word; /compact undo brings the turns back")
        return pieces.text.strip()

    def describe_unseen(self) -> list[str]:
        """Returns lines about what the model does not see of the conversation; none: it sees all."""
        unseen, summary = self.conversation.num_unseen, self.conversation.summary
        if not unseen:
            return []
        what = "this summary stands in for" if summary else "the model does not see"
        lines = [f"{what} the first {_messages(unseen)}; the chat keeps them, /compact undo brings them back"]
        return lines + [f"  {line}" for line in summary.split("\n") if summary]

    def _ask(self, sampling: SamplingParams, *, truncate: bool = False) -> AnswerStream:
        settings = self.settings
        mixes = self.model.known_adapters().scaling_axes is not None
        return self.model.chat(
            self.conversation.for_model(),
            replace(sampling, logprobs=NUM_ALTERNATIVES) if self.keeps_probs else sampling,
            truncate=truncate,
            adapters=self.adapters,
            scalings=mixes,
            grammar=settings.grammar,
            thinking=thinking_of(settings.think),
            continues=self.conversation.path[-1].role == "assistant",
        )

    def other_answers(self, path: list[Message], count: int) -> list[Message]:
        """Returns other answers to the last message of ``path``, computed together and shown one after another. They
        are saved beside the one that the conversation has, which stays."""
        before, answers = self.conversation.path, list[Message]()
        streams = list[AnswerStream]()
        self.conversation.path = path
        try:
            with Interruption() as interruption:
                for number in range(1, count + 1):
                    seed = (self.settings.sampling.seed + self.attempts + number) % 2**64
                    stream = self._ask_with_room(replace(self.settings.sampling, seed=seed), interruption.watch)
                    streams.append(interruption.watch(stream))
                self.attempts += count
                for number, stream in enumerate(streams, 1):
                    self.conversation.path = list(path)
                    self.notes.say(f"another answer, {number} of {count}:")
                    answers += self._show_other(stream)
        finally:
            for stream in streams:
                stream.cancel()  # for those that an error left
            self.show_path(before)
        return answers

    def _show_other(self, stream: AnswerStream) -> list[Message]:
        """Shows one answer and saves it; returns it, or nothing if it was cancelled before its first text."""
        writer = open_writer(self._streams.stdout, self._look)
        answer = SavedAnswer(stream, self.conversation, self.record)
        is_cut = True
        try:
            is_cut = relay(answer, writer, self._thoughts()).reason == "cancelled"
        finally:
            answer.finish(is_cut=is_cut)
            if writer.text:
                writer.end()
        last = self.conversation.path[-1]
        return [last] if last.role == "assistant" else []

    def show_path(self, path: list[Message]) -> None:
        """Makes ``path`` the messages that the model sees, and the ones that the saved chat shows."""
        self.conversation.path = path
        self.conversation.unanswered = None
        self.record.save(self.conversation)

    def _keep_scalings(self, scalings: Scalings) -> None:
        self.scalings = scalings

    def meter(self) -> str:
        """Returns the model's name and the share of its context that the conversation takes, as far as it is known."""
        name = clean_line(self.model.info.name)
        longest = max(6, min(LONGEST_NAME, self.notes.width // 2 - 8))  # a narrow line has room for a message
        name = name if len(name) <= longest else f"{name[: longest - 1]}…"
        context = self.model.info.context_length
        if not context or self.last is None or self._measured is not self.conversation:
            return name
        used = self.last.prompt_tokens + self.last.completion_tokens
        return f"{name} · context {100 * used // context} %"

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


def _messages(count: int) -> str:
    return f"{count} message{'' if count == 1 else 's'}"
