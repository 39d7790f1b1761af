"""Kills a chat repeatedly while it answers; every turn must be there when it is resumed, and its KV be used again.

    python -m tests.soak.killed_chats [--kills 100] [--report FILE]

Meanwhile another process saves a chat of its own in the same database. The exit code is 1 if anything is found.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from mistralrs_cli.chat.chat_history import Message
from mistralrs_cli.chat_storage.chat_store import ChatStore
from tests.conftest import DEFAULT_MODEL
from tests.soak.http_load import WORDS

ROOT = Path(__file__).parents[2]
LATEST_KILL_S = 2.5
"""Seconds after the question was sent."""
PATIENCE_S = 120.0
"""Seconds for a whole answer, loading included."""
KILLS_OF_A_CHAT = 15
"""After so many kills another chat begins, before the context is full."""
OTHER = """
import sys, time
from pathlib import Path
from mistralrs_cli.chat.chat_history import Conversation, Message
from mistralrs_cli.chat_storage.chat_store import ChatStore

store, conversation = ChatStore.open(Path(sys.argv[1])), Conversation()
while True:
    conversation.path.append(Message(("user", "assistant")[len(conversation.path) % 2], f"{len(conversation.path)}"))
    store.save(conversation, "another terminal")
    print(len(conversation.path), flush=True)
    time.sleep(0.02)
"""
_CACHED = re.compile(r"cached ([\d ]+)/([\d ]+) ·")


@dataclass(slots=True)
class Result:
    kills: int = 0
    turns: int = 0
    """Turns that were complete before a kill."""
    interrupted: int = 0
    """Answers of which a kill left a part."""
    unanswered: int = 0
    """Questions of which a kill left no answer."""
    cached: int = 0
    """Tokens of the first prompts after a kill that came from disk."""
    prompt: int = 0
    """All tokens of these prompts."""
    others: int = 0
    """Messages that the other process saved meanwhile."""
    findings: list[str] = field(default_factory=list)

    def report(self) -> str:
        return "\n".join(
            [
                "# A chat killed while it answers",
                "",
                f"{self.kills} kills; {self.turns} complete turns, each there after the kill. Of the other answers,",
                f"{self.interrupted} left a part and {self.unanswered} only their question. The first prompts of the",
                f"resumed chats had {self.prompt} tokens, {self.cached} of them from disk.",
                f"Another process saved {self.others} messages in the same database.",
                "",
                "Findings: " + ("none" if not self.findings else ""),
                *(f"- {finding}" for finding in self.findings),
                "",
            ]
        )


class RunningChat:
    """A chat that goes on with a saved one; each question is a line of its stdin."""

    def __init__(self, model: Path, chat: str, variables: dict[str, str]) -> None:
        words = ["-i", "--resume", chat, "--stats", "--max-tokens", "150", "auto", str(model)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mistralrs_cli", *words],
            env=variables,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.shown = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        while piece := os.read(self._process.stdout.fileno(), 65536):
            self.shown += piece.decode(errors="replace")

    def ask(self, question: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()

    def finish(self) -> tuple[int, int]:
        """Waits for the answer; returns the cached tokens and all tokens of its prompt."""
        assert self._process.stderr is not None
        timer = threading.Timer(PATIENCE_S, self._process.kill)
        timer.start()
        text = ""
        while not (found := _CACHED.search(text)):
            line = self._process.stderr.readline()
            if not line:
                raise RuntimeError(f"the chat ended: {text}")
            text += line
        timer.cancel()
        cached, total = (int(number.replace(" ", "")) for number in found.groups())
        return cached, total

    def kill(self) -> None:
        """Kills the chat; ``shown`` is then all that it has written."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert stream is not None
            try:
                stream.close()
            except BrokenPipeError:  # a question that it did not read
                continue


