"""The database behind one door: engines, write transactions that end in the feed, read snapshots.

SQLite has one writer and this program is its only process, so writers queue on a lock of our own and begin with
BEGIN IMMEDIATE. PostgreSQL writes at READ COMMITTED; readers on both see one moment.
"""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, TypeVar

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    select,
    text,
    update,
)
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry

from quota.clock import Clock
from quota.errors import HubError
from quota.prepared import Prepared, run_text

T = TypeVar("T")
Item = TypeVar("Item")

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

RowId = BigInteger().with_variant(Integer, "sqlite")
"""An id that the database counts up."""

feed_head = Table(
    "feed_head",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("oldest", BigInteger, nullable=False),
)
feed_rows = Table(
    "feed",
    metadata,
    Column("seq", BigInteger, primary_key=True),
    Column("kind", String(20), primary_key=True),
    Column("id", String(300), primary_key=True),
)

_NEXT_SEQ = Prepared(
    update(feed_head).where(feed_head.c.id == 1).values(seq=feed_head.c.seq + 1).returning(feed_head.c.seq)
)
_HEAD = Prepared(select(feed_head.c.seq).where(feed_head.c.id == 1))
_FEED_ROW = Prepared.insert(feed_rows, ("seq", "kind", "id"))

RETRY_LIMIT = 12
_RETRIED_SQLSTATES = {"40001", "40P01", "23505"}
"""Serialization failure, deadlock, and a key that another transaction inserted first: run again and see it."""


