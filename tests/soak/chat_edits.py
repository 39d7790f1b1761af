"""Edits, retries, undoes and forks a chat at random; each answer must have the bits of the same messages typed anew.

    python -m tests.soak.chat_edits [--actions 200] [--seed 3] [--report FILE]

The exit code is 1 if anything is found, or if a fault that is planted on purpose is not found.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from unittest import mock

from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.local_model import LocalModel
from mistralrs.engine.config import SamplingParams
from mistralrs.engine.events import Delta, Finished, TokenLogprob
from mistralrs.engine.kv.block_pool import hash_block
from mistralrs_cli.arguments.invocation import ChatJob
from mistralrs_cli.chat import branches
from mistralrs_cli.chat.chat_history import Message
from mistralrs_cli.chat.session import NUM_ALTERNATIVES, Chat
from mistralrs_cli.chat_storage.chat_record import ChatRecord
from mistralrs_cli.chat_storage.chat_store import ChatStore, TreeMessage
from mistralrs_cli.terminal.output import Streams
from tests.conftest import DEFAULT_MODEL
from tests.soak.http_load import WORDS

SAMPLING = SamplingParams(temperature=0.9, top_p=0.9, seed=5, max_tokens=10)
ACTIONS = ("say", "say", "retry", "edit", "edit", "undo", "fork", "continue", "tree", "alt")
LONGEST = 14
"""Messages of a path, so that the context never gets full."""
UNSHARED = 24
"""Tokens before an edited message that may be computed again: a block that is not full, and the answer's opening."""
PLANTED_ACTIONS = 40
"""Actions in which the planted fault has to be found."""


@dataclass(slots=True)
class Result:
    actions: Counter[str] = field(default_factory=Counter)
    answers: int = 0
    """Answers that were compared."""
    prompt: int = 0
    """Tokens of their prompts."""
    cached: int = 0
    """Those of them that were not computed."""
    findings: list[str] = field(default_factory=list)


class Drill:
    """A chat with a model that reuses KV, and the same model that computes everything anew."""

    def __init__(self, model: LocalModel, forgetful: LocalModel, *, folder: Path, seed: int) -> None:
        self._forgetful, self._random = forgetful, Random(seed)
        self._store = ChatStore.open(folder / f"{seed}.db")
        self.result = Result()
        record = ChatRecord(self._store, "model", say=self._found)
        streams = Streams(io.StringIO(), io.StringIO(), io.StringIO())
        self.chat = Chat(model, ChatJob(SAMPLING, None, False, False), streams, record=record)
        self.chat.keeps_probs = True

    def run(self, actions: int) -> Result:
        """Acts so many times."""
        for _ in range(actions):
            path = self.chat.conversation.path
            action = self._random.choice(ACTIONS) if path else "say"
            if len(path) >= LONGEST and action not in ("edit", "tree", "retry"):
                action = "undo"
            getattr(self, f"_{action}")()
            self.result.actions[action] += 1
            self._check_store()
        self._store.close()
        return self.result

    def _say(self) -> None:
        self.chat.take_turn(self._words(), mark_cut=False)
        self._check_answer("say")

    def _retry(self) -> None:
        branches.retry(self.chat, self._number())
        self._check_answer("retry")

    def _edit(self) -> None:
        number = self._number()
        shown = [each.id for each in self.chat.conversation.path]
        branches.edit(self.chat, number)
        change, self.chat.edit = self.chat.edit, None
        assert change is not None
        if change(self._words()) is None:
            return  # an answer was changed, and nothing is asked
        self._check_answer("edit")
        assert self.chat.last is not None
        before = self.chat.conversation.path[:-2]
        if before and [each.id for each in before] == shown[: len(before)]:
            known = len(self.chat.model.tokens_of([_sent(each) for each in before]))
            if self.chat.last.cached_tokens < known - UNSHARED:
                self._found(f"an edit computed all but {self.chat.last.cached_tokens} of {known} tokens before it anew")

    def _undo(self) -> None:
        branches.undo(self.chat, "")

    def _fork(self) -> None:
        branches.fork(self.chat, "")

    def _continue(self) -> None:
        last = self.chat.conversation.path[-1]
        before = last.content
        if last.role != "assistant" or not before:
            return
        branches.go_on(self.chat, "")
        self._check_answer("continue", begun=before)

    def _tree(self) -> None:
        branches.tree(self.chat, self._number())

    def _alt(self) -> None:
        seed = SAMPLING.seed + self.chat.attempts
        question = branches._to_question(list(self.chat.conversation.path))
        known = {each.message.id for each in self._messages()}
        branches.alternatives(self.chat, "2")
        made = [each.message for each in self._messages() if each.message.id not in known]
        for number, message in enumerate(made, 1):
            text, _ = self._anew([_sent(each) for each in question], (seed + number) % 2**64, continues=False)
            self._compare("alt", message.content, text)

    def _check_answer(self, action: str, *, begun: str = "") -> None:
        """Compares the last answer, its tokens and their probabilities. ``begun``: the text that it continues."""
        *messages, answer = [*self.chat.conversation.path]
        assert self.chat.last is not None
        sent = [_sent(each) for each in messages]
        if begun:
            sent.append({"role": "assistant", "content": begun})
        text, logprobs = self._anew(sent, self.chat.last.seed, continues=bool(begun))
        self._compare(action, answer.content, begun + text)
        if self.chat.probs != logprobs:
            self._found(f"{action}: the probabilities of {answer.content!r} are others")
        self.result.prompt += self.chat.last.prompt_tokens
        self.result.cached += self.chat.last.cached_tokens

    def _anew(
        self, messages: Sequence[Mapping[str, object]], seed: int, *, continues: bool
    ) -> tuple[str, list[TokenLogprob]]:
        sampling = replace(SAMPLING, seed=seed, logprobs=NUM_ALTERNATIVES)
        events = list(self._forgetful.chat(messages, sampling, continues=continues))
        assert isinstance(events[-1], Finished)
        assert events[-1].usage.cached_tokens == 0
        deltas = [event for event in events if isinstance(event, Delta)]
        return "".join(each.text for each in deltas), [each for delta in deltas for each in delta.logprobs]

    def _compare(self, action: str, text: str, expected: str) -> None:
        self.result.answers += 1
        if text != expected:
            self._found(f"{action}: {text!r}, and typed anew {expected!r}")

    def _check_store(self) -> None:
        path = self.chat.conversation.path
        number = self.chat.conversation.id
        saved = self._store.load(self._store.find(str(number))).path if number is not None else []
        if [each.content for each in saved] != [each.content for each in path]:
            self._found(f"the saved chat is {saved} and not {path}")

    def _messages(self) -> list[TreeMessage]:
        return self._store.messages(self.chat.conversation.id or 0)

    def _number(self) -> str:
        return str(self._random.randrange(1, len(self._messages()) + 1))

    def _words(self) -> str:
        return " ".join(self._random.choice(WORDS) for _ in range(self._random.randint(2, 8)))

    def _found(self, fault: str) -> None:
        self.result.findings.append(f"action {self.result.actions.total()}: {fault}")