def drill(model: Path, folder: Path, *, kills: int, seed: int = 5) -> Result:
    """Kills a chat repeatedly, and compares what is saved with what it had shown."""
    random, result = Random(seed), Result()
    variables = {**os.environ, "XDG_DATA_HOME": str(folder / "data"), "XDG_CACHE_HOME": str(folder / "cache")}
    database = folder / "data" / "mistralrs" / "chats.db"
    other = subprocess.Popen([sys.executable, "-c", OTHER, str(database)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        chat = ""
        for kill in range(kills):
            if kill % KILLS_OF_A_CHAT == 0:
                chat = _new_chat(folder, random, variables)
            _one_kill(model, chat, random, result, variables=variables, database=database)
            result.kills += 1
    finally:
        other.kill()
        counts = other.communicate()[0].split()
    result.others = int(counts[-1])
    _check_database(database, result)
    return result


def _new_chat(folder: Path, random: Random, variables: dict[str, str]) -> str:
    """Saves a chat of a long message and an answer; returns its number."""
    text = " ".join(random.choice(WORDS) for _ in range(300))
    chat = [{"role": "user", "content": text}, {"role": "assistant", "content": "I see."}]
    (folder / "chat.json").write_text(json.dumps(chat))
    done = subprocess.run(
        [sys.executable, "-m", "mistralrs_cli", "chats", "import", str(folder / "chat.json")],
        env=variables,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stderr.split()[-1]


def _one_kill(
    model: Path, chat: str, random: Random, result: Result, *, variables: dict[str, str], database: Path
) -> None:
    before = _path(database, chat)
    running = RunningChat(model, chat, variables)
    questions = [f"Tell me about {random.choice(WORDS)} and {random.choice(WORDS)}, number {n}." for n in range(2)]
    try:
        running.ask(questions[0])
        cached, total = running.finish()
        running.ask(questions[1])
        time.sleep(random.uniform(0, LATEST_KILL_S))
    finally:
        running.kill()
    if before[2:]:  # the chat had been asked before, so that its KV may be on disk
        result.cached += cached
        result.prompt += total
    after = _path(database, chat)
    _compare(before, after, questions, running.shown, result)


def _compare(before: list[Message], after: list[Message], questions: list[str], shown: str, result: Result) -> None:
    """Adds what is missing from the saved chat to the findings. A question without answer is at its end."""

    def found(fault: str) -> None:
        result.findings.append(f"kill {result.kills}: {fault}")

    kept = before[:-1] if before and before[-1].role == "user" else before
    texts, new = [each.content for each in after], after[len(kept) :]
    if texts[: len(kept)] != [each.content for each in kept]:
        found("an earlier turn is not what it was")
        return
    if [each.role for each in new[:2]] != ["user", "assistant"] or new[0].content != questions[0] or new[1].is_cut:
        found(f"the complete turn is missing: {new}")
        return
    result.turns += 1
    complete = new[1].content.rstrip("\n") + "\n"
    if not shown.startswith(complete):
        found(f"the answer is {complete[:80]!r} and not {shown[:80]!r}")
    rest = new[2:]
    if not rest or rest[0].content != questions[1]:
        if shown != complete:
            found("a question that was being answered is missing")
        return
    if len(rest) == 1:
        result.unanswered += 1
        return
    part, seen = rest[1].content, shown[len(complete) :]
    result.interrupted += rest[1].is_cut
    if not part.startswith(seen.rstrip("\n")) and not seen.startswith(part.rstrip("\n")):
        found(f"the part {part[:80]!r} is not that of the answer {seen[:80]!r}")


def _path(database: Path, chat: str) -> list[Message]:
    """The saved messages of a chat, a question without answer included."""
    store = ChatStore.open(database)
    try:
        conversation = store.load(store.find(chat))
    finally:
        store.close()
    return [*conversation.path, *([conversation.unanswered] if conversation.unanswered else [])]


def _check_database(database: Path, result: Result) -> None:
    store = ChatStore.open(database)
    try:
        state = store._connection.execute("PRAGMA integrity_check").fetchone()[0]
        if state != "ok":
            result.findings.append(f"the database is damaged: {state}")
        store._connection.execute("INSERT INTO messages_text (messages_text, rank) VALUES ('integrity-check', 1)")
        others = [each for each in store.chats() if each.model == "another terminal"]
    finally:
        store.close()
    if [each.num_messages >= result.others for each in others] != [True]:
        result.findings.append(f"the other process saved {result.others} messages; the database has {others}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = drill(DEFAULT_MODEL, Path(folder), kills=args.kills)
    print(result.report())
    if args.report:
        args.report.write_text(result.report())
    return 1 if result.findings else 0


if __name__ == "__main__":
    sys.exit(main())
