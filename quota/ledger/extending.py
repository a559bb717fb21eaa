"""EXTEND: more of a hold while its attempt runs, at the rate that the hold pinned, on its whole path or not at all."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import bindparam, select, update

from quota.db import Tx
from quota.ledger.posting import post
from quota.ledger.rules import Hold, Leg, amount_gpu_us
from quota.ledger.tables import accounts, holds
from quota.schemas.ledger import TransferType

_EXTEND = (
    update(holds)
    .where(holds.c.id == bindparam("hold"), holds.c.resolved.is_(False))
    .values(amount_gpu_us=holds.c.amount_gpu_us + bindparam("more"), extensions=bindparam("number"))
)
_PATH = (
    select(accounts)
    .where(accounts.c.id.in_(bindparam("path", expanding=True)))
    .order_by(accounts.c.id)
    .with_for_update()
)


def transfer_id_of(held: Hold, number: int) -> str:
    """The id of a hold's n-th extension."""
    return f"{held.job_id}:{held.attempt}:extend:{number}"


def extend(tx: Tx, held: Hold, number: int, extra_ms: int, *, actor: str, reason: str) -> bool:
    """Hold the cost of `extra_ms` more on every account of the hold's path, or on none.

    `number` counts a hold's extensions from 1: the next one is done, an earlier one answers False again.
    Raises InsufficientBalance, and TransferMismatch for another length under a known number.
    """
    assert 1 <= number <= held.extensions + 1, "extensions are numbered without gaps"
    assert number <= held.extensions or not held.resolved, "what is resolved holds nothing any more"
    amount = amount_gpu_us(extra_ms, held.gpus, held.rate.rate_thousandths)
    done = post(
        tx,
        transfer_id_of(held, number),
        TransferType.EXTEND,
        amount,
        tuple(Leg(account_id, d_held=amount) for account_id in held.path),
        actor=actor,
        reason=reason,
        job_id=held.job_id,
        attempt=held.attempt,
        hold_id=held.id,
        gpus=held.gpus,
        rate_id=held.rate.id,
    )
    if done:
        changed = tx.connection.execute(_EXTEND, {"hold": held.id, "more": amount, "number": number})
        assert changed.rowcount == 1, "the hold was locked and open"
    return done


def room_gpu_us(tx: Tx, path: Sequence[str]) -> int:
    """What every account of a path has left, its overdraft included; they stay locked, in the order of ids."""
    return min(
        int(row.granted_gpu_us + row.overdraft_gpu_us - row.held_gpu_us - row.used_gpu_us)
        for row in tx.connection.execute(_PATH, {"path": list(path)})
    )
