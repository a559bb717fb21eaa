"""EXPIRE: what nobody used until a grant's end goes to its programme's account of expired hours."""

from __future__ import annotations

from sqlalchemy import select

from quota.db import Tx
from quota.ledger.posting import post
from quota.ledger.rules import Leg
from quota.ledger.tables import accounts
from quota.schemas.ledger import TransferType


def expired_account(program_id: str) -> str:
    """Where the expired hours of a programme stand."""
    return f"expired:{program_id}"


def expire_id(grant_id: str, number: int) -> str:
    """The id of a grant's EXPIRE transfer; the first has number 1."""
    return f"{grant_id}:expire:{number}"


def expire(
    tx: Tx, grant_id: str, account_id: str, target: str, number: int, *, actor: str, reason: str
) -> int:
    """Move what is neither used nor held of an ended grant to `target`. Answers how much, in GPU-us.

    The limit accounts laid over the grant lose what is free on them by legs of the same transfer. Nothing free is no
    transfer. The caller has locked the grant, so that `number` is the next one.
    """
    rows = tx.connection.execute(
        select(accounts)
        .where((accounts.c.id == account_id) | (accounts.c.parent_id == account_id))
        .order_by(accounts.c.id)
        .with_for_update()
    ).all()
    free = {row.id: row.granted_gpu_us - row.used_gpu_us - row.held_gpu_us for row in rows}
    amount = int(free[account_id])
    if amount <= 0:  # below: an overdraft was used, and nothing is left to expire
        return 0
    legs = [Leg(target, d_granted=amount)]
    legs += [Leg(name, d_granted=-rest) for name, rest in free.items() if rest > 0]
    done = post(
        tx, expire_id(grant_id, number), TransferType.EXPIRE, amount, legs, actor=actor, reason=reason
    )
    assert done, f"{grant_id} has expired {number} times before"
    return amount