def _sent(message: Message) -> dict[str, object]:
    return {"role": message.role, "content": message.content}


@contextlib.contextmanager
def loaded(model: Path, options: LoadOptions) -> Iterator[LocalModel]:
    """The model, loaded with these options."""
    found = LocalModel.load(ModelSource(None, model, None, None), options)
    try:
        yield found
    finally:
        found.close()


@contextlib.contextmanager
def planted() -> Iterator[None]:
    """A fault: blocks of KV that differ in their last tokens alone are taken for the same."""
    with mock.patch("mistralrs.engine.sequence.hash_block", lambda parent, tokens: hash_block(parent, tokens[:4])):
        yield


def drill(model: Path, folder: Path, *, actions: int, seed: int, planted_actions: int) -> tuple[Result, Result]:
    """Returns the result, and that of a chat with a planted fault."""
    reuses = LoadOptions(threads=2, max_seqs=4)
    with loaded(model, LoadOptions(threads=2, max_seqs=1, prefix_cache_n=0)) as forgetful:
        with loaded(model, reuses) as reusing:
            result = Drill(reusing, forgetful, folder=folder, seed=seed).run(actions)
        with planted(), loaded(model, reuses) as reusing:
            faulty = Drill(reusing, forgetful, folder=folder, seed=seed + 1).run(planted_actions)
    return result, faulty


def report(result: Result, faulty: Result, *, seed: int) -> str:
    """Returns the report in Markdown."""
    counts = ", ".join(f"{count} {action}" for action, count in sorted(result.actions.items()))
    return "\n".join(
        [
            "# A chat edited at random",
            "",
            f"Seed {seed}; {result.actions.total()} actions: {counts}.",
            f"{result.answers} answers were compared with those of a model that computes the same messages anew: their",
            "text, and for all but those of alt the log probabilities of each token and its alternatives, bit for bit.",
            f"Their prompts had {result.prompt} tokens, {result.cached} of them reused. After each action the saved",
            "chat was compared with the one in memory, and an edit had to reuse the KV of all that is before it.",
            "",
            "Planted on purpose: blocks of KV that have the same first four tokens are taken for the same. In",
            f"{faulty.actions.total()} actions, {len(faulty.findings)} comparisons found it.",
            "",
            "Findings: " + ("none" if not result.findings else ""),
            *(f"- {finding[:500]}" for finding in result.findings),
            "",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actions", type=int, default=200)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result, faulty = drill(
            DEFAULT_MODEL,
            Path(folder),
            actions=options.actions,
            seed=options.seed,
            planted_actions=PLANTED_ACTIONS,
        )
    text = report(result, faulty, seed=options.seed)
    print(text)
    if options.report:
        options.report.write_text(text, encoding="utf-8")
    return int(bool(result.findings) or not faulty.findings)


if __name__ == "__main__":
    sys.exit(main())
