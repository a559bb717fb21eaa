"""Grants end: what nobody used expires, may be carried over by an operator, and an end may be moved.

A grant ends by the clock alone; nothing has to run for that. `sweep` then takes what is free on it, at once when a
hold resolves or a charge is given back, and `expire_due` finds what time alone has ended, also after a downtime.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, or_, select, update

from quota.audit import service as audit
from quota.clock import instant_text
from quota.db import Database, Tx
from quota.errors import BadRequest, GrantNotActive, InsufficientBalance
from quota.ledger import expiring, moving
from quota.ledger.tables import accounts, transfers
from quota.prepared import Prepared
from quota.programs.policies import read_document
from quota.programs.service import check_positive, grant_row, read_grant
from quota.programs.tables import grants
from quota.programs.tranches import top_up_tranche
from quota.schemas.identity import Caller
from quota.schemas.programs import CarryOver, Grant, GrantMove

HUB = "hub"

# built once: every report that settles something asks it
_ENDED = Prepared(
    select(grants.c.id).where(
        grants.c.id.in_(bindparam("grants", expanding=True)), grants.c.ends_at_ms <= bindparam("now")
    ),
    lists=("grants",),
)
# not FOR UPDATE: the foreign keys of attempts rely on the row, and a report may wait for an account meanwhile
_GRANT_LOCKED = select(grants).where(grants.c.id == bindparam("grant")).with_for_update(key_share=True)
_ENDED_LOCKED = Prepared(
    select(grants)
    .where(grants.c.id.in_(bindparam("grants", expanding=True)), grants.c.ends_at_ms <= bindparam("now"))
    .order_by(grants.c.id)
    .with_for_update(key_share=True),
    lists=("grants",),
)


def expire_due(database: Database) -> int:
    """Expire what is left of every grant that has ended, each in a transaction of its own. Answers how many.

    Run it as often as you like: a remainder expires once. One grant that fails keeps no other from expiring; the
    failures are raised together at the end, and the next run tries them again.
    """
    with database.read() as connection:
        due = _due(connection, database.clock.now_ms())
    return sum(database.write_each(due, lambda tx, grant_id: sweep(tx, [grant_id])))


def sweep(tx: Tx, grant_ids: Collection[str]) -> int:
    """EXPIRE what is free on those of these grants that have ended. Answers for how many it did something.

    Called at the end of whatever frees held or used time: one read where none of them has ended.
    """
    found = [row.id for row in _ended(tx, _ENDED, sorted(grant_ids))]
    if not found:
        return 0
    # accounts before grants, as settling does: nobody waits in a circle
    _lock_accounts(tx, found)
    rows = _ended(tx, _ENDED_LOCKED, found)
    return sum(_expire(tx, row) for row in rows)


def change_end(tx: Tx, caller: Caller, grant_id: str, ends_at: int, reason: str) -> Grant:
    """Move a grant's end, earlier (not before now) or later. The same end again does nothing.

    Later is refused for a grant whose remainder has expired: carry it over, or award anew. An end that lies at now
    expires the remainder in the same transaction. Raises BadRequest, GrantNotActive, NotFound.
    """
    grant_row(tx.connection, grant_id)
    _lock_accounts(tx, [grant_id])
    row = tx.connection.execute(_GRANT_LOCKED, {"grant": grant_id}).one()
    if ends_at == row.ends_at_ms:
        return read_grant(tx.connection, grant_id, tx.now_ms)
    if ends_at < tx.now_ms or ends_at <= row.starts_at_ms:
        raise BadRequest("a grant cannot end before now, or before it starts", field="ends_at")
    if row.ends_at_ms <= tx.now_ms and row.expiries:
        raise GrantNotActive(
            "grant {grant_id} has ended and its remainder has expired; carry it over or award a new grant",
            grant_id=grant_id,
            ended_at=instant_text(row.ends_at_ms),
        )
    tx.connection.execute(
        update(grants).where(grants.c.id == grant_id).values(ends_at_ms=ends_at, expired_at_ms=None)
    )
    tx.touch("grant", grant_id)
    audit.record(
        tx,
        caller,
        "grant.change_end",
        grant_id,
        reason=reason,
        before={"ends_at": instant_text(row.ends_at_ms)},
        after={"ends_at": instant_text(ends_at)},
    )
    sweep(tx, [grant_id])
    return read_grant(tx.connection, grant_id, tx.now_ms)


def carry_over(tx: Tx, caller: Caller, grant_id: str, body: CarryOver) -> GrantMove:
    """Give hours that expired on a grant to a grant of the same programme that has not ended: an operator's act.

    At most the policy's part of what that grant expired, less what was carried over before. Raises
    InsufficientBalance with what is possible, GrantNotActive, BadRequest, NotFound.
    """
    check_positive(body.gpu_hours, "gpu_hours")
    source = grant_row(tx.connection, grant_id)
    target = grant_row(tx.connection, body.to_grant_id, field="to_grant_id")
    if source.id == target.id or source.program_id != target.program_id:
        raise BadRequest("hours are carried over to another grant of the programme", field="to_grant_id")
    if target.ends_at_ms <= tx.now_ms:
        raise GrantNotActive("grant {grant_id} has ended", field="to_grant_id", grant_id=target.id)
    _lock_accounts(tx, [target.id])
    row = tx.connection.execute(_GRANT_LOCKED, {"grant": grant_id}).one()
    left = carriable_gpu_us(tx, row)
    if body.gpu_hours > left:
        raise InsufficientBalance(
            "at most {left_gpu_us} GPU-us of grant {grant_id} can be carried over, {needed_gpu_us} were asked for",
            grant_id=grant_id,
            needed_gpu_us=body.gpu_hours,
            left_gpu_us=left,
        )
    tx.connection.execute(
        update(grants).where(grants.c.id == grant_id).values(carry_overs=grants.c.carry_overs + 1)
    )
    transfer_id = _carry_over_id(grant_id, row.carry_overs + 1)
    moving.transfer(
        tx,
        transfer_id,
        expiring.expired_account(row.program_id),
        target.account_id,
        body.gpu_hours,
        actor=caller.token_id,
        reason=body.reason,
        evidence=body.evidence,
    )
    top_up_tranche(tx, caller, target.id, body.gpu_hours, body.tranche, body.reason)
    tx.touch("grant", target.id)
    after = read_grant(tx.connection, target.id, tx.now_ms)
    detail = {"amount_gpu_us": str(body.gpu_hours), "to": target.id, "transfer_id": transfer_id}
    audit.record(
        tx,
        caller,
        "grant.carry_over",
        grant_id,
        reason=body.reason,
        detail=detail | {"evidence": body.evidence or ""},
        before={"carriable_gpu_us": str(left), "granted_gpu_us": str(target.granted_gpu_us)},
        after={
            "carriable_gpu_us": str(left - body.gpu_hours),
            "granted_gpu_us": str(after.granted_gpu_us),
        },
    )
    return GrantMove(
        transfer_id=transfer_id, source=read_grant(tx.connection, grant_id, tx.now_ms), target=after
    )


def carriable_gpu_us(tx: Tx, row: Row[Any]) -> int:
    """What of a grant's expired hours can still be carried over. Both sums come from the ledger."""
    expired = _total(tx, [expiring.expire_id(row.id, n + 1) for n in range(row.expiries)])
    carried = _total(tx, [_carry_over_id(row.id, n + 1) for n in range(row.carry_overs)])
    return expired * read_document(row.policy).carry_over_thousandths // 1000 - carried


