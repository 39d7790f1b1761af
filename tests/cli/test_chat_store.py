"""The store of chats: trees, search, several processes, and files that are damaged, foreign, full, old or new."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mistralrs.errors import LoadError, UsageError
from mistralrs_cli.chat.chat_history import Conversation, Message
from mistralrs_cli.chat_storage.chat_record import ChatRecord
from mistralrs_cli.chat_storage.chat_schema import MIGRATIONS, open_database
from mistralrs_cli.chat_storage.chat_store import ChatStore
from tests.cli.terminal import ROOT

WRITER = """
import sys
from pathlib import Path
from mistralrs_cli.chat.chat_history import Conversation, Message
from mistralrs_cli.chat_storage.chat_store import ChatStore

store = ChatStore.open(Path(sys.argv[1]))
conversation = Conversation("be brief")
for turn in range(int(sys.argv[3])):
    for role in ("user", "assistant"):
        conversation.path.append(Message(role, f"{sys.argv[2]} {role} {turn}"))
        store.save(conversation, "model")
        print(len(conversation.path), flush=True)
"""


def writer(path: Path, name: str, turns: int) -> subprocess.Popen[str]:
    """A process that saves a chat message by message, and prints how many it has saved."""
    command = [sys.executable, "-c", WRITER, str(path), name, str(turns)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "chats.db"


@pytest.fixture
def store(path: Path) -> ChatStore:
    return ChatStore.open(path)


def talk(*texts: str, system: str | None = None) -> Conversation:
    """A conversation in which user and model take turns."""
    roles = ("user", "assistant")
    return Conversation(system, [Message(roles[index % 2], text) for index, text in enumerate(texts)])


def texts(conversation: Conversation) -> list[str]:
    return [each.content for each in conversation.path]


def test_the_file_is_private(path: Path, store: ChatStore) -> None:
    store.save(talk("a", "b"), "model")
    modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
    assert modes == {"chats.db": 0o600, "chats.db-wal": 0o600, "chats.db-shm": 0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_what_grows_is_saved_and_found_again(path: Path, store: ChatStore) -> None:
    conversation = talk("one", system="be brief")
    store.save(conversation, "a model")
    conversation.path.append(Message("assistant", "beg", is_cut=True))
    store.save(conversation, "a model")
    conversation.path[-1].content, conversation.path[-1].is_cut = "beginning", False
    store.save(conversation, "a model")
    again = ChatStore.open(path)
    found = again.find("")
    assert (found.title, found.model, found.num_messages) == ("one", "a model", 2)
    loaded = again.load(found)
    assert (loaded.system, loaded.path, loaded.unanswered) == ("be brief", conversation.path, None)


def test_branches_share_their_beginning(store: ChatStore) -> None:
    conversation = talk("q1", "a1", "q2", "a2")
    store.save(conversation, "model")
    old_tip = conversation.path[-1].id
    conversation.path = [*conversation.path[:2], Message("user", "q2, otherwise"), Message("assistant", "a2'")]
    store.save(conversation, "model")
    found = store.find("")
    assert found.num_messages == 6
    assert texts(store.load(found)) == ["q1", "a1", "q2, otherwise", "a2'"]
    assert [each.content for each in store.path_to(found.id, old_tip)] == ["q1", "a1", "q2", "a2"]


def test_a_question_without_answer_is_kept_apart(store: ChatStore) -> None:
    store.save(talk("q1", "a1", "q2"), "model")
    loaded = store.load(store.find(""))
    assert texts(loaded) == ["q1", "a1"]
    assert loaded.unanswered is not None
    assert loaded.unanswered.content == "q2"


def test_a_removed_question_leaves_no_empty_chat(store: ChatStore) -> None:
    conversation = talk("q1")
    store.save(conversation, "model")
    store.remove(conversation.path.pop())
    store.save(conversation, "model")
    assert store.chats() == []
    conversation.path.append(Message("user", "q2"))
    store.save(conversation, "model")
    assert [each.title for each in store.chats()] == ["q2"]


def test_a_chat_that_another_process_deleted_is_saved_anew(path: Path, store: ChatStore) -> None:
    conversation = talk("q1", "a1")
    store.save(conversation, "model")
    ChatStore.open(path).delete(store.find("").id)
    conversation.path.append(Message("user", "q2"))
    store.save(conversation, "model")
    assert store.load(store.find("")).unanswered is not None
    assert store.find("").num_messages == 3


def test_what_is_deleted_is_gone_from_the_file(path: Path, store: ChatStore) -> None:
    store.save(talk("my secret xylophone", "noted"), "model")
    store.save(talk("other"), "model")
    store.delete(store.find("my secret").id)
    assert [each.title for each in store.chats()] == ["other"]
    assert store.search("xylophone") == []
    store.close()
    assert all(b"xylophone" not in each.read_bytes() for each in path.parent.iterdir())


def test_chats_are_found_by_number_name_and_beginning(store: ChatStore) -> None:
    for title in ("How tall is it?", "How long?", "Why"):
        store.save(talk(title, "so"), "model")
    first = store.find("how tall")
    store.rename(first.id, "heights")
    assert store.find("heights") == store.find(str(first.id)) == store.find("HEIG")
    assert store.find("").title == "Why"
    for wanted, reason in (
        ("4", "no chat 4"),
        ("9" * 40, "no chat"),
        ("how", None),
        ("H", "several"),
        ("x", "no chat"),
    ):
        if reason is None:
            assert store.find(wanted).title == "How long?"
        else:
            with pytest.raises(UsageError, match=reason):
                store.find(wanted)
    with pytest.raises(UsageError, match="another chat has the name"):
        store.rename(store.find("why").id, "heights")
    for name in ("12", " "):
        with pytest.raises(UsageError, match="a letter at least"):
            store.rename(first.id, name)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("PARIS", ["Paris is 100% fine"]),
        ("is paris", ["Paris is 100% fine"]),
        ("100%", ["Paris is 100% fine"]),
        ("%", ["Paris is 100% fine"]),
        ("0_", []),
        ("東京", ["東京都はどこ"]),
        ("京都は", ["東京都はどこ"]),
        ('"quo', ['a "quoted" OR NOT word*']),
        ("OR NOT", ['a "quoted" OR NOT word*']),
        ("ord*", ['a "quoted" OR NOT word*']),
        ("absent", []),
    ],
)
def test_search_is_for_parts_of_words_as_they_stand(store: ChatStore, words: str, found: list[str]) -> None:
    for text in ("Paris is 100% fine", "東京都はどこ", 'a "quoted" OR NOT word*'):
        store.save(talk(text), "model")
    assert [hit.content for hit in store.search(words)] == found


def test_text_that_is_no_unicode_is_saved(store: ChatStore) -> None:
    store.save(talk("half \ud83d a pair\0\x1b]0;title\x07"), "model")
    loaded = store.load(store.find(""))
    assert loaded.unanswered is not None
    assert loaded.unanswered.content == "half \\ud83d a pair\0\x1b]0;title\x07"


def test_several_processes_write_at_once(path: Path) -> None:
    processes = [writer(path, f"writer{number}", 25) for number in range(4)]
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    store = ChatStore.open(path)
    chats = [texts(store.load(each)) for each in store.chats()]
    expected = [[f"writer{n} {role} {turn}" for turn in range(25) for role in ("user", "assistant")] for n in range(4)]
    assert sorted(chats) == expected


def test_a_killed_writer_loses_nothing_that_it_has_saved(path: Path) -> None:
    for run in range(3):
        process = writer(path, f"run{run}", 1000)
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(20 + run)]
        process.send_signal(signal.SIGKILL)
        said += process.communicate()[0].split()
        store = ChatStore.open(path)
        assert store.find("").num_messages >= int(said[-1]) >= 20
        assert store._connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        store.close()


@pytest.mark.parametrize("version", range(1, len(MIGRATIONS)))
def test_a_database_of_an_older_version_is_brought_up(path: Path, version: int) -> None:
    path.parent.mkdir()
    old = sqlite3.connect(path)
    for script in MIGRATIONS[:version]:
        old.executescript(script)
    old.executescript(f"PRAGMA application_id = 1836217187; PRAGMA user_version = {version};")
    old.execute("INSERT INTO chats (model, created, updated, tip) VALUES ('m', 1, 2, 2)")
    rows = [(1, None, "user", "an old word"), (1, 1, "assistant", "an answer")]
    columns = "chat, parent, role, content, is_cut, created"
    old.executemany(f"INSERT INTO messages ({columns}) VALUES (?, ?, ?, ?, 0, 1)", rows)
    old.commit()
    old.close()
    store = ChatStore.open(path)
    assert [hit.content for hit in store.search("old word")] == ["an old word"]
    conversation = store.load(store.find("1"))
    assert texts(conversation) == ["an old word", "an answer"]
    conversation.path[1].thinking, conversation.path[1].stand_in = "a thought", "a summary"
    conversation.path += talk("a new word").path
    store.save(conversation, "m")
    assert [each.state for each in store.path_to(1, 3)] == [each.state for each in conversation.path]
    assert len(store.search("word")) == 2
    assert store._connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    store.close()
    assert sqlite3.connect(path).execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)


def test_a_migration_that_fails_leaves_the_old_database(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ChatStore.open(path).close()
    monkeypatch.setattr(
        "mistralrs_cli.chat_storage.chat_schema.MIGRATIONS", (*MIGRATIONS, "CREATE TABLE a (b);\nNONSENSE;")
    )
    with pytest.raises(LoadError, match="NONSENSE"):
        ChatStore.open(path)
    monkeypatch.undo()
    assert ChatStore.open(path).chats() == []


def newer(path: Path) -> None:
    ChatStore.open(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.execute("PRAGMA journal_mode = DELETE")
    connection.close()


def foreign(path: Path) -> None:
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (a)")
    connection.close()


def damaged(path: Path) -> None:
    newer(path)
    content = bytearray(path.read_bytes())
    content[:100] = os.urandom(100)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "reason"), [(newer, "a newer version"), (foreign, "another program's"), (damaged, "is damaged")]
)
def test_other_files_are_named_and_left_as_they_are(path: Path, make: object, reason: str) -> None:
    assert callable(make)
    make(path)
    before = path.read_bytes()
    with pytest.raises(LoadError, match=reason) as refused:
        ChatStore.open(path)
    assert str(path) in refused.value.message
    assert path.read_bytes() == before


def test_folders_that_cannot_be_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LoadError, match=r"file/chats.db cannot be opened"):
        ChatStore.open(tmp_path / "file" / "chats.db")
    monkeypatch.setattr("mistralrs.user_dirs.home_folder", lambda: None)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    with pytest.raises(LoadError, match="no home folder"):
        ChatStore.open()


def test_a_full_disk_is_said_once_and_made_good(store: ChatStore) -> None:
    said: list[str] = []
    record = ChatRecord(store, "model", say=said.append)
    conversation = talk("q1", "a1")
    record.save(conversation)
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
    store._connection.execute(f"PRAGMA max_page_count = {pages}")
    for turn in range(3):
        conversation.path += talk(f"q{turn}" * 5000, "a").path
        record.save(conversation)
    assert len(said) == 1
    assert said[0].startswith("this chat is not saved: database or disk is full")
    assert texts(store.load(store.find(""))) == ["q1", "a1"]
    store._connection.execute("PRAGMA max_page_count = 1000000")
    record.save(conversation)
    assert said[1:] == ["this chat is saved again"]
    assert texts(store.load(store.find(""))) == texts(conversation)


def test_a_database_that_is_locked_for_long_is_said(path: Path, store: ChatStore) -> None:
    store._connection.execute("PRAGMA busy_timeout = 50")
    other = open_database(path)
    other.execute("BEGIN IMMEDIATE")
    said: list[str] = []
    record = ChatRecord(store, "model", say=said.append)
    record.save(talk("q1"))
    assert said == ["this chat is not saved: database is locked"]
    other.execute("ROLLBACK")
