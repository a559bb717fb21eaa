"""The scheduler's lease by database time, and the fencing epoch that only grows."""

from __future__ import annotations

from sqlalchemy import Connection, insert, select, update

from quota.db import Tx, database_now_ms, head
from quota.dispatch.tables import scheduler_epoch, scheduler_lease, streams
from quota.errors import LeaseHeld, StaleEpoch
from quota.schemas.scheduling import LeaseReply, LeaseRequest


def take_lease(tx: Tx, body: LeaseRequest, ttl_s: float) -> LeaseReply:
    """Renew the lease, or take it over when it has expired or the same holder restarted.

    The same request repeated by the same instance (a lost reply) keeps its epoch. Raises LeaseHeld while
    another holder's lease runs, StaleEpoch when renewing an epoch that was taken over.
    """
    now = database_now_ms(tx.connection)
    epoch = int(
        tx.connection.execute(
            select(scheduler_epoch.c.epoch)
            .where(scheduler_epoch.c.id == 1)
            .with_for_update(read=body.epoch is not None)
        ).scalar_one()
    )
    lease = tx.connection.execute(select(scheduler_lease).where(scheduler_lease.c.id == 1)).one_or_none()
    mine = lease is not None and (lease.holder, lease.instance) == (body.holder, body.instance)
    if body.epoch is not None and (body.epoch != epoch or not mine):
        raise StaleEpoch(f"epoch {body.epoch} was taken over, {epoch} is current", epoch=epoch)
    if body.epoch is None and not mine:
        if lease is not None and lease.holder != body.holder and lease.expires_wall_ms > now:
            left_ms = lease.expires_wall_ms - now
            raise LeaseHeld(
                f"{lease.holder} holds the lease for {left_ms} ms more", holder=lease.holder, left_ms=left_ms
            )
        epoch += 1
        tx.connection.execute(update(scheduler_epoch).where(scheduler_epoch.c.id == 1).values(epoch=epoch))
    values = {
        "holder": body.holder,
        "instance": body.instance,
        "url": body.url,
        "expires_wall_ms": now + int(ttl_s * 1000),
    }
    if lease is None:
        tx.connection.execute(insert(scheduler_lease), values | {"id": 1})
    else:
        tx.connection.execute(update(scheduler_lease).where(scheduler_lease.c.id == 1).values(**values))
    return LeaseReply(epoch=epoch, ttl_s=ttl_s, streams=_streams(tx.connection), seq=head(tx.connection))


def check_epoch(tx: Tx, epoch: int) -> None:
    """Lock the epoch against a take-over until this transaction ends. Raises StaleEpoch."""
    current = int(
        tx.connection.execute(
            select(scheduler_epoch.c.epoch).where(scheduler_epoch.c.id == 1).with_for_update(read=True)
        ).scalar_one()
    )
    if epoch != current:
        raise StaleEpoch(f"epoch {epoch} is not the current one ({current})", epoch=current)


def _streams(connection: Connection) -> dict[str, int]:
    return {
        row.stream: row.last_seq for row in connection.execute(select(streams.c.stream, streams.c.last_seq))
    }
