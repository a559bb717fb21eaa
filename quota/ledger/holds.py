"""Holds: an attempt's whole cost on every account of its path, or on none.

Same rules as in `service`: a transfer is done once under its own id, accounts change in the order of their ids,
and what one account refuses undoes all.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter

from sqlalchemy import bindparam, select

from quota.db import Tx
from quota.fleet.rules import Rate
from quota.ledger.posting import post
from quota.ledger.rules import Hold, Leg
from quota.ledger.tables import hold_accounts, holds
from quota.prepared import Prepared
from quota.schemas.ledger import TransferType

_HOLDS = Prepared(
    select(holds, hold_accounts.c.account_id)
    .join(hold_accounts, hold_accounts.c.hold_id == holds.c.id)
    .where(holds.c.id.in_(bindparam("holds", expanding=True)))
    .order_by(holds.c.id)
    .with_for_update(of=holds),
    lists=("holds",),
)
"""A row for each account of a hold's path."""
_NEW_HOLD = Prepared.insert(holds, holds.c.keys())
_NEW_HOLD_ACCOUNTS = Prepared.insert(hold_accounts, hold_accounts.c.keys())


def hold(
    tx: Tx,
    job_id: str,
    attempt: int,
    grant_id: str,
    path: Sequence[str],
    amount_gpu_us: int,
    gpus: int,
    rate: Rate,
    *,
    actor: str,
) -> str:
    """Hold an attempt's whole cost on every account of `path`, or on none. Answers the hold's id.

    Raises InsufficientBalance with what is left and what was needed.
    """
    hold_id = f"{job_id}:{attempt}:hold"
    legs = tuple(Leg(account_id, d_held=amount_gpu_us) for account_id in path)
    done = post(
        tx,
        hold_id,
        TransferType.HOLD,
        amount_gpu_us,
        legs,
        actor=actor,
        reason="attempt started",
        job_id=job_id,
        attempt=attempt,
        hold_id=hold_id,
        gpus=gpus,
        rate_id=rate.id,
    )
    if not done:
        return hold_id
    _NEW_HOLD.change(
        tx.connection,
        {
            "id": hold_id,
            "job_id": job_id,
            "attempt": attempt,
            "grant_id": grant_id,
            "amount_gpu_us": amount_gpu_us,
            "settled_gpu_us": 0,
            "released_gpu_us": 0,
            "refunded_gpu_us": 0,
            "platform_gpu_us": 0,
            "resolved": False,
            "extensions": 0,
            "gpu_class": rate.gpu_class,
            "gpus": gpus,
            "rate_id": rate.id,
            "rate_thousandths": rate.rate_thousandths,
            "price_krw": rate.price_krw,
        },
    )
    _NEW_HOLD_ACCOUNTS.change_all(
        tx.connection, [{"hold_id": hold_id, "account_id": account_id} for account_id in path]
    )
    return hold_id


def read_hold(tx: Tx, hold_id: str) -> Hold:
    """A hold with its path, locked until the transaction ends."""
    return read_holds(tx, [hold_id])[hold_id]


def read_holds(tx: Tx, hold_ids: Sequence[str]) -> dict[str, Hold]:
    """Holds with their paths by id, locked in the order of ids until the transaction ends."""
    found: dict[str, Hold] = {}
    ordered = sorted(hold_ids)
    for start in range(0, len(ordered), 500):
        part = ordered[start : start + 500]
        for hold_id, rows in groupby(_HOLDS.all(tx.connection, {"holds": part}), attrgetter("id")):
            path = list(rows)
            row = path[0]
            rate = Rate(row.rate_id, row.gpu_class, row.rate_thousandths, row.price_krw)
            found[hold_id] = Hold(
                id=row.id,
                job_id=row.job_id,
                attempt=row.attempt,
                grant_id=row.grant_id,
                path=tuple(sorted(each.account_id for each in path)),
                amount_gpu_us=row.amount_gpu_us,
                settled_gpu_us=row.settled_gpu_us,
                resolved=row.resolved,
                gpus=row.gpus,
                rate=rate,
                extensions=row.extensions,
            )
    return found
