"""The ledger: deposit, pull back, hold, settle, release; with `refunds` the only writer of balances.

Every function runs inside the caller's transaction. A transfer is identified by its own id: asking twice
for the same transfer answers without doing it again, asking for another content under the same id is an
error. Accounts are changed by one conditional UPDATE each, in the order of their ids, so that two
transactions never wait for each other in a circle; what one account refuses undoes all (the caller's
transaction or savepoint rolls back).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import bindparam, insert, select, update

from quota.db import Tx
from quota.errors import InsufficientBalance
from quota.fleet.rules import Rate
from quota.ledger.posting import PLATFORM, change, find, post, queue
from quota.ledger.rules import Hold, Leg, Slice
from quota.ledger.tables import accounts, hold_accounts, holds, slices
from quota.schemas.ledger import TransferType

_HOLDS = (
    select(holds)
    .where(holds.c.id.in_(bindparam("holds", expanding=True)))
    .order_by(holds.c.id)
    .with_for_update()
)
_HOLD_PATHS = select(hold_accounts).where(hold_accounts.c.hold_id.in_(bindparam("holds", expanding=True)))
_NEW_HOLD = insert(holds)
_NEW_HOLD_ACCOUNTS = insert(hold_accounts)
_SETTLE = (
    update(holds)
    .where(holds.c.id == bindparam("hold"))
    .values(
        settled_gpu_us=holds.c.settled_gpu_us + bindparam("charged"),
        platform_gpu_us=holds.c.platform_gpu_us + bindparam("booked"),
    )
)
_RESOLVE = (
    update(holds)
    .where(holds.c.id == bindparam("hold"), holds.c.resolved.is_(False))
    .values(resolved=True, released_gpu_us=holds.c.released_gpu_us + bindparam("rest"))
)


def open_account(
    tx: Tx,
    account_id: str,
    kind: str,
    *,
    parent_id: str | None = None,
    program_id: str | None = None,
    organization_id: str | None = None,
    grant_id: str | None = None,
) -> None:
    """Make an empty account."""
    tx.connection.execute(
        insert(accounts),
        {
            "id": account_id,
            "kind": kind,
            "parent_id": parent_id,
            "program_id": program_id,
            "organization_id": organization_id,
            "grant_id": grant_id,
            "released": True,
            "granted_gpu_us": 0,
            "held_gpu_us": 0,
            "used_gpu_us": 0,
            "overdraft_gpu_us": 0,
        },
    )


def deposit(
    tx: Tx, transfer_id: str, source: str, target: str, amount_gpu_us: int, *, actor: str, reason: str
) -> bool:
    """Move granted time from `source` (treasury or programme) to `target`. False if it was done before.

    Raises InsufficientBalance when the source has less that is neither held nor used.
    """
    legs = (Leg(source, d_granted=-amount_gpu_us), Leg(target, d_granted=amount_gpu_us))
    return post(tx, transfer_id, TransferType.DEPOSIT, amount_gpu_us, legs, actor=actor, reason=reason)


def pull_back(
    tx: Tx, transfer_id: str, source: str, target: str, amount_gpu_us: int, *, actor: str, reason: str
) -> bool:
    """Take granted time of a grant back to its programme: at most min(granted - used - held, granted - children)."""
    row = tx.connection.execute(select(accounts).where(accounts.c.id == source).with_for_update()).one()
    children = tx.connection.execute(
        select(accounts.c.granted_gpu_us).where(accounts.c.parent_id == source)
    ).scalars()
    possible = min(row.granted_gpu_us - row.used_gpu_us - row.held_gpu_us, row.granted_gpu_us - sum(children))
    if amount_gpu_us > possible and find(tx, transfer_id) is None:
        raise InsufficientBalance(
            f"at most {possible} GPU-us can be taken back from {source}, {amount_gpu_us} were asked for",
            account=source,
            needed_gpu_us=amount_gpu_us,
            left_gpu_us=possible,
        )
    legs = (Leg(source, d_granted=-amount_gpu_us), Leg(target, d_granted=amount_gpu_us))
    return post(tx, transfer_id, TransferType.PULLBACK, amount_gpu_us, legs, actor=actor, reason=reason)


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
    tx.connection.execute(
        _NEW_HOLD,
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
            "gpu_class": rate.gpu_class,
            "gpus": gpus,
            "rate_id": rate.id,
            "rate_thousandths": rate.rate_thousandths,
            "price_krw": rate.price_krw,
        },
    )
    tx.connection.execute(
        _NEW_HOLD_ACCOUNTS, [{"hold_id": hold_id, "account_id": account_id} for account_id in path]
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
        paths: dict[str, list[str]] = defaultdict(list)
        for row in tx.connection.execute(_HOLD_PATHS, {"holds": part}):
            paths[row.hold_id].append(row.account_id)
        for row in tx.connection.execute(_HOLDS, {"holds": part}):
            rate = Rate(row.rate_id, row.gpu_class, row.rate_thousandths, row.price_krw)
            found[row.id] = Hold(
                id=row.id,
                job_id=row.job_id,
                attempt=row.attempt,
                grant_id=row.grant_id,
                path=tuple(sorted(paths[row.id])),
                amount_gpu_us=row.amount_gpu_us,
                settled_gpu_us=row.settled_gpu_us,
                resolved=row.resolved,
                gpus=row.gpus,
                rate=rate,
            )
    return found


def settle(tx: Tx, held: Hold, parts: Sequence[Slice], *, actor: str) -> int:
    """Charge slices to the hold's path, or book them on the platform. Answers what the path was charged.

    Each slice is its own transfer and row, unique by (job, attempt, start).
    """
    charged = booked = 0
    for part in parts:
        amount, slice_id = part.amount_gpu_us(held), part.id_of(held)
        if part.payer == "grant":
            charged += amount
        else:
            booked += amount
        queue(
            tx,
            slice_id,
            TransferType.SETTLE,
            amount,
            _slice_legs(held, part, amount),
            actor=actor,
            reason="occupied time" if part.payer == "grant" else "occupied time that the grant does not pay",
            job_id=held.job_id,
            attempt=held.attempt,
            hold_id=held.id if part.payer == "grant" else None,
            slice_id=slice_id,
            starts_at_ms=part.starts_at_ms,
            ends_at_ms=part.ends_at_ms,
            gpus=held.gpus,
            rate_id=held.rate.id,
        )
        tx.defer(slices, _slice_row(slice_id, held, part, amount))
    assert held.settled_gpu_us + charged <= held.amount_gpu_us, "a charge never passes its hold"
    legs = [Leg(account_id, d_held=-charged, d_used=charged) for account_id in held.path if charged]
    if booked:
        legs.append(Leg(PLATFORM, d_used=booked))
    for leg in sorted(legs, key=lambda leg: leg.account_id):
        change(tx, leg)
    if legs:
        tx.connection.execute(_SETTLE, {"hold": held.id, "charged": charged, "booked": booked})
    return charged


def release(tx: Tx, held: Hold, settled_gpu_us: int, *, actor: str, reason: str) -> None:
    """Resolve a hold: give back what was not charged. Once and for all; repeating it does nothing."""
    if held.resolved:
        return
    rest = held.amount_gpu_us - settled_gpu_us
    assert rest >= 0, "a charge never passes its hold"
    if rest:
        post(
            tx,
            f"{held.job_id}:{held.attempt}:release",
            TransferType.RELEASE,
            rest,
            tuple(Leg(account_id, d_held=-rest) for account_id in held.path),
            actor=actor,
            reason=reason,
            job_id=held.job_id,
            attempt=held.attempt,
            hold_id=held.id,
        )
    tx.connection.execute(_RESOLVE, {"hold": held.id, "rest": rest})


def _slice_legs(held: Hold, part: Slice, amount: int) -> tuple[Leg, ...]:
    if part.payer == "platform":
        return (Leg(PLATFORM, d_used=amount),)
    return tuple(Leg(account_id, d_held=-amount, d_used=amount) for account_id in held.path)


def _slice_row(slice_id: str, held: Hold, part: Slice, amount: int) -> dict[str, Any]:
    return {
        "id": slice_id,
        "job_id": held.job_id,
        "attempt": held.attempt,
        "starts_at_ms": part.starts_at_ms,
        "ends_at_ms": part.ends_at_ms,
        "payer": part.payer,
        "gpus": held.gpus,
        "gpu_class": held.rate.gpu_class,
        "rate_id": held.rate.id,
        "rate_thousandths": held.rate.rate_thousandths,
        "price_krw": held.rate.price_krw,
        "amount_gpu_us": amount,
    }
