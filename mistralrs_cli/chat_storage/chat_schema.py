"""Opens the database of saved chats, makes its tables, and brings those of an older version to this one."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from mistralrs.errors import LoadError
from mistralrs.user_dirs import user_folder

BUSY_S = 5.0
"""Seconds to wait while another process writes."""
NEEDED = (3, 35)
"""The oldest version of SQLite that has all that is used: ``RETURNING``, and FTS5 with trigrams."""
_APPLICATION = 0x6D727363
"""SQLite's ``application_id`` of our databases: the letters mrsc."""

_CHATS = """
CREATE TABLE chats (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT UNIQUE,
    model TEXT NOT NULL,
    system TEXT,
    created REAL NOT NULL,
    updated REAL NOT NULL,
    tip INTEGER
);
CREATE TABLE messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    chat INTEGER NOT NULL REFERENCES chats (id) ON DELETE CASCADE,
    parent INTEGER REFERENCES messages (id) ON DELETE CASCADE,
    role TEXT NOT NULL CHECK (role IN ('user', 'assistant')),
    content TEXT NOT NULL,
    is_cut INTEGER NOT NULL,
    created REAL NOT NULL
);
CREATE INDEX messages_of_chat ON messages (chat);
CREATE INDEX messages_of_parent ON messages (parent);
"""
_SEARCH = """
CREATE VIRTUAL TABLE messages_text USING fts5 (content, content='messages', content_rowid='id', tokenize='trigram');
CREATE TRIGGER message_added AFTER INSERT ON messages BEGIN
    INSERT INTO messages_text (rowid, content) VALUES (new.id, new.content);
END;
CREATE TRIGGER message_removed AFTER DELETE ON messages BEGIN
    INSERT INTO messages_text (messages_text, rowid, content) VALUES ('delete', old.id, old.content);
END;
CREATE TRIGGER message_changed AFTER UPDATE OF content ON messages BEGIN
    INSERT INTO messages_text (messages_text, rowid, content) VALUES ('delete', old.id, old.content);
    INSERT INTO messages_text (rowid, content) VALUES (new.id, new.content);
END;
INSERT INTO messages_text (messages_text) VALUES ('rebuild');
"""
_STATES = """
ALTER TABLE messages ADD COLUMN thinking TEXT;
ALTER TABLE messages ADD COLUMN stand_in TEXT;
"""
MIGRATIONS = (_CHATS, _SEARCH, _STATES)
"""Step i makes a database of version i + 1 from one of version i; ``user_version`` holds the version."""


def database_file() -> Path | None:
    """Returns the path of the user's database; it need not exist. None: the user has no home folder."""
    folder = user_folder("XDG_DATA_HOME", ".local/share")
    return None if folder is None else folder / "chats.db"


def open_database(path: Path) -> sqlite3.Connection:
    """Returns a connection to the database, which is made if it does not exist; only the user may read its file.

    Raises ``LoadError`` for a file that is damaged, another program's or a newer version's; it is left as it is. Raises
    ``OSError`` and ``sqlite3.Error`` where it cannot be opened or written.
    """
    if sqlite3.sqlite_version_info < NEEDED:
        raise LoadError(
            f"SQLite {sqlite3.sqlite_version} is too old to save chats", hint=f"{'.'.join(map(str, NEEDED))} is needed"
        )
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)  # SQLite gives the files beside it the same mode
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
    try:
        _prepare(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def memory_database() -> sqlite3.Connection:
    """Returns a connection to a new database that ends with it."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    _prepare(connection, Path(":memory:"))
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    try:
        version = _version(connection, path)
        _write_ahead(connection)
        # Each turn reaches the disk before the next: a failure of power loses no turn either.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA secure_delete = ON")
        if version < len(MIGRATIONS):
            _migrate(connection, path)
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        raise _damaged(path, error) from error


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Turns on the write-ahead log, with which readers and a writer do not wait for each other.

    SQLite does not wait for this lock itself, so that two processes that make the file at once have to try again.
    """
    end = time.monotonic() + BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) or time.monotonic() > end:
                raise
        time.sleep(0.01)


def _version(connection: sqlite3.Connection, path: Path) -> int:
    """Returns the version of the tables; 0 is an empty file."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    application: int = connection.execute("PRAGMA application_id").fetchone()[0]
    tables: int = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if application != _APPLICATION and (tables or version or application):
        raise LoadError(f"{path} is another program's database", hint=f"move it away: {path} is for chats")
    if version > len(MIGRATIONS):
        raise LoadError(
            f"{path} is of a newer version of mistralrs (schema {version}, this one knows {len(MIGRATIONS)})",
            hint="use that version, or move the file away to begin anew",
        )
    return version


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Takes all steps in one transaction: another process sees the old tables or the new ones."""
    with transaction(connection):
        for number in range(_version(connection, path), len(MIGRATIONS)):  # another process may have been first
            for statement in _statements(MIGRATIONS[number]):
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {_APPLICATION}")
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """A transaction that writes: all of the block, or nothing of it when an error leaves the block."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _statements(script: str) -> list[str]:
    """Returns the statements of a script; ``executescript`` would commit between them."""
    found, statement = [], ""
    for line in script.strip().splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            found.append(statement)
            statement = ""
    assert not statement
    return found


def _damaged(path: Path, error: sqlite3.Error) -> LoadError:
    return LoadError(f"{path} is damaged: {error}", hint="move it away to begin anew, or restore it from a copy")
