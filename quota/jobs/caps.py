"""How many GPUs the attempts on a grant keep, and its cap on them."""

from __future__ import annotations

from sqlalchemy import Connection, bindparam, func, select

from quota.db import Tx
from quota.errors import GrantCapReached
from quota.jobs.tables import attempts
from quota.ledger.tables import holds
from quota.prepared import Prepared

_IN_USE = Prepared(
    select(func.coalesce(func.sum(holds.c.gpus), 0).label("gpus"))
    .join(attempts, attempts.c.hold_id == holds.c.id)
    .where(attempts.c.grant_id == bindparam("grant"), attempts.c.capacity_held.is_(True))
)


def gpus_in_use(connection: Connection, grant_id: str) -> int:
    """GPUs of the attempts on a grant that keep their capacity: also those that stop, or were lost from sight."""
    return int(_IN_USE.one(connection, {"grant": grant_id}).gpus)


def take_gpus(tx: Tx, grant_id: str, max_gpus: int | None, gpus: int) -> None:
    """Count an attempt that starts now towards its grant's cap. Raises GrantCapReached with numbers.

    The caller holds the grant's account, so starts on one grant are counted one after the other. Attempts are
    written when their transaction is published: those that it started before this one are counted beside them.
    """
    if max_gpus is None:
        return
    key = ("gpus in use", grant_id)
    in_use = tx.once(key, lambda: gpus_in_use(tx.connection, grant_id))
    if in_use + gpus > max_gpus:
        raise GrantCapReached(
            "grant {grant_id} has {gpus_in_use} GPUs in use of at most {max_gpus}, {needed_gpus} were asked for",
            grant_id=grant_id,
            gpus_in_use=in_use,
            max_gpus=max_gpus,
            needed_gpus=gpus,
        )
    tx.memo[key] = in_use + gpus
