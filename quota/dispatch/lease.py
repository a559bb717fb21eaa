"""The scheduler's lease by database time, and the fencing epoch that only grows."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from sqlalchemy import Connection, insert, select, update

from quota.db import Tx, database_now_ms, head
from quota.dispatch.tables import scheduler_epoch, scheduler_lease, streams
from quota.errors import LeaseHeld, StaleEpoch
from quota.prepared import Prepared
from quota.schemas.scheduling import LeaseReply, LeaseRequest

_LOCK_EPOCH = Prepared(select(scheduler_epoch.c.epoch).where(scheduler_epoch.c.id == 1).with_for_update())


def take_lease(tx: Tx, body: LeaseRequest, ttl_s: float) -> LeaseReply:
    """Renew the lease, or take it over when it has expired or the same holder restarted.

    The same request repeated by the same instance (a lost reply) keeps its epoch. Raises LeaseHeld while
    another holder's lease runs, StaleEpoch when renewing an epoch that was taken over.
    """
    now = database_now_ms(tx.connection)
    epoch_row = select(scheduler_epoch.c.epoch).where(scheduler_epoch.c.id == 1)
    if body.epoch is None:  # a renewal never waits for a batch that runs
        epoch_row = epoch_row.with_for_update()
    epoch = int(tx.connection.execute(epoch_row).scalar_one())
    lease = tx.connection.execute(select(scheduler_lease).where(scheduler_lease.c.id == 1)).one_or_none()
    mine = lease is not None and (lease.holder, lease.instance) == (body.holder, body.instance)
    if body.epoch is not None and (body.epoch != epoch or not mine):
        raise StaleEpoch("this epoch was taken over; {epoch} is the current one", epoch=epoch)
    if body.epoch is None and not mine:
        if lease is not None and lease.holder != body.holder and lease.expires_wall_ms > now:
            left_ms = lease.expires_wall_ms - now
            raise LeaseHeld(
                "{holder} holds the lease for {left_ms} ms more", holder=lease.holder, left_ms=left_ms
            )
        epoch += 1
        tx.connection.execute(update(scheduler_epoch).where(scheduler_epoch.c.id == 1).values(epoch=epoch))
    values = {
        "holder": body.holder,
        "instance": body.instance,
        "url": body.url,
        "expires_wall_ms": now + int(ttl_s * 1000),
        # a lease that an older program wrote has none
        "door_secret": (lease.door_secret if mine and lease is not None else "") or secrets.token_urlsafe(32),
    }
    if lease is None:
        tx.connection.execute(insert(scheduler_lease), values | {"id": 1})
        return _granted(tx, epoch, ttl_s, str(values["door_secret"]))
    still_mine = (scheduler_lease.c.holder == lease.holder, scheduler_lease.c.instance == lease.instance)
    statement = update(scheduler_lease).where(scheduler_lease.c.id == 1, *still_mine).values(**values)
    if not tx.connection.execute(statement).rowcount:
        raise StaleEpoch("epoch {epoch} was taken over just now", epoch=epoch)
    return _granted(tx, epoch, ttl_s, str(values["door_secret"]))


def _granted(tx: Tx, epoch: int, ttl_s: float, door_secret: str) -> LeaseReply:
    return LeaseReply(
        epoch=epoch,
        ttl_s=ttl_s,
        streams=_streams(tx.connection),
        seq=head(tx.connection),
        door_secret=door_secret,
    )


@dataclass(frozen=True, slots=True)
class Leader:
    """Where the scheduler that holds the lease is reached, and what opens its door."""

    url: str
    secret: str = field(repr=False)


def read_leader(connection: Connection) -> Leader | None:
    """Who leads at this moment of the database's time; None if nobody does, or nobody says where."""
    row = connection.execute(select(scheduler_lease).where(scheduler_lease.c.id == 1)).one_or_none()
    if row is None or not row.url or not row.door_secret:
        return None
    return Leader(row.url, row.door_secret) if row.expires_wall_ms > database_now_ms(connection) else None


def check_epoch(tx: Tx, epoch: int) -> None:
    """Lock the epoch until this transaction ends: no take-over meanwhile, and the leader's own batches one by one.

    There is one leader, so its batches gain nothing from running side by side, and never wait for each other
    in a circle. Raises StaleEpoch.
    """
    current = int(_LOCK_EPOCH.one(tx.connection).epoch)
    if epoch != current:
        raise StaleEpoch("this epoch was taken over; {epoch} is the current one", epoch=current)


def _streams(connection: Connection) -> dict[str, int]:
    return {
        row.stream: row.last_seq for row in connection.execute(select(streams.c.stream, streams.c.last_seq))
    }
