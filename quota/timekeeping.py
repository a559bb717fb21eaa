"""The hub's clock as the database keeps it, so that every program and every restart counts the same time."""

from __future__ import annotations

from sqlalchemy import Connection, func, insert, select, update

from quota.audit.tables import audit, findings
from quota.clock import Clock, wall_ms
from quota.db import Tx
from quota.dispatch.tables import clock_row
from quota.errors import Conflict
from quota.fleet.tables import clusters
from quota.jobs.tables import attempts, jobs
from quota.ledger.tables import transfers
from quota.usage.tables import evidence


class ClockMismatch(Conflict):
    """This database was lived at another clock speed."""

    code = "clock_mismatch"


def anchor_clock(tx: Tx, speed: int, origin_ms: int | None = None, at_least_ms: int = 0) -> Clock:
    """The clock of this database; a first start stores it, a later one at speed > 1 goes on from the latest time.

    `origin_ms` is the business time of the first start (default: the wall's). `at_least_ms` is a time that
    another part, such as the simulated cluster's journal, has already reached. Raises ClockMismatch.
    """
    row = tx.connection.execute(select(clock_row).where(clock_row.c.id == 1)).one_or_none()
    now = wall_ms()
    if row is None:
        business = max(now if origin_ms is None else origin_ms, at_least_ms)
        clock = Clock(business, now, speed) if speed > 1 or origin_ms is not None else Clock(0, 0, 1)
        tx.connection.execute(insert(clock_row), {"id": 1} | _columns(clock))
        return clock
    if row.speed != speed:
        raise ClockMismatch(
            "this database was lived at clock speed {stored}, not {asked}; use --clock-speed {stored} "
            "or another data directory",
            stored=row.speed,
            asked=speed,
        )
    stored = Clock(row.business_at_ms, row.wall_at_ms, row.speed)
    if speed == 1:
        return stored
    clock = Clock(max(_latest(tx.connection), at_least_ms, row.business_at_ms), now, speed)
    tx.connection.execute(update(clock_row).where(clock_row.c.id == 1).values(**_columns(clock)))
    return clock


def read_clock(connection: Connection) -> Clock:
    """The clock as stored; the wall itself before the first anchoring."""
    row = connection.execute(select(clock_row).where(clock_row.c.id == 1)).one_or_none()
    return Clock() if row is None else Clock(row.business_at_ms, row.wall_at_ms, row.speed)


def _columns(clock: Clock) -> dict[str, int]:
    return {"business_at_ms": clock.business_at_ms, "wall_at_ms": clock.wall_at_ms, "speed": clock.speed}


def _latest(connection: Connection) -> int:
    """The greatest business time that anything in the database carries."""
    columns = (
        clusters.c.observed_through_ms,
        transfers.c.at_ms,
        audit.c.at_ms,
        findings.c.at_ms,
        jobs.c.submitted_at_ms,
        attempts.c.claimed_at_ms,
        attempts.c.ended_at_ms,
        evidence.c.received_at_ms,
    )
    return max(
        int(connection.execute(select(func.coalesce(func.max(column), 0))).scalar_one()) for column in columns
    )