def _due(connection: Connection, now_ms: int) -> list[str]:
    """Ended grants not yet seen to end, and those on which something is free again all the same."""
    free = accounts.c.granted_gpu_us - accounts.c.used_gpu_us - accounts.c.held_gpu_us
    return list(
        connection.execute(
            select(grants.c.id)
            .join(accounts, accounts.c.id == grants.c.account_id)
            .where(grants.c.ends_at_ms <= now_ms, or_(grants.c.expired_at_ms.is_(None), free > 0))
            .order_by(grants.c.ends_at_ms, grants.c.id)
        ).scalars()
    )


def _expire(tx: Tx, row: Row[Any]) -> bool:
    reason = f"the grant ended at {instant_text(row.ends_at_ms)}"
    target = expiring.expired_account(row.program_id)
    amount = expiring.expire(tx, row.id, row.account_id, target, row.expiries + 1, actor=HUB, reason=reason)
    if not amount and row.expired_at_ms is not None:
        return False
    tx.connection.execute(
        update(grants)
        .where(grants.c.id == row.id)
        .values(
            expired_at_ms=func.coalesce(grants.c.expired_at_ms, tx.now_ms),
            expiries=grants.c.expiries + (1 if amount else 0),
        )
    )
    tx.touch("grant", row.id)  # it has left the feed
    detail = {"amount_gpu_us": str(amount), "ended_at": instant_text(row.ends_at_ms)}
    audit.record(tx, HUB, "grant.expire", row.id, reason=reason, detail=detail)
    return True


def _ended(tx: Tx, statement: Prepared, grant_ids: list[str]) -> Sequence[Row[Any]]:
    return statement.all(tx.connection, {"grants": grant_ids, "now": tx.now_ms})


def _lock_accounts(tx: Tx, grant_ids: Collection[str]) -> None:
    tx.connection.execute(
        select(accounts.c.id)
        .where(accounts.c.grant_id.in_(sorted(grant_ids)))
        .order_by(accounts.c.id)
        .with_for_update()
    ).all()


def _carry_over_id(grant_id: str, number: int) -> str:
    return f"{grant_id}:carry-over:{number}"


def _total(tx: Tx, transfer_ids: list[str]) -> int:
    amounts = select(transfers.c.amount_gpu_us).where(transfers.c.id.in_(transfer_ids))
    return sum(tx.connection.execute(amounts).scalars())
