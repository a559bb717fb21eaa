"""The outbox's file: its lock, its format, what becomes of one that cannot be read, SQLite's errors by what to do."""

from __future__ import annotations

import fcntl
import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agents import log
from quota.clock import wall_ms

SCHEMA_VERSION = 2


_SCHEMA = (
    "CREATE TABLE agent (epoch TEXT NOT NULL, seq INTEGER NOT NULL)",
    """CREATE TABLE gpus (
        gpu_uuid TEXT PRIMARY KEY, gpu_class TEXT NOT NULL, node TEXT NOT NULL,
        last_seen_ms INTEGER NOT NULL, gaps_ms TEXT NOT NULL,
        busy_ns INTEGER NOT NULL, observed_ms INTEGER NOT NULL,
        job_id TEXT NOT NULL, attempt INTEGER NOT NULL,
        workload_busy_ns INTEGER NOT NULL, workload_observed_ms INTEGER NOT NULL,
        attributed_ns INTEGER NOT NULL, sharers TEXT NOT NULL, runs TEXT NOT NULL) WITHOUT ROWID""",
    """CREATE TABLE holdings (
        gpu_uuid TEXT NOT NULL, job_id TEXT NOT NULL, attempt INTEGER NOT NULL, pod_index INTEGER NOT NULL,
        since_ms INTEGER NOT NULL, until_ms INTEGER, replica INTEGER NOT NULL,
        namespace TEXT NOT NULL, pod TEXT NOT NULL, uid TEXT NOT NULL)""",
    """CREATE TABLE evidence (
        id INTEGER PRIMARY KEY, job_id TEXT NOT NULL, attempt INTEGER NOT NULL, gpu_uuid TEXT NOT NULL,
        hour_ms INTEGER NOT NULL, gpu_class TEXT NOT NULL, node TEXT NOT NULL,
        busy_ns INTEGER NOT NULL, observed_ms INTEGER NOT NULL, seq INTEGER NOT NULL, unsent_since_ms INTEGER,
        UNIQUE (job_id, attempt, gpu_uuid, hour_ms))""",
    "CREATE INDEX evidence_unsent ON evidence (unsent_since_ms) WHERE unsent_since_ms IS NOT NULL",
    "CREATE INDEX evidence_hour ON evidence (hour_ms)",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)

_FROM_1 = (
    "ALTER TABLE gpus ADD COLUMN attributed_ns INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE gpus ADD COLUMN sharers TEXT NOT NULL DEFAULT '[]'",
    "ALTER TABLE gpus ADD COLUMN runs TEXT NOT NULL DEFAULT '[]'",
    # what was attributed until now is not known: the rest is counted from here on
    "UPDATE gpus SET attributed_ns = busy_ns",
    _SCHEMA[2],
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)
"""From format 1, which knew no pods, to this one."""


class OutboxUnusable(Exception):
    """The outbox cannot be opened; the message says what to do."""


class OutboxUnwritable(Exception):
    """The disk took nothing; what was to be stored must be kept and tried again."""


class OutboxBroken(Exception):
    """The file broke while it was open; a new start moves it aside."""


def take_lock(lock_file: int, path: Path) -> None:
    """Only one agent at a time has the outbox at `path`. Raises OutboxUnusable with who has it."""
    try:
        fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(lock_file, 20, 0).decode("ascii", "replace").strip() or "unknown"
        raise OutboxUnusable(
            f"{path} is in use by another agent (process {holder}); stop it or choose another --outbox"
        ) from error
    os.truncate(lock_file, 0)
    os.pwrite(lock_file, f"{os.getpid()}\n".encode(), 0)


def open_database(path: Path) -> sqlite3.Connection:
    """The database at `path`, in the present format; an unreadable one is moved aside. Raises OutboxUnusable."""
    try:
        return _connect(path)
    except sqlite3.OperationalError as error:
        raise OutboxUnusable(f"cannot open {path}: {error}; see the disk and the file's owner") from error
    except sqlite3.DatabaseError as error:
        aside = _move_aside(path)
        log.error("outbox_unreadable", outbox=str(path), moved_to=str(aside), reason=str(error))
        return _connect(path)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        _make_tables(connection, path)
        connection.execute("SELECT epoch, seq FROM agent")
    except BaseException:
        connection.close()
        raise
    return connection


def _make_tables(connection: sqlite3.Connection, path: Path) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == SCHEMA_VERSION:
        return
    if version > SCHEMA_VERSION:
        raise OutboxUnusable(f"{path} was written by a newer agent (format {version}); update this one")
    connection.execute("BEGIN IMMEDIATE")
    for statement in _SCHEMA if version == 0 else _FROM_1:
        connection.execute(statement)
    if version == 0:
        connection.execute("INSERT INTO agent VALUES (?, 0)", (secrets.token_hex(8),))
    connection.execute("COMMIT")


def _move_aside(path: Path) -> Path:
    aside = path.with_name(f"{path.name}.unreadable-{wall_ms()}")
    for suffix in ("", "-wal", "-shm"):
        part = Path(f"{path}{suffix}")
        if part.exists():
            part.rename(f"{aside}{suffix}")
    return aside


@contextmanager
def named_errors() -> Iterator[None]:
    """SQLite's errors by what the caller can do about them."""
    try:
        yield
    except sqlite3.OperationalError as error:
        # Also I/O errors and read-only remounts: all of them mean "not now", and nothing was stored.
        raise OutboxUnwritable(str(error)) from error
    except sqlite3.DatabaseError as error:
        raise OutboxBroken(str(error)) from error
