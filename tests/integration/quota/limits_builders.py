"""Shares, tranches and starts on their paths, for the tests of limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quota.db import Database
from quota.ledger.tables import accounts
from quota.programs import limits, shares, tranches
from quota.schemas.identity import Caller
from quota.schemas.jobs import Job
from quota.schemas.limits import (
    GrantLimits,
    NewTranche,
    NewTranches,
    Share,
    ShareChange,
    ShareList,
    ShareMove,
    TrancheList,
    TrancheRelease,
)
from quota.schemas.programs import Grant
from tests.builders import GPU_HOUR_US, OPERATOR, Hub, started


def give(
    hub: Hub,
    grant: Grant,
    party: str,
    hours: str | int,
    caller: Caller = OPERATOR,
    *,
    if_match: str | None = None,
    database: Database | None = None,
) -> Share:
    """Set a party's share."""
    body = ShareChange(gpu_hours=hours, reason="the agreement")
    where = hub.database if database is None else database
    return where.write(lambda tx: shares.put_share(tx, caller, grant.id, party, body, if_match))


def move(
    hub: Hub,
    grant: Grant,
    giver: str,
    taker: str,
    hours: str | int,
    caller: Caller = OPERATOR,
    *,
    database: Database | None = None,
) -> ShareList:
    """Move hours from one party to another."""
    body = ShareMove(
        from_organization_id=giver, to_organization_id=taker, gpu_hours=hours, reason="beta needs them"
    )
    where = hub.database if database is None else database
    return where.write(lambda tx: shares.move_share(tx, caller, grant.id, body))


def divide(hub: Hub, grant: Grant, *hours: str | int, first_released: bool = True) -> TrancheList:
    """Divide a grant into tranches."""
    parts = tuple(NewTranche(gpu_hours=amount, label=f"part of {amount}") for amount in hours)
    body = NewTranches(tranches=parts, first_released=first_released, reason="by milestones")
    return hub.database.write(lambda tx: tranches.open_tranches(tx, OPERATOR, grant.id, body))


def release(hub: Hub, grant: Grant, position: int, *, database: Database | None = None) -> TrancheList:
    """Release a tranche."""
    body = TrancheRelease(reason="milestone reached", evidence="report 7")
    where = hub.database if database is None else database
    return where.write(lambda tx: tranches.release_tranche(tx, OPERATOR, grant.id, position, body))


def limits_of(hub: Hub, grant: Grant, caller: Caller = OPERATOR) -> GrantLimits:
    with hub.database.read() as connection:
        return limits.read_limits(connection, caller, grant.id, None)


def path(grant: Grant, party: str | None = None, tranche: int | None = None) -> list[str]:
    """The accounts of a path: share, tranche, grant."""
    names = [] if party is None else [f"share:{grant.id}:{party}"]
    names += [] if tranche is None else [f"tranche:{grant.id}:{tranche}"]
    return [*names, grant.account_id]


def run_on(hub: Hub, job: Job, grant: Grant, where: Sequence[str], *nodes: str) -> int:
    """Start a job on a path and see its containers start now."""
    attempt = hub.start(job, grant, *nodes, path=where)
    hub.report(started(job, hub.now, hub.now, attempt=attempt))
    return attempt


def balance(hub: Hub, account_id: str) -> tuple[int, int, int]:
    """Granted, held and used of an account in whole GPU hours."""
    row: Any = hub.row(accounts, id=account_id)
    amounts = (row.granted_gpu_us, row.held_gpu_us, row.used_gpu_us)
    assert all(amount % GPU_HOUR_US == 0 for amount in amounts), amounts
    granted, held, used = (amount // GPU_HOUR_US for amount in amounts)
    return granted, held, used
