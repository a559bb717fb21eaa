"""At the door: who a presented token speaks for, and when it was last used. Nothing of a token is cached.

Every request asks the database, so that a revocation holds on every replica from its commit on. Last use is
collected in memory and written by a thread of its own once a minute: a crash loses at most the last minute.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog
from sqlalchemy import bindparam, or_, select, update
from sqlalchemy.exc import SQLAlchemyError

from quota.clock import wall_ms
from quota.db import Database, Tx
from quota.errors import LockedOut, Unauthenticated
from quota.identity import lockout
from quota.identity.lockout import LOCKED_UNTIL, Limits, Sources
from quota.identity.tables import tokens
from quota.identity.tokens import digest, scopes_of
from quota.prepared import Prepared
from quota.schemas.identity import Caller, Role

log = structlog.get_logger("quota.identity")

FLUSH_EVERY_S = 60.0
"""Wall seconds between two writes of what was used."""

FINENESS_MS = 60_000
"""A use within this time (business) after the stored one is not written: replicas write no token more often."""

_BY_SECRET = Prepared(
    select(tokens, LOCKED_UNTIL.label("locked_until_wall_ms")).where(
        tokens.c.secret_sha256 == bindparam("digest")
    )
)
_USED = (
    update(tokens)
    .where(
        tokens.c.id == bindparam("token"),
        or_(tokens.c.last_used_at_ms.is_(None), tokens.c.last_used_at_ms <= bindparam("used") - FINENESS_MS),
    )
    .values(last_used_at_ms=bindparam("used"))
)


class Doorkeeper:
    """One per process: knows callers by their tokens, counts failures, and notes who came."""

    def __init__(self, limits: Limits | None = None, wall: Callable[[], int] = wall_ms) -> None:
        self._limits = limits or Limits()
        self._wall = wall
        self._used: dict[str, int] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def authenticate(self, database: Database, secret: str, address: str) -> Caller:
        """Who this secret, presented from this address, speaks for.

        Raises LockedOut after too many failures from there, even for a good token, and Unauthenticated, which
        is counted in a transaction of its own.
        """
        found = lockout.sources(address, secret)
        with database.read() as connection:
            row = _BY_SECRET.one_or_none(connection, found.parameters() | {"digest": digest(secret)})
            until = row.locked_until_wall_ms if row is not None else lockout.locked_until(connection, found)
        now_ms = self._wall()
        if until is not None and until > now_ms:
            raise LockedOut(
                "too many failed tokens from this address; try again in {retry_after_s} s",
                retry_after_s=-(-(until - now_ms) // 1000),
            )
        if row is None:
            self._failed(database, found, address, guessed=True)
            raise Unauthenticated("this token is unknown or was revoked")
        business_ms = database.clock.now_ms()
        if row.revoked_at_ms is not None:
            self._failed(database, found, address, guessed=False)
            raise Unauthenticated("this token is unknown or was revoked")
        if row.expires_at_ms is not None and row.expires_at_ms <= business_ms:
            self._failed(database, found, address, guessed=False)
            raise Unauthenticated("this token has expired")
        with self._lock:
            self._used[row.id] = business_ms
        return Caller(
            token_id=row.id,
            role=Role(row.role),
            organization_id=row.organization_id,
            node=row.node,
            scopes=scopes_of(row.scopes),
            address=address,
        )

    def start(self, database: Database) -> None:
        """Write now and then, in a thread, until `stop`."""
        self._thread = threading.Thread(target=self._repeat, args=(database,), name="doorkeeper", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Write what is left, and end the thread."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def write(self, database: Database) -> int:
        """Store the last uses noted since the last time, and forget old failures. Answers how many were noted.

        When the database refuses, the notes stay for the next time.
        """
        with self._lock:
            noted, self._used = self._used, {}
        try:
            if noted:
                database.write(lambda tx: _store(tx, noted))
        except BaseException:
            with self._lock:
                self._used = noted | self._used
            raise
        now_ms = self._wall()
        with database.read() as connection:
            old = lockout.anything_old(connection, self._limits, now_ms)
        if old:
            database.write(lambda tx: lockout.forget_old(tx, self._limits, now_ms))
        return len(noted)

    def _failed(self, database: Database, found: Sources, address: str, *, guessed: bool) -> None:
        now_ms = self._wall()
        database.write(
            lambda tx: lockout.count_failure(tx, self._limits, found, address, now_ms, guessed=guessed)
        )

    def _repeat(self, database: Database) -> None:
        while not self._stopping.wait(FLUSH_EVERY_S):
            self._write_or_log(database)
        self._write_or_log(database)

    def _write_or_log(self, database: Database) -> None:
        try:
            self.write(database)
        except SQLAlchemyError as error:
            # the loop's edge: the notes are kept, the next turn tries again
            log.error("last_use_not_written", error=type(error).__name__)


def _store(tx: Tx, noted: dict[str, int]) -> None:
    # in order of id, so that two replicas never wait for each other in a circle
    rows = [{"token": token_id, "used": noted[token_id]} for token_id in sorted(noted)]
    tx.connection.execute(_USED, rows)