@dataclass
class Tx:
    """One write transaction: its connection, its business time, and what it will publish at its end.

    `defer` queues rows that carry the transaction's feed sequence; they are inserted by `publish`, which
    takes the feed's head last, so that no commit is seen out of order.
    """

    connection: Connection
    now_ms: int
    dialect: str
    touched: dict[tuple[str, str], None] = field(default_factory=dict)
    deferred: list[tuple[Table, dict[str, Any]]] = field(default_factory=list)
    memo: dict[object, Any] = field(default_factory=dict)
    seq: int | None = None
    depth: int = 0
    """How many savepoints are open."""
    speed: int = 1
    """Business seconds per wall second."""

    def touch(self, kind: str, object_id: str) -> None:
        """Let the feed show this object as changed."""
        assert self.seq is None, "nothing may change after the transaction was published"
        self.touched[(kind, object_id)] = None

    def defer(self, table: Table, row: dict[str, Any]) -> None:
        """Insert `row` when the transaction is published, with its `seq` if the table has that column."""
        assert self.seq is None, "nothing may change after the transaction was published"
        self.deferred.append((table, row))

    def once(self, key: object, load: Callable[[], T]) -> T:
        """What `load` read first in this transaction; only for what the transaction itself does not change."""
        if key not in self.memo:
            self.memo[key] = load()
        result: T = self.memo[key]
        return result

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Undo what happens inside if it raises, rows not yet inserted included."""
        touched, deferred, memo = dict(self.touched), len(self.deferred), dict(self.memo)
        self.depth += 1
        name = f"step_{self.depth}"
        run_text(self.connection, f"SAVEPOINT {name}")
        try:
            yield
        except BaseException:
            if not self.connection.invalidated:  # else it is gone, and the transaction with it
                run_text(self.connection, f"ROLLBACK TO SAVEPOINT {name}")
            self.touched, self.memo = touched, memo
            del self.deferred[deferred:]
            raise
        finally:
            self.depth -= 1
        run_text(self.connection, f"RELEASE SAVEPOINT {name}")

    def publish(self) -> int | None:
        """Take the next feed sequence, insert what waited for it, and answer it; None if nothing changed."""
        if self.seq is not None or not (self.touched or self.deferred):
            return self.seq
        self.seq = int(_NEXT_SEQ.one(self.connection).seq)
        groups: dict[Table, list[dict[str, Any]]] = {}
        for table, values in self.deferred:
            rows = groups.setdefault(table, [])
            rows.append({**values, "seq": self.seq, "position": len(rows)})
        for table, rows in groups.items():
            _insert(table, tuple(rows[0])).change_all(self.connection, rows)
        if self.touched:
            changed = [{"seq": self.seq, "kind": kind, "id": key} for kind, key in self.touched]
            _FEED_ROW.change_all(self.connection, changed)
        return self.seq


@cache
def _insert(table: Table, names: tuple[str, ...]) -> Prepared:
    """Of rows with these names; the sequence and the position go to tables that have them."""
    return Prepared.insert(table, [name for name in names if name in table.c])


def _of_item(work: Callable[[Tx, Item], T], item: Item, tx: Tx) -> T:
    return work(tx, item)


class _LookedAround(Exception):
    """Rolls a preview back."""


class Database:
    """One hub's database. Make it once, in `create_app` or a test."""

    def __init__(self, url: str, clock: Clock, *, pool_size: int = 16) -> None:
        self.url = url
        self.clock = clock
        self.engine = _engine(url, pool_size)
        self.dialect = self.engine.dialect.name
        self.head_hint = 0
        """The greatest sequence this process committed: a cheap sign that the feed moved."""
        self._writers = threading.Lock()
        self._kept: Connection | None = None
        """SQLite's one writer, kept open: taking a connection from the pool costs as much as five statements."""
        self._reader = self.engine.execution_options(**_reader_options(self.dialect))
        self._writer = self.engine.execution_options(hub_writes=True)

    def write(self, work: Callable[[Tx], T]) -> T:
        """Run `work` in one transaction, publish, commit, and answer its result.

        Deadlocks and serialization failures (40P01, 40001) run the whole of `work` again, so it must have no
        effect outside the transaction.
        """
        for attempt in range(RETRY_LIMIT):
            try:
                return self._write_once(work)
            except DBAPIError as error:
                if attempt == RETRY_LIMIT - 1 or sqlstate(error) not in _RETRIED_SQLSTATES:
                    raise
                time.sleep(random.uniform(0, 0.002 * 2**attempt))  # full jitter
        raise AssertionError("unreachable")

    def write_each(self, items: Iterable[Item], work: Callable[[Tx, Item], T]) -> list[T]:
        """`write` for each item, in a transaction of its own. One that fails keeps no other from its turn; the
        failures are raised together at the end, each with a note that names its item.
        """
        answers: list[T] = []
        failures: list[Exception] = []
        for item in items:
            try:
                answers.append(self.write(partial(_of_item, work, item)))
            except (SQLAlchemyError, HubError, AssertionError) as error:
                error.add_note(f"while writing {item}")
                failures.append(error)
        if failures:
            raise ExceptionGroup(
                f"{len(failures)} of {len(failures) + len(answers)} were not written", failures
            )
        return answers

    def preview(self, work: Callable[[Tx], T]) -> T:
        """What `write(work)` would answer now; nothing of it stays."""
        answers: list[T] = []

        def look(tx: Tx) -> T:
            answers.append(work(tx))
            raise _LookedAround

        try:
            self.write(look)
        except _LookedAround:
            return answers[-1]
        raise AssertionError("unreachable")

    def _write_once(self, work: Callable[[Tx], T]) -> T:
        if self.dialect != "sqlite":
            with self._writer.connect() as connection:
                return self._transact(connection, work)
        with self._writers:
            if self._kept is None:
                self._kept = self._writer.connect()
            try:
                return self._transact(self._kept, work)
            except BaseException:
                # in whatever state it is now: the pool makes a good one of it, or throws it away
                self._let_go()
                raise

    def _transact(self, connection: Connection, work: Callable[[Tx], T]) -> T:
        with connection.begin():
            tx = Tx(connection, self.clock.now_ms(), self.dialect, speed=self.clock.speed)
            result = work(tx)
            tx.publish()
        if tx.seq is not None:
            self.head_hint = max(self.head_hint, tx.seq)
        return result

    def _let_go(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.close()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that sees one moment of the database and changes nothing."""
        with self._reader.connect() as connection, connection.begin():
            yield connection

    def close(self) -> None:
        """Close all connections."""
        with self._writers:
            self._let_go()
        self.engine.dispose()


def head(connection: Connection) -> int:
    """The feed's sequence at the moment this connection sees."""
    return int(_HEAD.one(connection).seq)


def database_now_ms(connection: Connection) -> int:
    """The database server's own wall clock in milliseconds since 1970."""
    if connection.dialect.name == "sqlite":
        statement = text(
            "SELECT CAST(strftime('%s','now') AS INTEGER) * 1000 + CAST(substr(strftime('%f','now'), 4) AS INTEGER)"
        )
    else:
        statement = text("SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)")
    return int(connection.execute(statement).scalar_one())


def sqlstate(error: DBAPIError) -> str:
    """PostgreSQL's five-letter code of an error, or an empty string."""
    return str(getattr(error.orig, "sqlstate", "") or "")


def _engine(url: str, pool_size: int) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_pre_ping=True,
            hide_parameters=True,
        )
    engine = create_engine(
        parsed,
        pool_size=pool_size,
        max_overflow=48,
        hide_parameters=True,
        # the driver keeps this many statements compiled
        connect_args={"check_same_thread": False, "cached_statements": 512},
    )
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _record: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "busy_timeout=10000",
        "foreign_keys=ON",
        "cache_size=-65536",
    ):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("hub_writes", False)
    # SQLite has one writer, so take the lock before the first read
    run_text(connection, "BEGIN IMMEDIATE" if writes else "BEGIN DEFERRED")


def _reader_options(dialect: str) -> dict[str, Any]:
    if dialect == "sqlite":
        return {}
    return {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
