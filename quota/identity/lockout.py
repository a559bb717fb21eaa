"""Locking out who presents wrong tokens again and again, by wall time and for all replicas.

Failures count per address, and per address and first characters of what was presented; IPv6 addresses count by
their /64, which one machine can walk through. Once a source is locked nothing more is written, so that a flood of
guesses costs reads only: at most `address_failures` rows per address and window.

A token that was revoked or has expired counts for its own pair only: whoever presents it held the real secret once
and guesses nothing, so it must not shut out the other tokens behind the same address. The pair is locked all the
same, because that tells operators that somebody still uses it.
"""

from __future__ import annotations

import hashlib
import ipaddress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import BigInteger, Connection, and_, bindparam, case, delete, func, literal, null, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from quota.audit import service as audit
from quota.clock import instant_text
from quota.db import Tx
from quota.identity.tables import auth_failures
from quota.identity.tokens import PREFIX, SHOWN_CHARACTERS

DOOR = "door"
"""Who the audit trail names for what nobody in particular did."""

LOCKED_UNTIL = (
    select(func.max(auth_failures.c.locked_until_wall_ms))
    .where(auth_failures.c.source.in_([bindparam("place"), bindparam("pair")]))
    .scalar_subquery()
)
"""When the later of the locks of `sources` ends or ended, in wall milliseconds; NULL without one."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How many failures within which time lock a source for how long; milliseconds of the wall."""

    pair_failures: int = 10
    address_failures: int = 100
    window_ms: int = 300_000
    locked_ms: int = 900_000


@dataclass(frozen=True, slots=True)
class Sources:
    """The two things that a presented token counts for."""

    place: str
    pair: str
    shown: str
    """The first characters of what was presented, if they are a token's."""

    def parameters(self) -> dict[str, str]:
        """The bind parameters of LOCKED_UNTIL."""
        return {"place": self.place, "pair": self.pair}


def sources(address: str, presented: str) -> Sources:
    """What a token presented from this address counts for.

    The first characters are kept as a hash: what was typed may be a password of something else.
    """
    place = _place(address)
    first = presented[:SHOWN_CHARACTERS]
    hashed = hashlib.sha256(first.encode()).hexdigest()[:32]
    return Sources(place, f"{place} {hashed}", first if first.startswith(PREFIX) else "")


def locked_until(connection: Connection, found: Sources) -> int | None:
    """When the lock of these sources ends or ended, in wall milliseconds."""
    until = connection.execute(select(LOCKED_UNTIL), found.parameters()).scalar()
    return None if until is None else int(until)


def count_failure(
    tx: Tx, limits: Limits, found: Sources, address: str, wall_now_ms: int, *, guessed: bool
) -> None:
    """Count one failure, and lock a source that reaches its limit: an audit row and a finding say so.

    `guessed`: the token is unknown, so that the failure counts for the address too. A source that is locked
    already is left as it is.
    """
    if guessed:
        subject = f"address {found.place}"
        until = _count(tx, limits, found.place, limits.address_failures, wall_now_ms)
        _tell(tx, subject, "an address", address, limits, limits.address_failures, until)
    shown = found.shown or "(not one of this hub's)"
    until = _count(tx, limits, found.pair, limits.pair_failures, wall_now_ms)
    _tell(tx, f"token {shown}", f"token {shown}", address, limits, limits.pair_failures, until)


def forget_old(tx: Tx, limits: Limits, wall_now_ms: int) -> int:
    """Drop counts whose window is over and locks that have ended. Answers how many."""
    return tx.connection.execute(delete(auth_failures).where(_over(limits, wall_now_ms))).rowcount


def anything_old(connection: Connection, limits: Limits, wall_now_ms: int) -> bool:
    """Whether `forget_old` would drop anything."""
    return connection.execute(select(literal(1)).where(_exists_over(limits, wall_now_ms))).first() is not None


def _count(tx: Tx, limits: Limits, source: str, most: int, now_ms: int) -> int | None:
    """Add one failure in one statement, exact under concurrency. Answers when the lock ends that began now."""
    make = sqlite.insert if tx.dialect == "sqlite" else postgresql.insert
    lock_ends = literal(now_ms + limits.locked_ms, BigInteger)
    known = auth_failures.c
    # a lock that has ended, or a window that is over, begins a new count
    anew = or_(known.locked_until_wall_ms.is_not(None), known.since_wall_ms <= now_ms - limits.window_ms)
    failures = case((anew, 1), else_=known.failures + 1)
    statement = make(auth_failures).values(
        source=source,
        failures=1,
        since_wall_ms=now_ms,
        locked_until_wall_ms=lock_ends if most <= 1 else null(),
    )
    counted = statement.on_conflict_do_update(
        index_elements=["source"],
        set_={
            "failures": failures,
            "since_wall_ms": case((anew, literal(now_ms, BigInteger)), else_=known.since_wall_ms),
            "locked_until_wall_ms": case((failures >= most, lock_ends), else_=null()),
        },
        where=or_(known.locked_until_wall_ms.is_(None), known.locked_until_wall_ms <= now_ms),
    ).returning(auth_failures.c.locked_until_wall_ms)
    until = tx.connection.execute(counted).scalar()
    return None if until is None else int(until)


def _tell(
    tx: Tx, subject: str, source: str, address: str, limits: Limits, most: int, until_ms: int | None
) -> None:
    if until_ms is None:
        return
    until = instant_text(until_ms)
    detail = {
        "failures": most,
        "within_s": limits.window_ms // 1000,
        "locked_until": until,
        "address": address,
    }
    audit.record(tx, DOOR, "lockout.begin", subject, detail=detail)
    # findings are read by more people than the trail: no address there
    audit.find(
        tx,
        "lockout",
        source,
        f"{most} failed tokens within {limits.window_ms // 1000} s, locked until {until}; "
        "the address stands in the audit trail (lockout.begin)",
    )


def _over(limits: Limits, now_ms: int) -> Any:
    known = auth_failures.c
    return and_(
        known.since_wall_ms <= now_ms - limits.window_ms,
        or_(known.locked_until_wall_ms.is_(None), known.locked_until_wall_ms <= now_ms),
    )


def _exists_over(limits: Limits, now_ms: int) -> Any:
    return select(auth_failures.c.source).where(_over(limits, now_ms)).exists()


@lru_cache(4096)
def _place(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))
